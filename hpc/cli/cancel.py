"""`tessera cancel`: end runs in good order, wherever they are; what is finished is saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE, EXIT_FAILED, TesseraError
from hpc.launch import scancel
from hpc.launch.already import adopt
from hpc.launch.outcome import resume_line
from hpc.store.lock import is_held, living_owner, read_owner
from hpc.terminal import complain, say
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import LONG_PATIENCE, Polled, job_states
from hpc.watch.status import LIVE, RunStatus, find_runs

_POLL: Final = 0.5
_SAVING: Final = 30.0
"""Seconds beyond the grace period in which a run can save."""

_FROZEN: Final = ("SUSPENDED", "STOPPED")
"""SLURM's words for jobs whose processes it has stopped for a while."""

_ENDING: Final = 10.0
"""Seconds in which SLURM takes a job away."""


def main(arguments: Sequence[str]) -> int:
    """Ask the ranks to save and stop; take the job out of SLURM when they have, or do not answer.

    Returns
    -------
    int
        1 if any run could not be ended, or it is not known whether it has; the others are ended all the same.
    """
    parser = Parser("cancel", "End runs, or all runs below a folder: they save what is finished and can be resumed.")
    parser.add_argument("paths", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--now", action="store_true", help="do not let the ranks save")
    given = parser.read(arguments)
    troubles: dict[str, str] = {}
    active = _active([path.absolute() for path in given.paths], troubles)
    if not active and not troubles:
        say("nothing to cancel: no run is waiting or at work there")
        return EXIT_DONE
    jobs = {status.path: job for status in active if (job := _job(status))}
    _ask_slurm([status for status in active if status.path in jobs], jobs, troubles, now=given.now)
    for status in active:
        if status.path not in jobs:
            _ask_here(status, troubles, now=given.now)
    reached = [status for status in active if status.path not in troubles and status.state in LIVE]
    seconds = 0.0 if given.now or not reached else max(_grace(Path(s.path)) for s in reached) + _SAVING
    left = _wait(reached, seconds)
    ends = scancel.end([jobs[s.path] for s in left if s.path in jobs])
    troubles |= {s.path: ends[jobs[s.path]] for s in left if jobs.get(s.path) in ends}
    troubles |= {
        s.path: "its ranks do not answer; end them with tessera cancel --now" for s in left if s.path not in jobs
    }
    _report(active, jobs, troubles)
    return EXIT_FAILED if troubles else EXIT_DONE


def _active(paths: Sequence[Path], troubles: dict[str, str]) -> list[RunStatus]:
    """Return the runs that wait or work, or may do so for all that is known."""
    runs: dict[Path, None] = {}
    for path in paths:
        try:
            runs |= dict.fromkeys(find_runs(path))
        except TesseraError as error:
            if len(paths) == 1:
                raise
            troubles[str(path)] = str(error)
    for run in runs:
        try:
            adopt(run)
        except TesseraError as error:
            troubles[str(run)] = str(error)
    statuses = read_statuses(list(runs), lambda jobs: job_states(jobs, LONG_PATIENCE))
    broken = [status for status in statuses if status.state == "unreadable" and status.slurm_job]
    alive = job_states((status.slurm_job for status in broken), LONG_PATIENCE)
    return [
        status
        for status in statuses
        if status.state in (*LIVE, "pending", "lost")
        or (status.slurm_silent and status.slurm_job)
        or (status in broken and alive[status.slurm_job].alive)
    ]


def _job(status: RunStatus) -> str:
    """Return the job to end; none if the run has gone on without SLURM since its last one."""
    lock = Path(status.path) / "lock"
    owner = read_owner(lock) or {}
    if status.slurm_job and owner and not owner.get("slurm_job") and is_held(lock):
        return ""
    return status.slurm_job


def _ask_slurm(runs: Sequence[RunStatus], jobs: Mapping[str, str], troubles: dict[str, str], *, now: bool) -> None:
    """Let the jobs on nodes save and stop; take those that wait, or of which nothing is known, out of the queue.

    So are those that SLURM has suspended: their ranks would not hear of it, and SLURM refuses to tell them.
    """
    saving = [jobs[s.path] for s in runs if s.state in LIVE and not now]
    saving = [job for job, state in job_states(saving, LONG_PATIENCE).items() if state.state not in _FROZEN]
    scancel.keep_away([jobs[s.path] for s in runs if s.state != "pending"])  # or they would come back
    said = scancel.end(saving, save=True) if saving else {}
    said |= scancel.end([job for s in runs if (job := jobs[s.path]) not in saving])
    troubles |= {
        s.path: f"{said[jobs[s.path]]}; end SLURM job {jobs[s.path]} by hand" for s in runs if jobs[s.path] in said
    }


def _ask_here(status: RunStatus, troubles: dict[str, str], *, now: bool) -> None:
    """Ask rank 0, if it is a living process of this machine; one that has died needs nothing."""
    run = Path(status.path)
    owner = living_owner(run / "lock")
    if owner is not None:
        try:
            owner.signal(signal.SIGKILL if now else signal.SIGTERM)
        except PermissionError:
            troubles[str(run)] = f"its rank 0 (process {owner.pid}) belongs to another user, who has to cancel it"
        return
    hosts = {rank.host for rank in status.ranks if status.state in LIVE} - {os.uname().nodename, ""}
    if is_held(run / "lock"):
        hosts = {str(host)} if (host := (read_owner(run / "lock") or {}).get("host")) else hosts
    elif not hosts:
        return
    where = f" on {', '.join(sorted(hosts))}, or in a container there," if hosts else ""
    troubles[str(run)] = f"its ranks run{where} without SLURM; end them there, with Ctrl-C or tessera cancel"


def _wait(active: Sequence[RunStatus], seconds: float) -> list[RunStatus]:
    """Wait until the runs have ended; return those that have not."""
    deadline = time.monotonic() + seconds
    left, ask = list(active), Polled(2.0 + len(active) / 50)
    while left and time.monotonic() < deadline:
        time.sleep(_POLL)
        now = read_statuses([Path(s.path) for s in left], ask)
        alive = {s.path for s in now if s.state in (*LIVE, "pending")}
        left = [status for status in left if status.path in alive]
    return left


def _report(active: Sequence[RunStatus], jobs: Mapping[str, str], troubles: dict[str, str]) -> None:
    """Say how each run ended, or why it did not."""
    deadline = time.monotonic() + _ENDING
    while True:
        statuses = read_statuses([Path(s.path) for s in active])
        if all(s.state != "pending" or s.path in troubles for s in statuses) or time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    for status in statuses:
        if status.slurm_silent and status.path not in troubles:
            troubles[status.path] = f"asked SLURM to end job {jobs.get(status.path, '')}, but {status.slurm_silent}"
        if status.path not in troubles:
            state = "taken out of the queue" if status.state == "not started" else status.state
            say(f"{status.path}: {state}; go on with: {resume_line(Path(status.path))}")
    for path, trouble in troubles.items():
        complain(f"error: {path}: {trouble.removeprefix(f'{path}: ')}")


def _grace(run: Path) -> float:
    from hpc.options import build
    from hpc.rundir import RunDir
    from hpc.settings import EngineSettings, Settings

    try:
        return build(Settings, RunDir.open(run).load_config(), "config").grace
    except TesseraError:  # a run whose configuration cannot be read has ranks to end all the same
        return EngineSettings().grace
