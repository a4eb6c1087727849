"""What SLURM knows about jobs: asked of scontrol, then sacct, then the job completion log, then squeue.

Without an accounting database SLURM forgets a job minutes after its end; such a job is reported as gone.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_TIMEOUT: Final = 20.0
_FIELD: Final = re.compile(r"(?:^| )([A-Za-z]+(?:/[A-Za-z]+)?)=(\S*)")
_WAITING: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"})
_WORKING: Final = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"})


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as SLURM describes it.

    Attributes
    ----------
    state
        SLURM's word (``PENDING``, ``TIMEOUT``, …); ``GONE`` if SLURM knows nothing of it, ``UNKNOWN`` if SLURM
        could not be asked.
    reason
        Why it waits, or how it ended.
    exit_code
        ``code:signal``.
    restarts
        How often it was requeued.
    start
        When it starts or started, as SLURM expects it.
    """

    state: str
    reason: str = ""
    exit_code: str = ""
    restarts: int = 0
    nodes: str = ""
    start: str = ""

    @property
    def alive(self) -> bool:
        """Whether the job waits or runs, or may do so for all that is known."""
        return self.state == "UNKNOWN" or self.state in _WAITING | _WORKING

    @property
    def waiting(self) -> bool:
        """Whether the job is in the queue."""
        return self.state in _WAITING


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """Return the state of each job, named ``12`` or ``12_3``."""
    wanted = list(dict.fromkeys(jobs))
    found: dict[str, JobState] = {}
    answered = False
    sources: tuple[Callable[[list[str]], Mapping[str, JobState] | None], ...] = (_scontrol, _sacct, _completed, _squeue)
    for source in sources:
        missing = [job for job in wanted if job not in found]
        if not missing:
            break
        states = source(missing)
        answered |= states is not None
        found |= {job: state for job, state in (states or {}).items() if job in missing}
    absent = JobState("GONE") if answered else JobState("UNKNOWN", "SLURM cannot be asked from this machine")
    return {job: found.get(job, absent) for job in wanted}


def efficiency(job: str) -> str | None:
    """Return how well a job used its CPUs and memory, where the site keeps accounts; None where it does not."""
    fields = "JobID,CPUTimeRAW,TotalCPU,MaxRSS,ReqMem,AllocCPUS,NNodes"
    text = _output(["sacct", "-n", "-P", "-j", job, "-o", fields])
    rows = [line.split("|") for line in (text or "").splitlines() if line.count("|") == 6]
    if not rows:
        return None
    reserved = int(rows[0][1] or 0)
    used = _seconds(rows[0][2])
    peak = max((_mib(row[3]) for row in rows), default=0.0)
    if not reserved or not used:
        return None
    memory = f", largest task {peak:.0f} MiB of {rows[0][4]} asked" if peak else ""
    return f"CPU efficiency {100 * used / reserved:.0f} % of {rows[0][5]} CPUs{memory}"


def _scontrol(jobs: list[str]) -> Mapping[str, JobState] | None:
    found: dict[str, JobState] = {}
    answered = False
    for number in dict.fromkeys(job.partition("_")[0] for job in jobs):
        text = _output(["scontrol", "-o", "show", "job", number], ignore="Invalid job id")
        if text is None:
            continue
        answered = True
        for line in text.splitlines():
            facts: dict[str, str] = {}
            for key, value in _FIELD.findall(line):
                facts.setdefault(key, value)
            if "JobState" in facts:
                state = _from_scontrol(facts)
                found |= dict.fromkeys(_names(facts), state)
    return found if answered else None


def _from_scontrol(facts: Mapping[str, str]) -> JobState:
    return JobState(
        state=facts["JobState"],
        reason=_known(facts.get("Reason", "")),
        exit_code=facts.get("ExitCode", ""),
        restarts=int(facts.get("Restarts", "0")),
        nodes=_known(facts.get("NodeList", "")),
        start=_known(facts.get("StartTime", "")),
    )


def _known(word: str) -> str:
    return "" if word in {"None", "(null)", "Unknown"} else word


def _names(facts: Mapping[str, str]) -> Iterator[str]:
    """Yield every name of a record: a waiting part of an array is one record for all its members."""
    yield facts["JobId"]
    if "ArrayJobId" in facts:
        for part in facts.get("ArrayTaskId", "").partition("%")[0].split(","):
            first, _, last = part.partition("-")
            if first.isdigit():
                yield from (f"{facts['ArrayJobId']}_{n}" for n in range(int(first), int(last or first) + 1))


def _sacct(jobs: list[str]) -> Mapping[str, JobState] | None:
    return _table(_output(["sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode,NodeList", "-j", ",".join(jobs)]))


def _completed(jobs: list[str]) -> Mapping[str, JobState] | None:
    return _table(_output(["sacct", "-c", "-n", "-P", "-o", "JobID,State,NodeList", "-j", ",".join(jobs)]))


def _squeue(jobs: list[str]) -> Mapping[str, JobState] | None:
    command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(jobs)]
    return _table(_output(command, ignore="Invalid job id"))


def _table(text: str | None) -> Mapping[str, JobState] | None:
    """Return states from lines of ``job|STATE|…``; the last line of a job that was requeued counts."""
    if text is None:
        return None
    rows = (line.split("|") for line in text.splitlines() if "|" in line)
    return {row[0]: JobState(row[1].partition(" ")[0], exit_code=row[2] if ":" in row[2] else "") for row in rows}


def _output(command: list[str], ignore: str = "\0") -> str | None:
    """Return what a command prints; None if it fails for another reason than the one to ignore."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode and ignore not in done.stderr:
        return None
    return done.stdout


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
