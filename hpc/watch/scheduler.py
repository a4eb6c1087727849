"""What SLURM knows about jobs: one question to squeue for all of them, then sacct, then the job completion log.

The answers are read as text, whose columns are the same in every version. ``squeue --json`` ignores ``-j`` in SLURM
22.05 and prints the whole queue of the site; later ones take kilobytes for each job and changed its fields
(``job_state`` is a list from 23.11 on), and to ask for the version first would be a command more.

Without an accounting database SLURM forgets a job minutes after its end; such a job is reported as gone. A job is only
gone if the controller has answered: silence is no end.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from hpc.watch.submissions import is_job, lies_in

PATIENCE: Final = 12.0
"""Seconds in which all of SLURM's commands together have to answer somebody who looks."""

LONG_PATIENCE: Final = 45.0
"""The same for somebody who acts on the answer: a busy controller takes its time."""

EVERY: Final = 15.0
"""Seconds between two questions of somebody who looks again and again."""

ENDED: Final = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "RECONFIG_FAIL",
        "REVOKED",
        "TIMEOUT",
    }
)
"""SLURM's words for the end of a job."""

_WAITING: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"})
_ROW: Final = re.compile(r"[0-9]+(?:[_+][^ ]*)? [A-Z_]+")
"""How a row of squeue's table begins: job and state. What a wrapper of the site may say instead is no answer."""

_SQUEUES_SHARE: Final = 0.7
"""Part of the patience that squeue may use up, so that the accounts can be asked as well."""

_AT_ONCE: Final = 5000
"""Jobs in one question: the words of a command have a greatest length."""

_ACCOUNTS: Final = 6.0
"""Seconds for the accounts to say how well a job used what it had."""

_COLUMNS: Final = (
    ("JobArrayID", 64),
    ("State", 24),
    ("RestartCnt", 12),
    ("exit_code", 16),
    ("StartTime", 24),
    ("NodeList", 96),
    ("Reason", 160),
    ("Command", 400),
)
"""Fields of squeue and their widths: every version since 17.11 keeps to them."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as SLURM describes it.

    Attributes
    ----------
    state
        SLURM's word (``PENDING``, ``TIMEOUT``, …); ``GONE`` if SLURM knows nothing of it, ``UNKNOWN`` if SLURM
        could not be asked.
    reason
        Why it waits, or how it ended; why SLURM could not be asked.
    exit_code
        ``code:signal``.
    restarts
        How often it was requeued.
    start
        When it starts or started, as SLURM expects it.
    command
        The batch script, empty where SLURM does not tell.
    final
        Whether the controller has dropped the job, so that nothing can bring it back.
    """

    state: str
    reason: str = ""
    exit_code: str = ""
    restarts: int = 0
    nodes: str = ""
    start: str = ""
    command: str = ""
    final: bool = False

    @property
    def alive(self) -> bool:
        """Whether the job waits or runs, or may do so for all that is known: only an end that SLURM names is one."""
        return self.state != "GONE" and self.state not in ENDED

    @property
    def waiting(self) -> bool:
        """Whether the job is in the queue."""
        return self.state in _WAITING

    @property
    def known(self) -> bool:
        """Whether SLURM has answered."""
        return self.state != "UNKNOWN"


Ask = Callable[[Iterable[str]], Mapping[str, JobState]]
"""A question about jobs; those that are missing in the answer were not asked about this time."""


def job_states(jobs: Iterable[str], patience: float = PATIENCE) -> dict[str, JobState]:
    """Return the state of each job, named ``12`` or ``12_3``, within so many seconds.

    Parameters
    ----------
    jobs
        Their names.
    patience
        Seconds for all commands together; a job that nobody has told about by then is ``UNKNOWN``.
    """
    names = dict.fromkeys(jobs)
    wanted = [job for job in names if is_job(job)]
    found = dict.fromkeys(names, JobState("UNKNOWN", "this is no number of a job"))
    for first in range(0, len(wanted), _AT_ONCE):
        found |= _states(wanted[first : first + _AT_ONCE], _Interview(patience))
    return found


class Polled:
    """Asks SLURM no more often than every so many seconds; in between, what it said last."""

    def __init__(self, every: float = EVERY) -> None:
        self._every = every
        self._next = 0.0
        self._known: Mapping[str, JobState] = {}

    def __call__(self, jobs: Iterable[str]) -> dict[str, JobState]:
        """Return what is known of these jobs; nothing of one that was not asked about the last time."""
        wanted = list(dict.fromkeys(jobs))
        if wanted and time.monotonic() >= self._next:
            self._known = job_states(wanted)
            self._next = time.monotonic() + self._every
        return {job: self._known[job] for job in wanted if job in self._known}


def submitted_from(folder: str, patience: float = LONG_PATIENCE) -> tuple[str, str]:
    """Look for a job whose batch script lies in a folder, among those of this user.

    Returns
    -------
    tuple
        The job's number (of an array: of the whole), empty if there is none; and why SLURM could not be asked, empty
        if it answered.
    """
    interview = _Interview(patience)
    states = _queue(interview, ["-u", str(os.getuid())]) or {}
    jobs = [name.partition("_")[0] for name, state in states.items() if lies_in(state.command, folder)]
    return max(jobs, key=int, default=""), interview.trouble


@lru_cache(maxsize=64)
def efficiency(job: str) -> str | None:
    """Return how well a job used its CPUs and memory, where the site keeps accounts; None where it does not."""
    fields = "JobID,CPUTimeRAW,TotalCPU,MaxRSS,ReqMem,AllocCPUS,NNodes"
    text = (_Interview(_ACCOUNTS).ask(["sacct", "-n", "-P", "-j", job, "-o", fields]) or b"").decode(errors="replace")
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 6]
    if not rows:
        return None
    reserved = int(rows[0][1] or 0)
    used = _seconds(rows[0][2])
    peak = max((_mib(row[3]) for row in rows), default=0.0)
    if not reserved or not used:
        return None
    memory = f", largest task {peak:.0f} MiB of {rows[0][4]} asked" if peak else ""
    return f"CPU efficiency {100 * used / reserved:.0f} % of {rows[0][5]} CPUs{memory}"


class _Interview:
    """Questions that share one span of time.

    Attributes
    ----------
    trouble
        Why the last question that failed was not answered.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.trouble = ""
        self._end = time.monotonic() + seconds

    def ask(self, command: Sequence[str], ignore: str = "\0", share: float = 1.0) -> bytes | None:
        """Return what a command prints; None if it fails for another reason than the one to ignore."""
        seconds = min(self._end - time.monotonic(), share * self.seconds)
        if seconds < 0.2:
            self.trouble = self.trouble or f"{command[0]} was not asked: no time left"
            return None
        try:
            done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=_environment())
        except subprocess.TimeoutExpired:
            self.trouble = f"{command[0]} did not answer within {seconds:.0f} s"
            return None
        except OSError:
            self.trouble = f"there is no {command[0]} on this machine"
            return None
        said = done.stderr.decode(errors="replace")
        if done.returncode and ignore not in said:
            self.trouble = (said.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"])[0][:160]
            return None
        return done.stdout


def _environment() -> dict[str, str]:
    """Return this environment without what would filter or reshape the answers (``SQUEUE_USERS``, …)."""
    shaping = ("SLURM_", "SQUEUE_", "SACCT_")
    return {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith(shaping)}


def _states(wanted: list[str], interview: _Interview) -> dict[str, JobState]:
    queue = _queue(interview, ["-j", _numbers(wanted)], share=_SQUEUES_SHARE)
    answered, silence = queue is not None, interview.trouble
    found = {job: queue[job] for job in wanted if job in queue} if queue is not None else {}
    for source in (_sacct, _completed):
        missing = [job for job in wanted if job not in found]
        if not missing:
            break
        states = source(missing, interview)
        if answered:  # what only the accounts call alive is a job that the controller has lost
            states = {name: replace(state, final=True) for name, state in states.items() if not state.alive}
        found |= {job: states[job] for job in missing if job in states}
    absent = JobState("GONE", final=True) if answered else JobState("UNKNOWN", silence)
    return {job: found.get(job, absent) for job in wanted}


def _queue(interview: _Interview, which: Sequence[str], share: float = 1.0) -> dict[str, JobState] | None:
    """Return what squeue tells of some jobs; None if it does not answer, or says anything but rows of its table."""
    layout = ",".join(f"{name}:{width}" for name, width in _COLUMNS)
    command = ["squeue", "-h", "-r", "-t", "all", "-O", layout, *which]
    text = interview.ask(command, ignore="Invalid job id", share=share)
    if text is None:
        return None
    rows = {}
    for line in filter(bytes.strip, text.splitlines()):
        name, job = _row(line)
        if not _ROW.fullmatch(f"{name} {job.state}"):
            interview.trouble = f"squeue said: {line[:100].decode(errors='replace').strip()}"
            return None
        rows[name] = job
    return rows


def _row(line: bytes) -> tuple[str, JobState]:
    """Return the job of a line of squeue's table, whose columns are cut by bytes."""
    values, begin = [], 0
    for _, width in _COLUMNS:
        values.append(line[begin : begin + width].decode(errors="replace").strip())
        begin += width
    name, state, restarts, code, start, nodes, reason, command = values
    count = int(restarts) if restarts.isdigit() else 0
    return name, JobState(state, _known(reason), _exit_code(code), count, _known(nodes), _known(start), _known(command))


def _exit_code(word: str) -> str:
    """Return ``code:signal``; squeue gives the status of wait(2)."""
    return f"{int(word) >> 8}:{int(word) & 127}" if word.isdigit() else word


def _known(word: str) -> str:
    return "" if word in {"None", "(null)", "Unknown", "N/A", "n/a"} else word


def _sacct(jobs: list[str], interview: _Interview) -> Mapping[str, JobState]:
    command = ["sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode,NodeList", "-j", _numbers(jobs)]
    return _table(interview.ask(command))


def _completed(jobs: list[str], interview: _Interview) -> Mapping[str, JobState]:
    return _table(interview.ask(["sacct", "-c", "-n", "-P", "-o", "JobID,State,NodeList", "-j", _numbers(jobs)]))


def _numbers(jobs: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))


def _table(text: bytes | None) -> Mapping[str, JobState]:
    """Return states from lines of ``job|STATE|…``; the last line of a job that was requeued counts."""
    rows = (line.split("|") for line in (text or b"").decode(errors="replace").splitlines() if "|" in line)
    return {
        name: JobState(row[1].partition(" ")[0], exit_code=row[2] if ":" in row[2] else "")
        for row in rows
        if len(row) > 2
        for name in _members(row[0])
    }


def _members(name: str) -> Iterator[str]:
    """Yield every name of a record: the waiting part of an array, ``30_[3-4,7%2]``, is one for all its members."""
    array, bracket, tasks = name.partition("_[")
    if not bracket:
        yield name
        return
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from (f"{array}_{n}" for n in range(int(first), int(last or first) + 1))


def _seconds(text: str) -> float:
    """Return the seconds of ``[DD-[HH:]]MM:SS.sss``."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part or 0)
    return 86400 * int(days or 0) + seconds


def _mib(text: str) -> float:
    """Return the MiB of ``123K``, ``4.5M`` or ``2G``."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return float(match[1]) * {"": 2**-20, "K": 2**-10, "M": 1, "G": 2**10, "T": 2**20}[match[2]] if match else 0.0
