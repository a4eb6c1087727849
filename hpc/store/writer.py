"""The writer of a rank: the only place where a running job writes HDF5.

This one writes in the calling thread. Its three calls (`add`, `flush`, `save`) are the interface behind which
an asynchronous writer takes over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc.job import Arrays
from hpc.settings import CheckpointSettings
from hpc.store.generations import save_generation
from hpc.store.segments import Finished, write_segment


@dataclass(slots=True)
class WriteCost:
    """What checkpoints cost this rank so far."""

    files: int = 0
    nbytes: int = 0
    blocked: float = 0.0


class Writer:
    """Collects finished units into segments and saves generations.

    Parameters
    ----------
    directory
        The stage's folder.
    stage
        Its name, stored in every segment.
    attempt, rank
        Make file names unique; readers never interpret them.
    settings
        When to write.
    """

    def __init__(self, directory: Path, stage: str, attempt: int, rank: int, settings: CheckpointSettings) -> None:
        self._directory = directory
        self._stage = stage
        self._prefix = f"seg-{attempt:04d}-{rank:05d}"
        self._settings = settings
        self._pending: list[Finished] = []
        self._pending_bytes = 0
        self._number = 0
        self._last = time.monotonic()
        self.cost = WriteCost()

    def add(self, unit: Finished) -> None:
        """Take a finished unit; write a segment if it is time or if too much is pending."""
        self._pending.append(unit)
        self._pending_bytes += unit.nbytes
        if self.due() or self._pending_bytes >= self._settings.max_pending_mb << 20:
            self.flush()

    def due(self) -> bool:
        """Say whether ``checkpoint.every`` seconds have passed since the last write."""
        return time.monotonic() - self._last >= self._settings.every

    def flush(self) -> None:
        """Make everything pending durable."""
        start = time.monotonic()
        if self._pending:
            path = self._directory / f"{self._prefix}-{self._number:06d}.h5"
            write_segment(path, self._stage, self._pending)
            self._number += 1
            self.cost.files += 1
            self.cost.nbytes += self._pending_bytes
            self._pending, self._pending_bytes = [], 0
        self._last = time.monotonic()
        self.cost.blocked += self._last - start

    def save(self, number: int, state: Arrays, facts: Mapping[str, object]) -> None:
        """Make generation ``number`` of a loop's state durable."""
        start = time.monotonic()
        save_generation(self._directory, number, state, facts, self._settings.keep)
        self._last = time.monotonic()
        self.cost.files += 1
        self.cost.nbytes += sum(a.nbytes for a in state.values())
        self.cost.blocked += self._last - start
