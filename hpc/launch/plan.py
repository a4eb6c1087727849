"""``cluster.dry_run=true``: the plan of a run and the exact script, and nothing submitted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc.context import Context
from hpc.errors import EXIT_DONE
from hpc.job import Job, Map
from hpc.launch.defaults import with_users_defaults
from hpc.launch.script import script_text
from hpc.launch.slurm import plan_batch
from hpc.launch.start import crew_text
from hpc.load import load_job
from hpc.settings import Settings, SlurmCluster
from hpc.terminal import say


def dry_run(settings: Settings) -> int:
    """Print what would be submitted for a run."""
    cluster = settings.cluster
    if not isinstance(cluster, SlurmCluster):
        msg = "a dry run is of a SLURM job"
        raise TypeError(msg)
    cluster = with_users_defaults(cluster)
    run, name = settings.run.dir, settings.job["name"]
    batch = plan_batch(cluster, f"tessera-{name}", 1, run / "slurm" / "1", run / "logs")
    lines = [f"run      {run}", f"job      {crew_text(cluster)}", *plan_lines(cluster), *stage_lines(settings)]
    say("\n".join([*lines, "", script_text(cluster, batch)]))
    return EXIT_DONE


def sweep_script(members: Sequence[Settings], cluster: SlurmCluster) -> str:
    """Return the script of the array that a sweep would be submitted as."""
    cluster, directory = with_users_defaults(cluster), members[0].run.dir.parent
    name = f"tessera-{members[0].job['name']}"
    return script_text(cluster, plan_batch(cluster, name, len(members), directory / "slurm" / "1", directory / "logs"))


def plan_lines(cluster: SlurmCluster) -> list[str]:
    """Return what is asked of SLURM, one line for each thing."""
    memory = f"{cluster.mem} a node" if cluster.mem else f"{cluster.mem_per_cpu} a CPU" if cluster.mem_per_cpu else ""
    limit = cluster.time or "as the partition gives by default"
    cpus = cluster.ranks * cluster.threads_per_process
    return [
        f"CPUs     {cpus} ({cluster.ranks} ranks x {cluster.threads_per_process})",
        f"memory   {memory or 'as the site gives by default'}",
        f"time     {limit}, then requeued up to {cluster.max_requeues} times",
    ]


def stage_lines(settings: Settings) -> list[str]:
    """Return how many units each stage has, where the job can tell without its data."""
    ranks = settings.cluster.ranks
    lines = []
    for stage in load_job(settings.job).stages():
        units = count_units(stage) if isinstance(stage, Map) else None
        text = "steps of one state" if not isinstance(stage, Map) else "units not known before the inputs are read"
        if units is not None:
            text = f"{units} units"
            if isinstance(ranks, int) and units < ranks:
                text += f"; {ranks - units} of {ranks} ranks will have nothing to do"
        lines.append(f"stage    {stage.name}: {text}")
    return lines


def count_units(stage: Map) -> int | None:
    """Return the number of units of a map before its job is set up, None if the job cannot tell."""
    try:
        return len(stage.units(Context(results_dir=Path(os.devnull)))) or None
    except Exception:  # noqa: BLE001 - whatever a workload misses without its data, the answer is the same
        return None


def units_of(job: Job) -> int | None:
    """Return the units of all maps of a job, None if one cannot tell."""
    counts: list[Any] = [count_units(stage) for stage in job.stages() if isinstance(stage, Map)]
    return None if None in counts else sum(counts)
