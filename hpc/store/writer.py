"""The asynchronous writer: one thread per rank, the only user of h5py while the rank computes.

The computing thread hands over finished units and snapshots of a loop's state and goes on. It waits in three
cases only: while a snapshot is copied (about 0.1 ms per MiB), when more than ``checkpoint.max_pending_mb`` of
finished units wait to be written, and at the end. A full or failing disk is retried with growing pauses while the
computation goes on; anything else the writer raises surfaces at the next call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpc.errors import RunDirError
from hpc.job import Arrays
from hpc.settings import CheckpointSettings
from hpc.store.buffers import DoubleBuffer, Snapshot
from hpc.store.cadence import Cadence
from hpc.store.generations import save_generation
from hpc.store.segments import Finished, write_segment

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 30.0


@dataclass(slots=True)
class WriteCost:
    """What saving cost this rank so far.

    Attributes
    ----------
    files, nbytes
        Written, in number and in bytes of arrays.
    blocked
        Seconds the computing thread waited: copies, back-pressure, and the end.
    writing
        Seconds the writer thread spent.
    retries
        Writes that the file system refused and that were tried again.
    replaced
        Snapshots given up for newer ones before they were written.
    cpu
        Seconds of processor time the writer thread used; the rest of ``writing`` it waited for the disk.
    """

    files: int = 0
    nbytes: int = 0
    blocked: float = 0.0
    writing: float = 0.0
    retries: int = 0
    replaced: int = 0
    cpu: float = 0.0


class Writer:
    """Makes finished units and states durable, beside the computation; ``durable`` counts the units that are.

    Parameters
    ----------
    directory
        The stage's folder.
    stage
        Its name, stored in every segment.
    attempt, rank
        Make file names unique; readers never interpret them.
    settings
        When to write, and how much may be pending.
    warn
        Called from the writer thread with a sentence when the file system refuses a write.
    check
        Called before each file is put in its place; what it raises, other than OSError, ends the writer.
    writers
        How many write into the folder.
    config_hash
        Of the configuration, stored in every segment.
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        attempt: int,
        rank: int,
        settings: CheckpointSettings,
        warn: Callable[[str], None],
        check: Callable[[], None] = lambda: None,
        writers: int = 1,
        config_hash: str = "",
    ) -> None:
        self._directory = directory
        self.stage = stage
        self._prefix = f"seg-{attempt:04d}-{rank:05d}"
        self._settings = settings
        self._warn = warn
        self._check = check
        self._config_hash = config_hash
        # A quarter is for packing a batch into columns, which takes a copy of it.
        self._limit = (settings.max_pending_mb << 20) * 3 // 4
        self._batch = (settings.max_pending_mb << 20) // 4
        self._changed = threading.Condition()
        self._collected: list[Finished] = []
        self._batches: deque[list[Finished]] = deque()
        self._bytes = self._collected_bytes = 0
        self._states = DoubleBuffer()
        self._expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] | None = None
        self._busy = False
        self._closing = False
        self._error: BaseException | None = None
        self._number = 0
        self.durable = 0
        self.cadence = Cadence(settings, writers)
        self.cost = WriteCost()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def add(self, unit: Finished) -> None:
        """Take over a finished unit; its arrays must not be changed any more.

        Raises
        ------
        BaseException
            What the writer thread failed with, if it did.
        """
        start = time.monotonic()
        with self._changed:
            self._raise_error()
            self._collected.append(unit)
            self._bytes += unit.nbytes
            self._collected_bytes += unit.nbytes
            self.cadence.step()
            if self.cadence.due() or self._collected_bytes >= self._batch:
                self._hand_over()
            while self._bytes > self._limit and self._error is None:
                self._changed.wait()
            self._raise_error()
        self.cost.blocked += time.monotonic() - start

    def expect(self, state: Arrays) -> None:
        """Let the writer thread prepare the buffers for states like this one; call it before the first `save`."""
        with self._changed:
            self._expected = {name: (np.shape(a), np.asarray(a).dtype) for name, a in state.items()}
            self._changed.notify_all()

    def save(self, number: int, state: Arrays, facts: Mapping[str, object]) -> None:
        """Copy a loop's state and return; an older state that still waits to be written is given up for it.

        Raises
        ------
        BaseException
            What the writer thread failed with, if it did.
        """
        start = time.monotonic()
        with self._changed:
            while self._expected is not None and self._error is None:
                self._changed.wait()
            self._raise_error()
            self.cost.replaced += self._states.pending is not None
            snapshot = self._states.for_filling()
        snapshot.fill(number, state, facts)
        with self._changed:
            self._states.filled(snapshot)
            self.cadence.saved()
            self._changed.notify_all()
        self.cost.blocked += time.monotonic() - start

    def flush(self) -> None:
        """Hand over what was collected, without waiting; any thread may call it."""
        with self._changed:
            self._hand_over()

    def check(self) -> None:
        """Raise what the writer thread failed with, if it did."""
        with self._changed:
            self._raise_error()

    def drain(self, seconds: float | None = None) -> None:
        """Wait until everything is durable.

        Parameters
        ----------
        seconds
            At most so long; None waits until no file could be written for ``checkpoint.deadline``.

        Raises
        ------
        hpc.errors.RunDirError
            If not everything is durable by then.
        """
        start = since = time.monotonic()
        limit = self._settings.deadline if seconds is None else seconds
        with self._changed:
            self._hand_over()
            files = self.cost.files
            while self._error is None and (self._busy or self._batches or self._states.pending):
                if seconds is None and self.cost.files > files:  # a slow disk with much to write is no full one
                    files, since = self.cost.files, time.monotonic()
                left = since + limit - time.monotonic()
                if left <= 0:
                    msg = (
                        f"{self._directory}: the last results could not be made durable within "
                        f"checkpoint.deadline={self._settings.deadline:g} s; what was saved before is intact: "
                        "make room or repair the file system, then resume the run"
                    )
                    raise RunDirError(msg)
                self._changed.wait(left)
            self._raise_error()
        self.cost.blocked += time.monotonic() - start

    def close(self) -> None:
        """Drain and end the thread."""
        self.drain()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _hand_over(self) -> None:
        if self._collected:
            self._batches.append(self._collected)
            self._collected = []
            self._collected_bytes = 0
        self.cadence.saved()
        self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                start = time.monotonic()
                self._write_until_done(job)
                self.cost.cpu = time.thread_time()
                self._done(job, time.monotonic() - start)
        except BaseException as error:  # noqa: BLE001 - handed to the computing thread, which raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> list[Finished] | Snapshot | None:
        with self._changed:
            while not (self._closing or self._batches or self._states.pending):
                if self._expected is not None:
                    self._prepare()
                else:
                    self._changed.wait()
            job = self._batches[0] if self._batches else self._states.take()
            self._busy = job is not None
            return job

    def _prepare(self) -> None:
        """Prepare the buffers, outside the lock: `save` waits for it, everything else may go on."""
        assert self._expected is not None  # noqa: S101 - for the type checker
        self._changed.release()
        try:
            self._states.prepare(self._expected)
        finally:
            self._changed.acquire()
        self._expected = None
        self._changed.notify_all()

    def _write_until_done(self, job: list[Finished] | Snapshot) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._write(job)
            except OSError as error:
                self.cost.retries += 1
                self._warn(
                    f"{self._directory}: cannot save now ({error.strerror or error}); the last good state is intact, "
                    f"trying again in {pause:g} s while the computation goes on"
                )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _write(self, job: list[Finished] | Snapshot) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)  # it may have been on a mount that came back empty
        if isinstance(job, Snapshot):
            save_generation(self._directory, job.number, job.arrays, job.facts, self._settings.keep, self._check)
        else:
            path = self._directory / f"{self._prefix}-{self._number:06d}.h5"
            write_segment(path, self.stage, job, self._check, self._config_hash)

    def _done(self, job: list[Finished] | Snapshot, seconds: float) -> None:
        with self._changed:
            self.cost.files += 1
            self.cost.writing += seconds
            if isinstance(job, Snapshot):
                self.cost.nbytes += job.nbytes
                self._states.written()
            else:
                nbytes = sum(u.nbytes for u in job)
                self.cost.nbytes += nbytes
                self._bytes -= nbytes
                self._number += 1
                self.durable += len(job)
                self._batches.popleft()
            self.cadence.measured(seconds)
            self._busy = False
            self._changed.notify_all()
