"""Who takes which unit, and when: a pure data structure, without MPI and without a clock.

Largest cost first, taken by whoever is free. Small units are handed out in batches that shrink as the queue
empties, so that a message costs little per unit and the last units still even out. Units that were in
flight when a process died before are *suspects*: they run first and alone, so that a second death is
certainly theirs and not a neighbour's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from hpc.job import Unit

_MAX_BATCH: Final = 32
_SHARE: Final = 4
"""A batch is at most 1/(_SHARE x ranks) of the cost that is left (guided self-scheduling)."""
_SECONDS: Final = 0.25
"""A batch is expected to last this long at most: beyond that messages cost nothing, and the picture would lag."""


@dataclass(frozen=True, slots=True)
class Grant:
    """An answer to a rank that asks for work.

    Attributes
    ----------
    units
        What to run, in order; empty means wait or leave.
    over
        No more work will come for this rank.
    ahead
        So much is left that the rank may ask for its next batch before it has run this one.
    """

    units: tuple[Unit, ...] = ()
    over: bool = False
    ahead: bool = False


@dataclass
class Queue:
    """The units of a stage that are still to be run.

    Parameters
    ----------
    units
        Units to run.
    size
        How many ranks take from the queue.
    suspects
        Keys that have to run alone.
    """

    units: Sequence[Unit]
    size: int
    suspects: Collection[str] = ()
    in_flight: dict[str, int] = field(default_factory=dict, init=False)
    stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.units, key=lambda u: (-u.cost, u.key))
        self._alone = deque(u for u in ordered if u.key in self.suspects)
        self._ready = deque(u for u in ordered if u.key not in self.suspects)
        self._cost = sum(u.cost for u in self._ready)
        self._measured_cost = self._measured_seconds = 0.0
        self._costs = {u.key: u.cost for u in ordered}

    def take(self, rank: int) -> Grant:
        """Give a rank its next units."""
        if self.stopped or not (self._alone or self._ready):
            return Grant(over=True)
        if self._alone:
            if self.in_flight:
                return Grant()
            batch = [self._alone.popleft()]
        elif any(key in self.in_flight for key in self.suspects):
            return Grant()
        else:
            batch = self._batch()
        self.in_flight.update({u.key: rank for u in batch})
        return Grant(tuple(batch), ahead=not self._alone and len(self._ready) >= 8 * self.size)

    def finish(self, key: str, seconds: float = 0.0) -> None:
        """Note that a unit came back, whatever became of it, and how long it took."""
        self.in_flight.pop(key, None)
        self._measured_cost += self._costs.get(key, 0.0)
        self._measured_seconds += seconds

    def stop(self) -> None:
        """Give out nothing more."""
        self.stopped = True

    def _batch(self) -> list[Unit]:
        limit = self._cost / (_SHARE * self.size)
        if self._measured_seconds:
            limit = min(limit, _SECONDS * self._measured_cost / self._measured_seconds)
        elif self._ready and self.size > 1 and not self._measured_cost:
            limit = 0.0  # nothing is known yet: one unit each
        batch = [self._ready.popleft()]
        total = batch[0].cost
        while self._ready and len(batch) < _MAX_BATCH and total + self._ready[0].cost <= limit:
            batch.append(self._ready.popleft())
            total += batch[-1].cost
        self._cost -= total
        return batch
