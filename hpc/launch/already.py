"""What must not be submitted: a run that is done, one that SLURM has already, and one of which this cannot be told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hpc.errors import EXIT_DONE, EXIT_QUARANTINED, LockedError, RunDirError
from hpc.launch.outcome import resume_line
from hpc.store.patience import unreadable
from hpc.store.sealing import harms
from hpc.terminal import say
from hpc.watch.scheduler import LONG_PATIENCE, job_states, submitted_from
from hpc.watch.status import RunStatus, read_status
from hpc.watch.submissions import Submission, damage, forget_unanswered, last_submission, record_submission

FINISHED: Final = ("done", "quarantined")
"""States of runs that have nothing left to compute."""

ASSURE: Final = "--job-has-ended"
"""Flag of `tessera resume` for who knows what SLURM does not say."""


def nothing_to_do(run: Path) -> int | None:
    """Say so if a run is finished and its results are as it wrote them; return its exit code, None if there is work.

    Raises
    ------
    hpc.errors.UnreadableError
        If its results cannot be read now.
    """
    status = read_status(run)
    if status.state in FINISHED and harmed(run):
        return None
    if status.state == "done" and any((run / "results").glob("*")):  # runs of earlier versions have no seals
        say(f"{run}: done already, nothing is submitted; the results are in {run / 'results'}")
        return EXIT_DONE
    if status.state == "quarantined":
        units = "unit" if status.quarantined == 1 else "units"
        say(
            f"{run}: finished without {status.quarantined} quarantined {units}, nothing is submitted; "
            f"try them again with: {resume_line(run)} --retry-failed"
        )
        return EXIT_QUARANTINED
    return None


def harmed(run: Path) -> bool:
    """Say whether a finished run has to make results again, after saying which.

    Raises
    ------
    hpc.errors.UnreadableError
        If its results cannot be read now.
    """
    try:
        found = harms(run)
    except OSError as error:
        raise unreadable(error) from error
    if found:
        name, wrong = next(iter(found.items()))
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        say(f"{run}: results/{name} {wrong}{more}; they are made again from what is saved")
    return bool(found)


def refuse_if_submitted(run: Path, *, job_has_ended: bool = False) -> None:
    """Raise if the run's newest job waits or runs, or may do so for all that SLURM says.

    Parameters
    ----------
    run
        The run directory.
    job_has_ended
        Whether somebody knows that it has ended although SLURM does not say so.

    Raises
    ------
    hpc.errors.LockedError
        With the job and what to do.
    hpc.errors.RunDirError
        If the record of its jobs is damaged.
    """
    if job_has_ended:
        _refuse_damaged(run)
        forget_unanswered(run)
        return
    adopt(run)
    submission = last_submission(run)
    if submission is None:
        return
    job = submission.slurm_id
    state = job_states([job], LONG_PATIENCE)[job]
    if not state.known:
        raise LockedError(cannot_tell(run, f"job {job}", state.reason))
    if state.alive and state.state != "COMPLETING" and not submission.is_other(state.command):
        reason = f", {state.reason}" if state.reason else ""
        msg = (
            f"{run}: is in SLURM already as job {job} ({state.state}{reason}); "
            f"wait for it, or end it with: tessera cancel {run}"
        )
        raise LockedError(msg)


def _refuse_damaged(run: Path) -> None:
    if problem := damage(run):
        msg = (
            f"{run / problem}, so nobody knows whether the run waits in SLURM's queue; look with squeue, then remove "
            "the file"
        )
        raise RunDirError(msg)


def refuse_if_unsure(statuses: Iterable[RunStatus]) -> None:
    """Raise if of any run of a sweep it is not known whether its job lives.

    Raises
    ------
    hpc.errors.LockedError
        Naming the first such run and how many there are.
    """
    unsure = [status for status in statuses if status.slurm_silent]
    if unsure:
        msg = (
            f"{unsure[0].path}: {unsure[0].slurm_silent}; {len(unsure)} runs might be computed twice, so none is "
            f"submitted: try again when squeue answers, or add {ASSURE} if you know that none waits or runs"
        )
        raise LockedError(msg)


def cannot_tell(run: Path, what: str, why: str) -> str:
    """Return the message for a run of which SLURM does not say whether it has it."""
    return (
        f"{run}: SLURM does not say whether {what} still waits or runs ({why}), and a second one would compute the "
        f"same; try again when squeue answers, or, if you know that it has ended: {resume_line(run)} {ASSURE}"
    )


def adopt(*runs: Path) -> None:
    """Find the jobs of submissions whose answer was lost, and put them into the runs' records.

    Raises
    ------
    hpc.errors.LockedError
        If SLURM cannot be asked.
    """
    found: dict[str, str] = {}
    for run in runs:
        _refuse_damaged(run)
        submission = last_submission(run)
        if submission is None or submission.job_id:
            continue
        folder = os.path.dirname(submission.script)  # noqa: PTH120 - as SLURM writes it
        if folder not in found:
            found[folder], trouble = submitted_from(folder)
            if trouble:
                raise LockedError(cannot_tell(run, "the job that sbatch did not answer for", trouble))
        if found[folder]:
            take_over(run, submission, found[folder])
        else:
            forget_unanswered(run)


def take_over(run: Path, lost: Submission, job: str) -> Submission:
    """Record a job that was found, and put there what its tasks look for under its number."""
    from submitit.core.utils import DelayedSubmission

    from hpc.launch.payload import Payload

    name = job if lost.array_task is None else f"{job}_{lost.array_task}"
    folder = Path(lost.script).parent
    carried = folder / f"{name}_submitted.pkl"
    if not carried.exists():
        DelayedSubmission(Payload(str(run))).dump(carried)
        carried.chmod(0o600)
    return record_submission(run, name, lost.cluster, lost.script, lost.log)
