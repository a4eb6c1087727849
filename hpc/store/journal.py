"""Which units were begun: the memory that survives a process killed in the middle of one.

One append-only text file per rank and attempt, a line ``+key`` before a unit and ``-key`` after it. Lines are
written straight to the file (no buffer, no fsync): the page cache survives a killed process. After a
node loss some lines may be missing; then a unit's death goes uncounted, which costs one more attempt.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from hpc.store.blame import Left, record_end
from hpc.store.reading import content_of, names_in

_NAME: Final = re.compile(r"begun-(\d+)-(\d+)\.txt")


class Journal:
    """Records the units a rank begins and ends in one attempt at a stage."""

    def __init__(self, directory: Path, attempt: int, rank: int) -> None:
        path = directory / f"begun-{attempt:04d}-{rank:05d}.txt"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._directory, self._attempt = directory, attempt

    def begin(self, key: str) -> None:
        """Note that the unit is about to run."""
        self._write(f"+{key}\n")

    def end(self, key: str) -> None:
        """Note that the unit came back, with a result or an exception, or was given up in good order."""
        self._write(f"-{key}\n")

    def ended(self, rank: int | None) -> None:
        """Note why the attempt ends, unless somebody was first; see `hpc.store.blame.record_end`."""
        record_end(self._directory, self._attempt, rank)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, line: str) -> None:
        # On a full disk a death goes uncounted, which costs one more attempt; failing here would cost the run.
        with suppress(OSError):
            os.write(self._descriptor, line.encode())


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield the (sign, key) of every whole line of a journal; what has no line end was cut short by a node loss."""
    for line in text.split("\n")[:-1]:
        if line[:1] in ("+", "-") and len(line) > 1:
            yield line[0], line[1:]


def journal_names(directory: Path) -> list[str]:
    """Return the names of a stage's journals; see `hpc.store.reading.names_in` for errors."""
    return names_in(directory, "begun-*.txt")


def deaths(directory: Path, names: Iterable[str]) -> Counter[str]:
    """Count, for each unit, the attempts in which it was begun and its process never came back, as journals tell.

    Raises
    ------
    OSError
        If one cannot be read now.
    """
    return Counter(key for left in left_open(directory, names) for key in left.units)


def left_open(directory: Path, names: Iterable[str]) -> list[Left]:
    """Return what journals say of units that were begun and never came back; see `deaths` for errors."""
    found = []
    for name in names:
        units: dict[str, None] = {}
        for sign, key in entries(content_of(directory / name).decode(errors="replace")):
            if sign == "+":
                units[key] = None
            else:
                units.pop(key, None)
        match = _NAME.fullmatch(name)
        if units and match:
            found.append(Left(int(match[1]), int(match[2]), tuple(units)))
    return found
