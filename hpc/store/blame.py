"""Which unit is to blame for the death of an attempt.

When a rank dies, the launcher kills the others, and all of them leave a unit that was begun and never ended. Whoever
sees first which rank it was that died notes it in ``ended-AAAA.json``; an error that a rank reported itself is noted,
too, and then no unit is to blame. Without a note (a whole node, or all ranks at once) every unit in flight may
have been the cause. A unit is given up only if that may be so in ``engine.max_unit_deaths`` attempts and it was the
only possible cause of the last two: before that it is a suspect, which runs with ever fewer others. One would not
do: where a whole job is killed rank by rank, a note may say that the first one was the cause.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hpc.errors import CorruptFileError
from hpc.store.newfile import create
from hpc.store.records import read_record, sealed

_PROOF: Final = 2
"""Deaths, one after the other, of which a unit has to be the only possible cause before it is given up."""


@dataclass(frozen=True, slots=True)
class Left:
    """The units that a rank had begun and not ended when an attempt was over."""

    attempt: int
    rank: int
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blame:
    """What the deaths of earlier attempts say of units.

    Attributes
    ----------
    deaths
        In how many attempts a unit may have been the cause.
    alone
        Of how many deaths, the last ones, a unit was the only possible cause; absent where of none.
    """

    deaths: Counter[str] = field(default_factory=Counter)
    alone: Mapping[str, int] = field(default_factory=dict)

    def guilty(self, limit: int) -> dict[str, int]:
        """Return the units to give up, each with its deaths; ``limit`` is ``engine.max_unit_deaths``."""
        proof = min(limit, _PROOF)
        return {key: n for key, n in self.deaths.items() if n >= limit and self.alone.get(key, 0) >= proof}

    def suspects(self, limit: int, size: int) -> dict[str, int]:
        """Return the units to run first on so many ranks, each with how many units may be in flight while it is.

        A unit whose last death was certainly its own runs alone. For others the number is halved with each death: so
        innocent units, in flight when whole jobs were killed, do not run one by one, and a guilty one is alone
        before long.
        """
        begins = max(1, limit - 1)
        return {
            key: 1 if key in self.alone else max(1, size >> (count - begins + 1))
            for key, count in self.deaths.items()
            if count >= begins and key not in self.guilty(limit)
        }


def end_file(directory: Path, attempt: int) -> Path:
    """Return the name of the note on how an attempt at a stage ended."""
    return directory / f"ended-{attempt:04d}.json"


def record_end(directory: Path, attempt: int, rank: int | None) -> None:
    """Note how an attempt ends: the rank that died, or None for an error that was reported. The first note counts.

    It is not synced: the page cache survives killed processes, and there may be only a moment left.
    """
    with suppress(OSError):
        note = json.dumps(sealed({"attempt": attempt, "rank": rank}))
        create(end_file(directory, attempt), note.encode())


def read_ends(
    directory: Path, attempts: Iterable[int], read: Callable[[Path], dict[str, object] | None] = read_record
) -> dict[int, int | None]:
    """Return the notes that were left on these attempts; a damaged one counts as absent.

    Raises
    ------
    OSError
        If one cannot be read now.
    """
    found: dict[int, int | None] = {}
    for attempt in sorted(set(attempts)):
        with suppress(CorruptFileError):
            note = read(end_file(directory, attempt))
            rank = note.get("rank") if note is not None else None
            if note is not None and note.get("attempt") == attempt and (rank is None or isinstance(rank, int)):
                found[attempt] = rank
    return found


def blame(left: Iterable[Left], ends: Mapping[int, int | None]) -> Blame:
    """Say which units may have been the cause of how many deaths.

    Parameters
    ----------
    left
        What each rank left behind in each attempt.
    ends
        From `read_ends`.
    """
    guilty: dict[int, list[str]] = {}
    for part in left:
        if part.attempt not in ends or ends[part.attempt] == part.rank:
            guilty.setdefault(part.attempt, []).extend(part.units)
    deaths: Counter[str] = Counter()
    alone: dict[str, int] = {}
    for _, units in sorted(guilty.items()):
        together = set(units)
        deaths.update(together)
        for key in together:
            alone[key] = alone.get(key, 0) + 1 if len(together) == 1 else 0
    return Blame(deaths, {key: count for key, count in alone.items() if count})
