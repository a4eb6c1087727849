"""`tessera cancel`: end runs in good order, wherever they are; what is finished is saved."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE, EXIT_FAILED, LaunchError
from hpc.launch.outcome import resume_line
from hpc.store.lock import is_held, living_owner, read_owner
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import job_states
from hpc.watch.status import LIVE, RunStatus, find_runs

_POLL: Final = 0.5
_SAVING: Final = 30.0
"""Seconds beyond the grace period in which a run can save."""


def main(arguments: Sequence[str]) -> int:
    """Ask the ranks to save and stop; take the job out of SLURM when they have, or do not answer."""
    parser = Parser("cancel", "End a run, or all runs below a folder: they save what is finished and can be resumed.")
    parser.add_argument("path", type=Path, help="run, or folder of runs")
    parser.add_argument("--now", action="store_true", help="do not let the ranks save")
    given = parser.read(arguments)
    path = given.path.absolute()
    active = [s for s in read_statuses(find_runs(path)) if s.state in (*LIVE, "pending", "lost")]
    if not active:
        print("nothing to cancel: no run is waiting or at work there")
        return EXIT_DONE
    for status in active:
        _ask(status, now=given.now)
    left = _wait(active, 0.0 if given.now else max(_grace(Path(s.path)) for s in active) + _SAVING)
    for status in left:
        if status.slurm_job:
            _slurm("scancel", status.slurm_job)
    for status in read_statuses([Path(s.path) for s in active]):
        state = "taken out of the queue" if status.state == "not started" else status.state
        print(f"{status.path}: {state}; go on with: {resume_line(Path(status.path))}")
    return EXIT_FAILED if any(not s.slurm_job for s in left) else EXIT_DONE


def _ask(status: RunStatus, *, now: bool) -> None:
    """Ask one run to stop; one that waits in the queue is taken out of it."""
    job = status.slurm_job
    if not job:
        _ask_here(Path(status.path), now=now)
        return
    _slurm("scontrol", "update", f"JobId={job}", "Requeue=0", fatal=False)  # or it would come back
    if now or status.state == "pending":
        _slurm("scancel", job)
    else:
        _slurm("scancel", "--signal=TERM", job)


def _ask_here(run: Path, *, now: bool) -> None:
    """Ask rank 0, if it is a living process of this machine; one that has died needs nothing."""
    owner = living_owner(run / "lock")
    if owner is not None:
        owner.signal(signal.SIGKILL if now else signal.SIGTERM)
    elif is_held(run / "lock"):
        host = (read_owner(run / "lock") or {}).get("host")
        where = f" on {host}, or in a container there," if host else ""
        msg = f"{run}: its ranks run{where} without SLURM; end them there, with Ctrl-C or tessera cancel"
        raise LaunchError(msg)


def _wait(active: Sequence[RunStatus], seconds: float) -> list[RunStatus]:
    """Wait until the runs have ended; return those that have not."""
    deadline = time.monotonic() + seconds
    left = list(active)
    while left and time.monotonic() < deadline:
        time.sleep(_POLL)
        alive = {s.path for s in read_statuses([Path(s.path) for s in left]) if s.state in (*LIVE, "pending")}
        left = [status for status in left if status.path in alive]
    jobs = job_states(status.slurm_job for status in left if status.slurm_job)
    return [status for status in left if not status.slurm_job or jobs[status.slurm_job].alive]


def _grace(run: Path) -> float:
    from hpc.options import build
    from hpc.rundir import RunDir
    from hpc.settings import Settings

    return build(Settings, RunDir.open(run).load_config(), "config").grace


def _slurm(*command: str, fatal: bool = True) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.CalledProcessError as error:
        if fatal and "Invalid job id" not in error.stderr and "already completing" not in error.stderr:
            msg = f"{' '.join(command)}: {error.stderr.strip()}; end the job by hand"
            raise LaunchError(msg) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{command[0]} cannot be run here ({error}); use a machine of the cluster"
        raise LaunchError(msg) from error
