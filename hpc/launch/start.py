"""Starting a prepared run where its configuration says: on this machine, or through SLURM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hpc.errors import EXIT_COME_BACK, EXIT_DONE, EXIT_FAILED, EXIT_QUARANTINED
from hpc.rundir import RunDir
from hpc.settings import ClusterSettings, LocalCluster, SlurmCluster
from hpc.terminal import only_accompany, say
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import Polled
from hpc.watch.submissions import Submission

_POLL: Final = 1.0
"""Seconds between looks at a run in SLURM."""

_ENDED: Final = {
    "done": EXIT_DONE,
    "quarantined": EXIT_QUARANTINED,
    "stopped": EXIT_COME_BACK,
    "failed": EXIT_FAILED,
    "unreadable": EXIT_FAILED,
}


def start(run: Path, name: str, cluster: ClusterSettings) -> int:
    """Start the ranks of a prepared run; return the exit code.

    Parameters
    ----------
    run
        The run directory, absolute.
    name
        Of the job.
    cluster
        Where and with how much.

    Raises
    ------
    hpc.errors.LaunchError
        If it cannot be started there.
    """
    only_accompany()
    if isinstance(cluster, LocalCluster):
        from hpc.launch.local import launch

        return launch(run, cluster)
    from hpc.launch.slurm import submit

    (submission,) = submit([run], cluster, f"tessera-{name}", run / "slurm", run / "logs")
    say(told([submission], run, cluster))
    return wait(run) if cluster.wait else EXIT_DONE


def told(submitted: Sequence[Submission], path: Path, cluster: SlurmCluster) -> str:
    """Return the words after a submission: job, size, directory, and the lines to type next."""
    jobs = list(dict.fromkeys(s.job_id for s in submitted))
    what = f"job {jobs[0]}" if len(jobs) == 1 else f"jobs {', '.join(jobs)}"
    if len(submitted) > 1:
        what += f", {len(submitted)} runs"
    return (
        f"submitted as SLURM {what}: {crew_text(cluster)}\n"
        f"run      {path}\n"
        f"watch    tessera status {path} --watch\n"
        f"end      tessera cancel {path}"
    )


def crew_text(cluster: SlurmCluster) -> str:
    """Return how many of what, ``2 nodes × 4 ranks × 1 thread``."""
    numbers = (("node", cluster.nodes), ("rank", cluster.ranks_per_node), ("thread", cluster.threads_per_process))
    return " × ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in numbers)


def wait(run: Path) -> int:
    """Show the run's progress until its job has ended; Ctrl-C stops the showing, not the job."""
    from hpc.launch.follow import display
    from hpc.launch.outcome import Ending, explain
    from hpc.watch.console import console

    started, ask = time.time(), Polled()
    try:
        with display(run) as screen:
            while (status := read_statuses([run], ask)[0]).state not in _ENDED:
                screen.update(status, started)
                time.sleep(_POLL)
            screen.update(status, started)
    except KeyboardInterrupt:
        say(f"\nthe job goes on; watch it with: tessera status {run} --watch")
        return EXIT_DONE
    failure = RunDir(run).read_failure() if status.state == "failed" else None
    code = int((failure or {}).get("exit_code", _ENDED[status.state]))
    log = max((run / "logs").glob("slurm-*.log"), default=run / "logs" / "slurm.log", key=lambda p: p.stat().st_mtime)
    console().print(explain(Ending(run, code, code, started, 0, log, 0)))
    return code
