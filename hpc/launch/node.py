"""The first thing a task does on its node: ``python -P -m hpc.launch.node FOLDER``, in the place of submitit's own.

What submitit carries is a pickle, and whoever can replace it runs code in the name of whose job it is. So the folder
must be as the submission made it, its owner's alone, before anything in it is read.

A job may be taken although sbatch did not say so. If another one was submitted in its place, it ends at once; if not,
it does its work, for which the list of runs is enough: the pickle gets its name from the answer that was lost.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hpc.errors import EXIT_BAD_INPUT, LaunchError
from hpc.launch.payload import Payload
from hpc.terminal import complain
from hpc.watch.submissions import submissions

RUNS_FILE: Final = "runs.txt"
"""In a submission's folder: the run directory of each array index, one per line."""

PRIVATE: Final = 0o700
"""Mode of a submission's folder."""


def open_private(folder: Path) -> int:
    """Return a descriptor of a folder that nobody else can write to or read.

    What is opened below the descriptor lies in the folder that was looked at, whatever its path names by then.

    Raises
    ------
    hpc.errors.LaunchError
        If it cannot be opened, or is not this user's alone.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        msg = f"{folder}: the folder of the submission cannot be opened ({error.strerror}); submit the run again"
        raise LaunchError(msg) from error
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077:
        return descriptor
    os.close(descriptor)
    msg = (
        f"{folder}: belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, so others may have put "
        f"their own code there; it must belong to you (user {os.geteuid()}) with mode {PRIVATE:o}: "
        "submit the run again with tessera resume"
    )
    raise LaunchError(msg)


def main(arguments: list[str]) -> None:
    """Let submitit start what lies in the folder, after a look at who could have put it there."""
    try:
        descriptor = open_private(Path(arguments[0]))
    except LaunchError as error:
        complain(f"tessera: {error}")
        sys.exit(EXIT_BAD_INPUT)
    folder = Path(f"/proc/self/fd/{descriptor}")
    run = run_of(folder)
    if run is not None:
        if other := _in_its_place(run, Path(arguments[0])):
            complain(f"tessera: job {other} was submitted in the place of this one, of which sbatch had said nothing")
            sys.exit(EXIT_BAD_INPUT)
        if not (folder / f"{job_name()}_submitted.pkl").exists():
            Payload(str(run))()
    process_job = _process_job()
    process_job(folder)


def run_of(folder: Path) -> Path | None:
    """Return the run that this job, or this member of an array, was submitted for; None if it is not listed."""
    try:
        runs = (folder / RUNS_FILE).read_text(encoding="utf-8").splitlines()
        return Path(runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    except (OSError, ValueError, IndexError):
        return None


def job_name() -> str:
    """Return the name of this job, ``12`` or ``12_3``."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _in_its_place(run: Path, folder: Path) -> str:
    """Return the newest job of a run if this submission is in its record no more."""
    known = submissions(run)
    if not known or any(Path(submission.script).parent == folder for submission in known):
        return ""
    return known[-1].slurm_id


def _process_job() -> Callable[[Path], None]:
    """Return submitit's function without the numpy that its module would import: kernels are not chosen yet."""
    before = sys.modules.get("numpy")
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        from submitit.core.submission import process_job
    finally:
        del sys.modules["numpy"]
        if before is not None:
            sys.modules["numpy"] = before
    found: Callable[[Path], None] = process_job
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
