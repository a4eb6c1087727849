"""Ending SLURM jobs, many with one command; what SLURM says against it is told for each job."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

_PATIENCE: Final = 60.0
"""Seconds for one command; scancel tries again by itself while the controller is busy."""

_AT_ONCE: Final = 200
"""Words in one command: whole arrays and ranges of them count as one."""

_ENDED: Final = ("invalid job id", "already completing", "already completed", "already finished")
"""Words for jobs that need no end any more."""

_JOB: Final = re.compile(r"\bjob(?: id)? (\d+(?:_\d+)?)\b", re.IGNORECASE)


def end(jobs: Sequence[str], *, save: bool = False) -> dict[str, str]:
    """End jobs, or let their ranks save and stop.

    Parameters
    ----------
    jobs
        Named ``12`` or ``12_3``.
    save
        Whether the ranks get SIGTERM, upon which they save, instead of an end.

    Returns
    -------
    dict
        What SLURM said against it, by job; nothing for those that it ends or that have ended already.
    """
    troubles: dict[str, str] = {}
    for words, members in _chunks(jobs):
        troubles |= _asked(["scancel", *(["--signal=TERM"] if save else []), *words], members)
    return troubles


def keep_away(jobs: Sequence[str]) -> None:
    """Tell SLURM not to bring jobs back; one that cannot be told so comes back only if its ranks ask for it."""
    for words, members in _chunks(jobs):
        names = ",".join(words).replace("[", "").replace("]", "")  # scontrol takes ranges without brackets
        _asked(["scontrol", "update", f"JobId={names}", "Requeue=0"], members)


def _asked(command: Sequence[str], jobs: Sequence[str]) -> dict[str, str]:
    """Run a command about jobs; return its complaints, those without a job's name for all of them."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(jobs, f"{command[0]} did not answer within {_PATIENCE:.0f} s")
    except OSError:
        return dict.fromkeys(jobs, f"there is no {command[0]} on this machine")
    troubles: dict[str, str] = {}
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    for line in lines if done.returncode else []:
        if any(sign in line.lower() for sign in _ENDED):
            continue
        named = _JOB.search(line)
        about = [named[1]] if named and named[1] in jobs else jobs
        troubles |= dict.fromkeys(about, line)
    return troubles


def _chunks(jobs: Iterable[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield some words of a command, and the jobs that they name."""
    named = list(ranges(jobs).items())
    for first in range(0, len(named), _AT_ONCE):
        part = named[first : first + _AT_ONCE]
        yield [word for word, _ in part], [job for _, members in part for job in members]


def ranges(jobs: Iterable[str]) -> Mapping[str, list[str]]:
    """Return jobs by the word that names them: members of an array that follow each other are one, ``30_[0-3]``."""
    tasks: dict[str, list[int]] = {}
    words: dict[str, list[str]] = {}
    for job in dict.fromkeys(jobs):
        array, _, task = job.partition("_")
        if task:
            tasks.setdefault(array, []).append(int(task))
        else:
            words[job] = [job]
    for array, numbers in tasks.items():
        for _, group in itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
            run = [number for _, number in group]
            word = f"{array}_{run[0]}" if len(run) == 1 else f"{array}_[{run[0]}-{run[-1]}]"
            words[word] = [f"{array}_{number}" for number in run]
    return words
