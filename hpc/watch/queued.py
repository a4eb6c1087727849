"""The state of runs that SLURM has in hand: their own files first, and SLURM where these are silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from hpc.store.plain import read_json
from hpc.watch.scheduler import JobState, job_states
from hpc.watch.status import LIVE, RunStatus, read_status
from hpc.watch.submissions import last_submission

FRESH: Final = 6.0
"""Seconds without a sign of life after which SLURM is asked; asking costs its controller something."""

_JUST_NOW: Final = 60.0
"""Seconds that a job may take to end after its ranks have."""


def read_statuses(runs: Sequence[Path]) -> list[RunStatus]:
    """Read the status of runs, asking SLURM once about all that do not speak for themselves.

    Returns
    -------
    list of RunStatus
        In the order of ``runs``. A run whose job waits is ``pending``; one whose job ended or vanished without an
        end in its files is ``failed``, never running.
    """
    statuses = [read_status(run) for run in runs]
    jobs = {status.path: slurm_job(Path(status.path), status) for status in statuses if _silent(status)}
    known = job_states(job for job in jobs.values() if job)
    return [
        _combined(status, jobs[status.path], known[jobs[status.path]]) if jobs.get(status.path) else _named(status)
        for status in statuses
    ]


def slurm_job(run: Path, status: RunStatus) -> str:
    """Return the SLURM job that has a run in hand, empty if none: as submitted, or as its last attempt found itself."""
    submission = last_submission(run)
    if submission is not None:
        return submission.slurm_id
    if not status.attempt:
        return ""
    try:
        job = read_json(run / "provenance.json")["attempts"][-1]["slurm"].get("SLURM_JOB_ID", "")
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    return str(job)


def _silent(status: RunStatus) -> bool:
    """Say whether the files of a run leave open what becomes of it."""
    if status.state in LIVE:
        return status.silent is not None and status.silent > FRESH
    return status.state in {"not started", "lost", "stopped", "failed"}


def _named(status: RunStatus) -> RunStatus:
    return replace(status, slurm_job=slurm_job(Path(status.path), status), restarts=max(0, status.attempt - 1))


def _combined(status: RunStatus, name: str, job: JobState) -> RunStatus:
    """Return what the files and SLURM say together."""
    status = replace(status, slurm_job=name, restarts=max(job.restarts, status.attempt - 1, 0))
    if job.waiting:
        when = f", expected to start {job.start.replace('T', ' ')}" if job.start else ""
        return replace(status, state="pending", message=f"SLURM job {name} waits: {job.reason or job.state}{when}")
    if job.state == "UNKNOWN":
        return replace(status, message=status.message or f"SLURM job {name}: {job.reason}")
    if job.alive:
        return _working(status, name, job)
    if status.state in {"stopped", "failed"}:
        return status
    ended = "is gone from SLURM" if job.state == "GONE" else f"ended: {job.state}"
    ended += f", exit code {job.exit_code}" if job.exit_code not in {"", "0:0"} else ""
    ended += f" ({job.reason})" if job.reason and job.state != "GONE" else ""
    where = f" in stage {status.stage}" if status.stage else ""
    return replace(status, state="failed", message=f"SLURM job {name} {ended}, and the run did not finish{where}")


def _working(status: RunStatus, name: str, job: JobState) -> RunStatus:
    """Return the status of a run whose job is on its nodes but whose ranks say nothing."""
    on = f"SLURM job {name} is {job.state} on {job.nodes or 'its nodes'}"
    if status.state in LIVE or status.state == "lost":
        return replace(status, message=f"{on}, but its ranks are silent")
    if status.state == "not started":
        return replace(status, state="starting", message=on)
    just = status.silent is not None and status.silent < _JUST_NOW
    if status.state == "failed" and just:
        return status
    return replace(status, state="stopping" if just else "starting", message=on)
