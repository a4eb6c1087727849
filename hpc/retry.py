"""Let quarantined units be tried again: what was computed without them is removed, and so is their record."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hpc.errors import RunDirError
from hpc.job import Job, stages_of
from hpc.load import load_job
from hpc.ownership import load_own
from hpc.rundir import RunDir
from hpc.store.lock import RunLock
from hpc.store.patience import unreadable
from hpc.store.reading import is_refusal, names_in
from hpc.store.records import read_keyed


def forget_quarantine(run: RunDir, job: Job | None = None) -> int:
    """Let quarantined units be tried again; return how many there were.

    Stages after the first affected one were computed from incomplete results: they are run anew. Which stages there
    are, and in which order, says the job itself: no file of the run is believed about what to remove.

    Parameters
    ----------
    run
        A run on which nobody works.
    job
        Its job; None builds it from the run's configuration.

    Raises
    ------
    hpc.errors.LockedError
        If somebody works on the run.
    hpc.errors.RunDirError
        If something cannot be removed.
    hpc.errors.UnreadableError
        If a record cannot be read now.
    """
    job = job or load_job(load_own(run)["job"])
    names = [stage.name for stage in stages_of(job)]
    lock = RunLock(run.lock_file)
    try:
        return _forget(run, names)
    except OSError as error:
        if is_refusal(error):
            raise unreadable(error) from error
        raise
    finally:
        lock.release()


def _forget(run: RunDir, names: Sequence[str]) -> int:
    counts = {name: _quarantined(run.stage(name)) for name in names}
    affected = [index for index, name in enumerate(names) if counts[name]]
    # The quarantine goes last: killed in between, this can be done again, and nothing stale passes for complete.
    for later in names[min(affected, default=len(names)) + 1 :]:
        remove_folder(run.stage(later))
    for name in names:
        if counts[name]:
            folder = run.stage(name)
            for stale in (
                "complete.json",
                *names_in(folder, "begun-*.txt"),
                *names_in(folder, "ended-*.json"),
                "quarantine.json",
            ):
                _remove_file(folder / stale)
    return sum(counts.values())


def _quarantined(folder: Path) -> int:
    """Return how many units are in quarantine; damaged records count, for their units are tried again."""
    records, problem = read_keyed(folder / "quarantine.json")
    return len(records) + bool(problem)


def remove_folder(folder: Path) -> None:
    """Remove a stage's folder, and see that it is gone.

    Raises
    ------
    hpc.errors.RunDirError
        Saying what stands in the way.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        _refuse(folder, error)
    if folder.is_symlink() or folder.exists():
        _refuse(folder, OSError("it is still there"))


def _remove_file(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        _refuse(file, error)


def _refuse(path: Path, error: OSError) -> None:
    msg = (
        f"{path}: holds what was computed without the quarantined units and cannot be removed ({error}); "
        "remove it yourself, then resume again with --retry-failed"
    )
    raise RunDirError(msg) from error
