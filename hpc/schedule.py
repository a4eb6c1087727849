"""Who takes which unit, and when: a pure data structure, without MPI and without a clock.

Largest cost first, taken by whoever is free. Small units are handed out in batches that shrink as the queue
empties, so that a message costs little per unit and the last units still even out. Units that may have killed
their process before are *suspects*: they run first, and only so many at a time that another death tells more of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
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
        Keys that run before all others, each with how many units may be in flight while it is; a set means 1, alone.
    """

    units: Sequence[Unit]
    size: int
    suspects: Collection[str] | Mapping[str, int] = ()
    in_flight: dict[str, int] = field(default_factory=dict, init=False)
    stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.units, key=lambda u: (-u.cost, u.key))
        limits = self.suspects if isinstance(self.suspects, Mapping) else dict.fromkeys(self.suspects, 1)
        self._limits = dict(limits)
        self._alone = deque(sorted((u for u in ordered if u.key in limits), key=lambda u: limits[u.key]))
        self._ready = deque(u for u in ordered if u.key not in self.suspects)
        self._cost = sum(u.cost for u in self._ready)
        self._measured_cost = self._measured_seconds = 0.0
        self._probes: deque[Unit] | None = None
        self._costs = {u.key: u.cost for u in ordered}

    def take(self, rank: int) -> Grant:
        """Give a rank its next units."""
        if self.stopped or not (self._alone or self._ready or self._probes):
            return Grant(over=True)
        if self._alone:
            suspects = [*self.in_flight, self._alone[0].key]
            if len(suspects) > min(self._limits[key] for key in suspects):
                return Grant()
            batch = [self._alone.popleft()]
        elif self._probes is not None:
            if not self._probes:
                return Grant()
            batch = [self._probes.popleft()]
        elif any(key in self.in_flight for key in self._limits):
            return Grant()
        else:
            batch = self._batch()
        self.in_flight.update({u.key: rank for u in batch})
        return Grant(tuple(batch), ahead=not self._alone and len(self._ready) >= 8 * self.size)

    @property
    def untried(self) -> int:
        """How many units were never handed out."""
        return len(self._alone) + len(self._ready) + len(self._probes or ())

    def probe(self, count: int) -> None:
        """Hand out only a few units that are spread over all that are left, and then none until `end_probe`."""
        left = list(self._ready)
        count = min(count, len(left))
        chosen = {round((i + 1) * (len(left) - 1) / count) for i in range(count)}
        self._probes = deque(left[i] for i in sorted(chosen, reverse=True))
        self._ready = deque(unit for i, unit in enumerate(left) if i not in chosen)
        self._cost -= sum(unit.cost for unit in self._probes)

    def end_probe(self) -> None:
        """Hand out all units again."""
        if self._probes is not None:
            self._ready.extendleft(self._probes)
            self._cost += sum(unit.cost for unit in self._probes)
            self._probes = None

    def finish(self, key: str, seconds: float = 0.0, *, failed: bool = False) -> None:
        """Note that a unit came back, and, unless it failed, that its cost took so many seconds."""
        self.in_flight.pop(key, None)
        if failed:
            return
        self._measured_cost += self._costs.get(key, 0.0)
        self._measured_seconds += seconds

    def stop(self) -> None:
        """Give out nothing more."""
        self.stopped = True

    def _batch(self) -> list[Unit]:
        limit = self._cost / (_SHARE * self.size)
        if self._measured_seconds:
            limit = min(limit, _SECONDS * self._measured_cost / self._measured_seconds)
        elif not self._measured_cost:
            limit = 0.0  # nothing is known yet, or all failed: one unit each
        batch = [self._ready.popleft()]
        total = batch[0].cost
        while self._ready and len(batch) < _MAX_BATCH and total + self._ready[0].cost <= limit:
            batch.append(self._ready.popleft())
            total += batch[-1].cost
        self._cost -= total
        return batch
