"""What the nodes see: the run directory, its speed and locks, their clocks, CPUs and GPUs."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hpc.doctor.finding import Finding, Status
from hpc.doctor.srun import on_nodes
from hpc.settings import SlurmCluster

_SKEW: Final = 5.0
"""Seconds between clocks; above, ages of locks and heartbeats mislead."""

_SLOW_FSYNC: Final = 1.0


def check(cluster: SlurmCluster, directory: Path, nodes: int) -> Iterator[Finding]:
    """Start one task per node that looks at the directory, and yield what they found."""
    token = f".tessera-doctor-{uuid.uuid4().hex[:8]}"
    folder = directory / token
    try:
        folder.mkdir()
    except OSError as error:
        yield Finding("nodes", "fail", f"{directory}: {error.strerror}", "name a folder that you can write")
        return
    try:
        before = time.time()
        answer = on_nodes(cluster, ["-m", "hpc.doctor.probe", str(directory), token], mpi="none", nodes=nodes)
        after = time.time()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(answer.facts) < nodes:
        status: Status = "skipped" if answer.busy else "fail"
        remedy = "try again when nodes are free" if answer.busy else "check cluster.partition, account and setup"
        yield Finding("nodes", status, answer.complaint or "no answer", remedy)
        return
    yield _shared(answer.facts, directory)
    yield clocks(answer.facts, before, after)
    yield _devices(answer.facts)


def _shared(facts: Sequence[Mapping[str, Any]], directory: Path) -> Finding:
    name = f"{directory} on nodes"
    blind = [f["node"] for f in facts if not f["sees"]]
    if blind:
        remedy = "put run.dir on a file system that all nodes share"
        return Finding(name, "fail", f"not the same on {', '.join(blind)} as here", remedy)
    trouble = [f"{f['node']}: {f['trouble']}" for f in facts if f["trouble"]]
    if trouble:
        return Finding(name, "fail", "; ".join(trouble), "use a file system with hard links and exclusive creation")
    slowest = max(f["fsync"] for f in facts)
    text = f"seen by {', '.join(f['node'] for f in facts)}; locks work, fsync takes {slowest * 1e3:.1f} ms at worst"
    if slowest > _SLOW_FSYNC:
        return Finding(name, "warn", text, "raise checkpoint.every, or put run.dir on a faster file system")
    return Finding(name, "ok", text)


def clocks(facts: Sequence[Mapping[str, Any]], before: float, after: float) -> Finding:
    """Compare the nodes' clocks with this machine's, which was looked at before and after them."""
    skews = {f["node"]: min(0.0, f["time"] - before) + max(0.0, f["time"] - after) for f in facts}
    worst = max(skews, key=lambda node: abs(skews[node]))
    if abs(skews[worst]) > _SKEW:
        text = f"{worst} is {abs(skews[worst]):.0f} s {'ahead' if skews[worst] > 0 else 'behind'}"
        remedy = "ask the site to run chrony or ntpd there; until then exclude the node (cluster.exclude)"
        return Finding("clocks", "warn", text, remedy)
    return Finding("clocks", "ok", f"the nodes' clocks agree with this one's within the {after - before:.1f} s it took")


def _devices(facts: Sequence[Mapping[str, Any]]) -> Finding:
    text = "; ".join(
        f"{f['node']}: {f['cpus']} CPUs for a task of 1{', GPUs ' + f['gpus'] if f['gpus'] else ''}" for f in facts
    )
    if any(f["cpus"] > 1 for f in facts):
        text += " (tasks are not bound to their CPUs here; runs keep to threads_per_process by themselves)"
    return Finding("CPUs and GPUs of a task", "ok", text)
