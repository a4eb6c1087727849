"""``RUN/slurm.json``: which SLURM jobs a run was given to, oldest first; and which of them has ended for good."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hpc.store.newfile import hidden_name, replace
from hpc.store.plain import read_json
from hpc.watch.fields import record

FILE: Final = "slurm.json"

_JOB: Final = re.compile(r"[0-9]+(?:_[0-9]+)?")

_CUT: Final = 400
"""Bytes of a script's path that are asked of SLURM."""

ENDED_FILE: Final = "slurm-ended.json"
"""How the newest job ended, once nothing can bring it back: SLURM is not asked about it again."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One job that was submitted for a run.

    Attributes
    ----------
    job_id
        SLURM's number of the job or of the array; empty while sbatch has not answered, or if its answer was lost.
    array_task
        Index in the array; None for a job of its own.
    submitted
        Epoch.
    cluster
        The cluster section it was submitted with.
    script
        The batch script; its folder is that of this submission alone.
    log
        What the batch script and the ranks print.
    """

    job_id: str
    array_task: int | None
    submitted: float
    cluster: Mapping[str, Any]
    script: str
    log: str = ""

    def __post_init__(self) -> None:
        if self.job_id and not is_job(self.job_id):
            msg = f"{self.job_id!r} is no number of a job"
            raise ValueError(msg)

    @property
    def slurm_id(self) -> str:
        """The name by which SLURM's commands know the job, ``12`` or ``12_3``."""
        return self.job_id if self.array_task is None or not self.job_id else f"{self.job_id}_{self.array_task}"

    def is_other(self, command: str) -> bool:
        """Say whether a job under this number is another one, by its batch script: numbers begin anew in time."""
        folder = os.path.dirname(self.script)  # noqa: PTH120 - compared as SLURM writes it, for thousands of jobs
        return bool(folder) and command.startswith("/") and not lies_in(command, folder)


@dataclass(frozen=True, slots=True)
class _Submissions:
    """What is read of the file."""

    submissions: tuple[Submission, ...]


def is_job(name: str) -> bool:
    """Say whether this is a job's name: it becomes a word of SLURM's commands, and a line of batch scripts."""
    return _JOB.fullmatch(name) is not None


def lies_in(script: str, folder: str) -> bool:
    """Say whether a batch script lies in a folder; SLURM may have cut off the end of a long path."""
    inside = f"{folder.rstrip('/')}/"
    return script.startswith(inside) or (len(script.encode()) >= _CUT and inside.startswith(script))


def record_submission(run: Path, slurm_id: str, cluster: Mapping[str, Any], script: str, log: str = "") -> Submission:
    """Add a submission to the run's record and return it; it takes the place of one whose number is not known.

    Parameters
    ----------
    run
        The run directory.
    slurm_id
        ``12``, ``12_3``; empty or ``_3`` before sbatch has answered.
    cluster, script, log
        As in `Submission`; ``%j`` in the name of the log stands for the job's number.
    """
    job, _, task = slurm_id.partition("_")
    log = str(Path(log).with_name(Path(log).name.replace("%j", job))) if job and log else log
    submission = Submission(job, int(task) if task else None, time.time(), cluster, script, log)
    _write(run, [*(s for s in submissions(run) if s.job_id), submission])
    return submission


def forget_unanswered(run: Path) -> None:
    """Take a submission whose number is not known out of the record: SLURM has no such job."""
    known = submissions(run)
    if any(not s.job_id for s in known):
        _write(run, [s for s in known if s.job_id])


def _write(run: Path, known: Sequence[Submission]) -> None:
    content = json.dumps({"schema": 1, "submissions": [*map(asdict, known)]}, indent=1)
    replace(run / FILE, content.encode(), hidden_name(run / FILE))


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


def remember_end(run: Path, slurm_id: str, state: str, exit_code: str) -> None:
    """Note how the newest job of a run ended; who may not write here asks SLURM again."""
    content = json.dumps({"job": slurm_id, "state": state, "exit_code": exit_code})
    with suppress(OSError):
        replace(run / ENDED_FILE, content.encode(), hidden_name(run / ENDED_FILE))


def remembered_end(run: Path, slurm_id: str) -> tuple[str, str] | None:
    """Return the state and the exit code with which a job ended, None if that is not known for good."""
    try:
        end = read_json(run / ENDED_FILE)
        return (str(end["state"]), str(end["exit_code"])) if end["job"] == slurm_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
