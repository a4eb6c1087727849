"""How a run ended, in words: where the results are, what failed and why, and what to type next."""

from __future__ import annotations

import json
import shlex
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from hpc.errors import EXIT_COME_BACK, EXIT_DONE, EXIT_FAILED, EXIT_QUARANTINED, EXIT_TOLD_TO_STOP
from hpc.store.plain import read_end, read_json
from hpc.watch.failure import Failure, last_lines
from hpc.watch.screen import duration
from hpc.watch.status import RunStatus, read_status

_TAIL_BYTES: Final = 1 << 16
"""Bytes of the ranks' output that are looked at; its last lines are shown."""

_NAMED: Final = 5
"""Quarantined units that are named; the report lists all."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An attempt that is over.

    Attributes
    ----------
    code
        Exit code of this command.
    returned
        Exit code of mpiexec or of the only rank; negative for a signal.
    started
        Epoch of the start of this attempt.
    interrupts
        How often it was asked to stop.
    log, log_start
        File of the ranks' output, and where this attempt's begins.
    """

    run: Path
    code: int
    returned: int
    started: float
    interrupts: int
    log: Path
    log_start: int


def explain(ending: Ending) -> Text:
    """Return the closing words of an attempt."""
    status = read_status(ending.run)
    if ending.code in {EXIT_DONE, EXIT_QUARANTINED}:
        return _finished(ending, status)
    if ending.code == EXIT_COME_BACK:
        return _stopped(ending, status)
    return _failed(ending, status)


def resume_line(run: Path) -> str:
    """Return the command that goes on with a run."""
    return f"tessera resume {shlex.quote(str(run))}"


def newest_log(run: Path) -> Path | None:
    """Return the log of a run that was written to last; None if there is none."""
    found: list[tuple[float, Path]] = []
    for file in (run / "logs").glob("*.log"):
        with suppress(OSError):
            state = file.stat()
            found += [(state.st_mtime, file)] if state.st_size else []
    return max(found)[1] if found else None


def _finished(ending: Ending, status: RunStatus) -> Text:
    text = Text()
    if ending.code == EXIT_QUARANTINED:
        units = "unit" if status.quarantined == 1 else "units"
        text.append(f"finished without {status.quarantined} quarantined {units}", style="bold yellow")
    else:
        text.append("done", style="bold green")
    if status.started is not None and status.updated is not None:
        text.append(f" in {duration(status.updated - status.started)}")
    if status.kernels:
        text.append(f"\n{status.kernels}", style="yellow")
    for other in status.identity.others:
        text.append(f"\n{other}", style="yellow")
    text.append(f"\nresults  {ending.run / 'results'}")
    report = ending.run / "report" / "index.html"
    if report.is_file():
        text.append(f"\nreport   {report}")
    if ending.code == EXIT_QUARANTINED:
        for stage, key, error in _quarantined(ending.run)[:_NAMED]:
            text.append(f"\n  {stage} {key}: {error}", style="yellow")
        text.append(f"\ntry them again:  {resume_line(ending.run)} --retry-failed")
    return text


def _stopped(ending: Ending, status: RunStatus) -> Text:
    text = Text()
    silent = _silent(ending, status)
    # A second Ctrl-C may find ranks that have saved and are on their way out.
    if ending.returned in {EXIT_COME_BACK, EXIT_TOLD_TO_STOP} or (status.state == "stopped" and not silent):
        text.append("stopped and saved", style="bold yellow")
        saved = sum(stage.saved for stage in status.stages)
        text.append(f" ({saved} units saved)" if saved else "")
        lost = sum(stage.done - stage.saved for stage in status.stages if stage.kind == "map")
        if lost > 0:
            text.append(f"\n{lost} more were finished but could not be saved in time; they will be computed again")
    elif silent:
        text.append("stopped before the ranks were ready", style="bold yellow")
    else:
        text.append("killed without saving", style="bold yellow")
        text.append("; what was not yet saved will be computed again")
    text.append("\ngo on with:  ")
    text.append(resume_line(ending.run), style="bold")
    return text


def _failed(ending: Ending, status: RunStatus) -> Text:
    """Return what the failing rank wrote; for one that died without a word, what was going on."""
    failure = status.failure or Failure("no message")
    text = Text("failed", style="bold red")
    text.append(f": {failure.told}")
    quoted = failure.quoted or ("" if failure.expected else last_lines(_output(ending)))
    if quoted:
        text.append("\n" + quoted, style="dim")
    log = ending.run / "logs" / f"rank-{failure.rank or 0:05d}.log"
    text.append(f"\nlogs     {log if failure.traceback and log.is_file() else ending.log}")
    if ending.code == EXIT_FAILED and status.updated is not None:
        text.append(f"\nwhen the cause is gone, go on with:  {resume_line(ending.run)}")
    return text


def record_silent_death(ending: Ending) -> None:
    """Write ``failure.json`` for ranks that could not: killed from outside, or dead before Python ran.

    Without it `tessera status` would call the run running until its last sign of life is old enough.
    """
    file = ending.run / "failure.json"
    if file.exists():
        return
    status = read_status(ending.run)
    error = f"the ranks ended with {_meaning(ending.returned)} and left no message"
    if not _silent(ending, status):
        units = [f"{rank.unit} on rank {rank.rank}" for rank in status.ranks if rank.unit]
        error += f"; in stage {status.stage}, these units were being computed: {', '.join(units)}" if units else ""
    record = {"rank": None, "error": error, "expected": False, "exit_code": EXIT_FAILED}
    with suppress(OSError):
        file.write_text(json.dumps(record), encoding="utf-8")


def _silent(ending: Ending, status: RunStatus) -> bool:
    """Say whether the ranks of this attempt have not written any progress."""
    return status.updated is None or status.updated < ending.started


def _meaning(returned: int) -> str:
    """Return what an exit code says: mpiexec gives the bare number of the signal that killed a rank."""
    number = -returned if returned < 0 else returned - 128 if returned > 128 else returned
    known = {member.value: member.name for member in signal.Signals}
    if number not in known or returned == 1:
        return f"exit code {returned}"
    hint = "; the kernel does this when memory runs out" if number == signal.SIGKILL else ""
    return f"signal {number} ({known[number]}{hint})"


def _quarantined(run: Path) -> list[tuple[str, str, str]]:
    """Return (stage, unit, error) of every quarantined unit."""
    files = sorted((run / "checkpoints").glob("*/quarantine.json"))
    return [
        (file.parent.name, key, str(record.get("error")))
        for file in files
        for key, record in _read_json(file).items()
        if isinstance(record, dict)
    ]


def _read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file, nothing if it is missing or damaged."""
    try:
        value = read_json(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _output(ending: Ending) -> str:
    """Return the end of what the ranks printed."""
    try:
        return read_end(ending.log, _TAIL_BYTES, ending.log_start).decode(errors="replace")
    except OSError:
        return ""
