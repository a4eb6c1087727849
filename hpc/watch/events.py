"""``events.jsonl``: what the engine did, one JSON object a line, appended by rank 0 over all attempts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpc.store.plain import parse_json, read_end, require_regular
from hpc.watch.fields import record

_LONGEST: Final = 1 << 20
"""Bytes of a line; the longest are those with a share for each rank."""

ROOM: Final = 16 << 20
"""Bytes of the file beyond which only milestones are written."""

MILESTONES: Final = frozenset(
    {"run_start", "stage_start", "stage_end", "timing", "stop", "abandoned", "run_end", "requeue", "no_requeue"}
)
"""Events of which an attempt has few."""

_END: Final = 64 << 10
"""Bytes of the file that `last_events` looks at."""

_LONGEST_TEXT: Final = 4000
"""Characters of a text in a record."""

_LATEST: Final = 4102444800.0
"""The year 2100: no run has lived later."""


class Events:
    """Appends records; a failing disk costs the record, never the run.

    The file is bounded: beyond `ROOM` bytes only the milestones of the run are written, and how many other records were
    left out. A text within a record is cut where it is very long.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._left_out = 0

    def emit(self, event: str, **facts: object) -> None:
        """Append one record with the time and the name of the event."""
        if self._path is None:
            return
        with self._lock:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    full = file.tell() >= ROOM
                    if full and event not in MILESTONES:
                        if not self._left_out:
                            text = f"this file holds {ROOM >> 20} MiB: records of warnings and units end here"
                            file.write(_line("left_out", {"text": text}))
                        self._left_out += 1
                        return
                    if event == "run_end" and self._left_out:
                        file.write(_line("left_out", {"records": self._left_out}))
                    file.write(_line(event, facts))
            except OSError:
                return


def _line(event: str, facts: Mapping[str, object]) -> str:
    cut = {name: _cut(value) for name, value in facts.items()}
    return json.dumps({"t": round(time.time(), 3), "event": event, **cut}, default=str) + "\n"


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"{value[:_LONGEST_TEXT]}… ({len(value) - _LONGEST_TEXT} characters left out)"
    return value


@dataclass(frozen=True, slots=True)
class _Share:
    """What the end of a stage says of each rank."""

    rank: int
    wall: float = 0.0
    busy: float = 0.0
    units: int = 0
    files: int = 0
    nbytes: int = 0
    blocked: float = 0.0


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the start and the end of a stage say."""

    stage: str
    ranks: tuple[_Share, ...] = ()


@dataclass(frozen=True, slots=True)
class _Timing:
    """The seconds of ``timing``."""

    seconds: dict[str, float]


_SHAPES: Final = {"stage_start": _Stage, "stage_end": _Stage, "timing": _Timing}
"""Of the events that something is computed from; the others are only shown."""


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, each with a time ``t`` and a name ``event``; damaged lines are passed over."""
    return (found for found in scan_events(path) if found is not None)


def last_events(path: Path) -> list[dict[str, Any]]:
    """Return the records at the end of a file, which may be long; damaged lines are passed over.

    Raises
    ------
    OSError
        If there is something else than a file, or it cannot be read.
    """
    try:
        found = [_sound(line) for line in read_end(path, _END).split(b"\n") if line]
    except FileNotFoundError:
        return []
    return [event for event in found if event is not None]


def scan_events(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield a record for each line of a file, None for one that was cut short by a kill or is damaged.

    Raises
    ------
    OSError
        If there is something else than a file, or it cannot be read.
    """
    try:
        require_regular(path)
    except FileNotFoundError:
        return
    with path.open("rb") as file:
        while line := file.readline(_LONGEST):
            yield _sound(line)
            while not line.endswith(b"\n") and line:  # the rest of a line without an end
                line = file.readline(_LONGEST)


def _sound(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line if nothing that is computed from it can fail."""
    try:
        found = parse_json(line.decode("utf-8", "replace"))
        event, time_of = found["event"], found["t"]
        if type(event) is not str or type(time_of) not in (int, float) or not 0 <= time_of <= _LATEST:
            return None
        if event in _SHAPES:
            record(_SHAPES[event], found)
    except (ValueError, KeyError, TypeError):
        return None
    return dict(found)
