"""Two preallocated buffers between a loop that goes on computing and a thread that writes what it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc.job import Arrays


@dataclass
class Snapshot:
    """A copy of a loop's state with its number and the facts for its commit record."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    number: int = 0
    facts: Mapping[str, object] = field(default_factory=dict)

    def prepare(self, state: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        """Allocate arrays of these shapes and types and touch their memory, which takes longer than a later copy."""
        for name, (shape, dtype) in state.items():
            self.arrays[name] = np.empty(shape, dtype)
            self.arrays[name][...] = np.zeros((), dtype)

    def fill(self, number: int, state: Arrays, facts: Mapping[str, object]) -> None:
        """Copy the state in; memory is allocated only when a shape or type is new."""
        for name in self.arrays.keys() - state.keys():
            del self.arrays[name]
        for name, value in state.items():
            source = np.asarray(value)
            mine = self.arrays.get(name)
            if mine is None or mine.shape != source.shape or mine.dtype != source.dtype:
                self.arrays[name] = source.copy()
            else:
                np.copyto(mine, source)
        self.number, self.facts = number, dict(facts)

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return sum(a.nbytes for a in self.arrays.values())


class DoubleBuffer:
    """One snapshot may be written while the other is filled; a newer pending one replaces an older pending one.

    Not thread-safe by itself: `Writer` calls it under its lock, except for the copying itself.
    """

    def __init__(self) -> None:
        self._snapshots = (Snapshot(), Snapshot())
        self._writing: Snapshot | None = None
        self.pending: Snapshot | None = None

    def prepare(self, state: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        """Make both buffers ready for arrays of these shapes and types; neither is in use yet."""
        for snapshot in self._snapshots:
            snapshot.prepare(state)

    def for_filling(self) -> Snapshot:
        """Return the buffer to copy into; what was pending in it is given up for the newer state."""
        self.pending = None
        first, second = self._snapshots
        return second if self._writing is first else first

    def filled(self, snapshot: Snapshot) -> None:
        """Offer a filled buffer for writing."""
        self.pending = snapshot

    def take(self) -> Snapshot | None:
        """Return the pending snapshot and reserve it while it is written."""
        self._writing, self.pending = self.pending, None
        return self._writing

    def written(self) -> None:
        """Release the reserved snapshot."""
        self._writing = None
