"""The state of runs that SLURM has in hand: their own files first, and SLURM where these are silent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from hpc.store.plain import read_end, read_json
from hpc.watch.pending import remedy
from hpc.watch.scheduler import Ask, JobState, job_states
from hpc.watch.status import LIVE, RunStatus, belongs_to_another, read_status
from hpc.watch.submissions import is_job, last_submission, remember_end, remembered_end

FRESH: Final = 6.0
"""Seconds without a sign of life after which SLURM is asked; asking costs its controller something."""

SAID: Final = "tessera: cluster.setup: "
"""How the batch script begins the line with which it ends before the ranks have started."""

_TAIL: Final = 8192
"""Bytes at the end of a log in which that line is looked for."""

_JUST_NOW: Final = 60.0
"""Seconds that a job may take to end after its ranks have."""


def read_statuses(runs: Sequence[Path], ask: Ask | None = None) -> list[RunStatus]:
    """Read the status of runs, asking SLURM once about all that do not speak for themselves.

    Parameters
    ----------
    runs
        Run directories.
    ask
        Who asks SLURM: `hpc.watch.scheduler.Polled` for somebody who looks again and again; None asks now.

    Returns
    -------
    list of RunStatus
        In the order of ``runs``. A run whose job waits is ``pending``; one whose job ended or vanished without an
        end in its files is ``failed``, never running. Where SLURM was silent, ``slurm_silent`` says why.
    """
    statuses = [read_status(run) for run in runs]
    jobs = {status.path: slurm_job(Path(status.path), status) for status in statuses if _silent(status)}
    known = {job: end for path, job in jobs.items() if job and (end := _remembered(Path(path), job))}
    known |= (ask or job_states)(job for job in jobs.values() if job and job not in known)
    combined = []
    for status in statuses:
        name = jobs.get(status.path, "")
        if name not in known:
            combined.append(_named(status))
            continue
        job = _checked(Path(status.path), known[name])
        combined.append(_combined(status, name, job))
        if job.final and (job.state != "GONE" or status.state in {"stopped", "failed"}):
            remember_end(Path(status.path), name, job.state, job.exit_code)
    return combined


def _remembered(run: Path, job: str) -> JobState | None:
    end = remembered_end(run, job)
    return JobState(end[0], exit_code=end[1]) if end else None


def _checked(run: Path, job: JobState) -> JobState:
    """Return the state of a job, ``GONE`` if it is another one under the same number; numbers begin anew in time."""
    submission = last_submission(run)
    return JobState("GONE") if submission is not None and submission.is_other(job.command) else job


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
    return job if isinstance(job, str) and is_job(job) else ""


def _silent(status: RunStatus) -> bool:
    """Say whether the files of a run leave open what becomes of it."""
    if status.state in LIVE:
        return status.silent is not None and status.silent > FRESH
    return status.state in {"not started", "lost", "stopped", "failed"}


def _named(status: RunStatus) -> RunStatus:
    run = Path(status.path)
    submission = last_submission(run)
    unsure = ""
    if submission is not None and not submission.job_id and status.state in {"not started", "stopped", "failed"}:
        unsure = (
            f"sbatch did not answer when this run was submitted: it may be queued; tessera resume {run} looks for it"
        )
    job = slurm_job(run, status)
    return replace(status, slurm_job=job, restarts=max(0, status.attempt - 1), slurm_silent=unsure)


def _combined(status: RunStatus, name: str, job: JobState) -> RunStatus:
    """Return what the files and SLURM say together."""
    status = replace(status, slurm_job=name, restarts=max(job.restarts, status.attempt - 1, 0))
    if job.waiting:
        when = f", expected to start {job.start.replace('T', ' ')}" if job.start else ""
        advice = f"; {words}" if (words := remedy(job.reason, name)) else ""
        text = f"SLURM job {name} waits: {job.reason or job.state}{when}{advice}"
        return replace(status, state="pending", message=text)
    if not job.known:
        unsure = f"SLURM did not say whether job {name} waits or runs ({job.reason}); this is what the run's files say"
        return replace(status, slurm_silent=unsure)
    if job.alive:
        return _working(status, name, job)
    if status.state in {"stopped", "failed"}:
        return status
    if job.state == "GONE" and belongs_to_another(Path(status.path)):
        unsure = f"SLURM does not show job {name}: it has ended, or this site shows everybody only their own jobs"
        return replace(status, slurm_silent=unsure)
    if status.state == "not started" and job.state == "CANCELLED":
        return replace(status, message=f"SLURM job {name} was cancelled before it began")
    ended = "is gone from SLURM" if job.state == "GONE" else f"ended: {job.state}"
    ended += f", exit code {job.exit_code}" if job.exit_code not in {"", "0:0"} else ""
    ended += f" ({job.reason})" if job.reason and job.state != "GONE" else ""
    where = f" in stage {status.stage}" if status.stage else ""
    cause = f": {words}" if (words := _last_words(Path(status.path))) else ""
    text = f"SLURM job {name} {ended}, and the run did not finish{where}{cause}"
    return replace(status, state="failed", message=text)


def _last_words(run: Path) -> str:
    """Return what ended the batch script before the ranks began, as it said in its log; empty if it did not."""
    submission = last_submission(run)
    if submission is None or not submission.log:
        return ""
    with suppress(OSError, ValueError):
        lines = read_end(Path(submission.log), _TAIL).decode(errors="replace").splitlines()
        return next((line.removeprefix(SAID) for line in reversed(lines) if line.startswith(SAID)), "")
    return ""


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
