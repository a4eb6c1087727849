"""``RUN/slurm.json``: which SLURM jobs a run was given to, oldest first."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hpc.store.plain import read_json
from hpc.watch.fields import record

FILE: Final = "slurm.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """One job that was submitted for a run.

    Attributes
    ----------
    job_id
        SLURM's number of the job or of the array.
    array_task
        Index in the array; None for a job of its own.
    submitted
        Epoch.
    cluster
        The cluster section it was submitted with.
    script
        The batch script.
    """

    job_id: str
    array_task: int | None
    submitted: float
    cluster: Mapping[str, Any]
    script: str

    @property
    def slurm_id(self) -> str:
        """The name by which SLURM's commands know the job, ``12`` or ``12_3``."""
        return self.job_id if self.array_task is None else f"{self.job_id}_{self.array_task}"


@dataclass(frozen=True, slots=True)
class _Submissions:
    """What is read of the file."""

    submissions: tuple[Submission, ...]


def record_submission(run: Path, slurm_id: str, cluster: Mapping[str, Any], script: str) -> Submission:
    """Add a submission to the run's record and return it."""
    job, _, task = slurm_id.partition("_")
    submission = Submission(job, int(task) if task else None, time.time(), cluster, script)
    content = {"schema": 1, "submissions": [*map(asdict, submissions(run)), asdict(submission)]}
    new = run / f".{FILE}"  # not named like the ranks' temporary files, which a starting run clears away
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(run / FILE)
    return submission


def submissions(run: Path) -> list[Submission]:
    """Return the submissions of a run; nothing if it never was in SLURM, or the record is damaged."""
    return _read(run)[0]


def damage(run: Path) -> str:
    """Return what is wrong with the record of the submissions; nothing if it is sound or there is none."""
    return _read(run)[1]


def _read(run: Path) -> tuple[list[Submission], str]:
    try:
        return list(record(_Submissions, read_json(run / FILE)).submissions), ""
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        return [], f"{FILE}: {cause}"


def last_submission(run: Path) -> Submission | None:
    """Return the newest submission of a run."""
    return next(reversed(submissions(run)), None)
