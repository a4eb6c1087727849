"""Whether a SLURM job comes back after its ranks have ended: ``python -m hpc.launch.comeback WHERE CODE [LIMIT]``.

Called by the batch script, whose shell outlives the ranks: so a run is brought back that was told to save, and also
one whose ranks were killed without a word (out of memory, a dead slurmstepd). A node that dies with this shell on
it is SLURM's own affair (``--requeue``).

The exit code decides: it comes from this stay of the job, and no full disk can hold it back. srun gives the largest
of its ranks' codes, 128 + 9 where one was killed or called MPI_Abort; mpiexec gives the bare number of the signal.
The run's files only explain, and only if this stay of the job has written them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpc import leftovers
from hpc.errors import EXIT_COME_BACK, EXIT_TOLD_TO_STOP
from hpc.launch.node import job_name, run_of
from hpc.rundir import RunDir
from hpc.terminal import guard_output, say
from hpc.watch.events import Events, last_events
from hpc.whereabouts import this_stay

_KILLED: Final = 128
"""Exit codes above are signals; so srun and shells have it."""

_SIGNALS: Final = range(4, 32)
"""Exit codes of mpiexec for ranks that a signal killed; those below are exit codes of ranks."""

_PATIENCE: Final = 60.0
"""Seconds for scontrol to answer."""

_HOPES: Final = 2
"""Times that a job comes back whose ranks were killed before one of them began to work."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to come back, why (not), and whether somebody has to look at it before the run can go on."""

    requeue: bool
    reason: str
    stuck: bool = False


def decide(
    code: int,
    progress: Mapping[str, Any] | None,
    failure: Mapping[str, Any] | None,
    restarts: int,
    limit: int,
    *,
    preempted: bool = False,
    unstarted: int = 0,
) -> Verdict:
    """Say whether a job whose ranks ended with ``code`` comes back.

    Parameters
    ----------
    code
        Exit code of srun or mpiexec.
    progress, failure
        Content of the run's ``progress.json`` and ``failure.json``, None unless this stay of the job wrote them.
    restarts
        How often the job has come back already.
    limit
        How often it may.
    preempted
        Whether SLURM takes the nodes away for another job: it says so with the signal of somebody who wants a stop.
    unstarted
        How often, one after the other, it has come back from stays in which no rank began to work.
    """
    if code == EXIT_TOLD_TO_STOP and not preempted:
        return Verdict(requeue=False, reason="it was told to stop")
    saved = code in {EXIT_COME_BACK, EXIT_TOLD_TO_STOP}
    killed = code > _KILLED or code in _SIGNALS
    if not saved and (failure is not None or not killed):
        return Verdict(requeue=False, reason=f"it ended by itself (exit code {code})")
    reason = "the time limit or a preemption was near" if saved else f"its ranks were killed (exit code {code})"
    if restarts >= limit:
        return Verdict(
            requeue=False,
            reason=f"{reason}, but it came back {restarts} times, cluster.max_requeues={limit}",
            stuck=True,
        )
    if killed and progress is None and unstarted >= _HOPES:
        return Verdict(
            requeue=False,
            reason=f"{reason} before they began to work, {unstarted + 1} times one after the other: see the job's log, "
            "and whether its memory (cluster.mem, cluster.mem_per_cpu) holds the packages that every rank imports",
            stuck=True,
        )
    if saved and progress is not None and _stands_still(progress):
        return Verdict(
            requeue=False,
            reason=f"{reason}, but in all that time not one unit was finished: a unit takes longer than the time limit "
            "leaves; raise cluster.time, or make units smaller",
            stuck=True,
        )
    return Verdict(requeue=True, reason=reason)


def _stands_still(progress: Mapping[str, Any]) -> bool:
    """Say whether an attempt that was in the middle of a map finished no unit of it.

    Only its last word counts: where that could not be written, units may have been finished since.
    """
    if progress.get("state") != "stopped":
        return False
    stages = progress.get("stages", [])
    current = next((s for s in stages if s["state"] == "running"), None)
    passed = any(s["state"] == "done" and s["done"] > s["restored"] for s in stages)
    return current is not None and current["kind"] == "map" and current["done"] <= current["restored"] and not passed


def main(arguments: list[str]) -> int:
    """Requeue this job if it should come back; return 0, whatever is decided.

    Parameters
    ----------
    arguments
        A run directory, or the folder of a submission; the exit code of srun; and, from batch scripts of a user's
        own, how often the job may come back (``cluster.max_requeues`` otherwise).
    """
    where, code, *rest = arguments
    leftovers.clear()
    run, ended = _run(Path(where)), int(code)
    limit = int(rest[0] if rest else run.load_config().get("cluster", {}).get("max_requeues", 0))
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    shown = _shown_job()
    if (now := re.search(r"\bRestarts=(\d+)", shown)) is not None and int(now[1]) > restarts:
        # SLURM gave up this node while the shell lived on: requeueing now would end the attempt that took over.
        _say("the job has come back elsewhere already; this is what is left of it")
        return 0
    preempted = re.search(r"\bPreemptTime=\d", shown) is not None
    progress, failure = _of_this_stay(run.read_progress()), _of_this_stay(run.read_failure())
    unstarted = _unstarted(run.events_file)
    verdict = decide(ended, progress, failure, restarts, limit, preempted=preempted, unstarted=unstarted)
    events = Events(run.events_file)
    if not verdict.requeue:
        events.emit("no_requeue", reason=verdict.reason, exit_code=ended)
        if verdict.stuck:
            _leave_word(run, verdict.reason)
        _say(f"the job does not come back: {verdict.reason}")
        return 0
    # Said before it is done: SLURM may end this shell before scontrol has answered.
    events.emit("requeue", reason=verdict.reason, restarts=restarts, job=job_name(), began=progress is not None)
    _say(f"the job comes back: {verdict.reason}")
    problem = _requeue()
    if problem is not None:
        events.emit("warning", text=f"the job could not be requeued: {problem}")
        _say(f"the job could not be requeued ({problem}); go on with: tessera resume {run.path}")
    return 0


def _of_this_stay(record: dict[str, Any] | None) -> dict[str, Any] | None:
    return record if record is not None and record.get("stay") == this_stay() else None


def _unstarted(events: Path) -> int:
    """Return how many of the last times that this job came back no rank had begun to work, by the end of the events."""
    try:
        mine = [e for e in last_events(events) if e["event"] == "requeue" and e.get("job") == job_name()]
    except OSError:
        return 0
    return next((n for n, event in enumerate(reversed(mine)) if event.get("began") is not False), len(mine))


def _run(where: Path) -> RunDir:
    """Return the run itself, or that of this member of a submission."""
    run = run_of(where)
    return RunDir.open(where) if run is None else RunDir(run)


def _leave_word(run: RunDir, reason: str) -> None:
    """Let `tessera status` say why the run stands still, unless a rank has left word of its own."""
    record = {"rank": None, "error": reason, "message": reason, "expected": True, "exit_code": EXIT_COME_BACK}
    if _of_this_stay(run.read_failure()) is None:
        with suppress(OSError):
            run.failure_file.write_text(json.dumps({**record, "stay": this_stay()}), encoding="utf-8")


def _shown_job() -> str:
    """Return what SLURM knows of this job on one line, empty if it cannot be asked."""
    try:
        return _scontrol("-o", "show", "job", os.environ.get("SLURM_JOB_ID", "")).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _requeue() -> str | None:
    """Ask SLURM to queue this job again; return what went wrong."""
    try:
        done = _scontrol("requeue", job_name())
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return (done.stderr or done.stdout).strip() if done.returncode else None


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=_PATIENCE, check=False)


def _say(text: str) -> None:
    say(f"tessera: {time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


if __name__ == "__main__":
    guard_output()  # a full disk must not keep the job from coming back
    sys.exit(main(sys.argv[1:]))
