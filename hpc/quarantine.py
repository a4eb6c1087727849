"""The units of a stage that were given up, and their record, which a thread of its own keeps on disk.

The file is JSON that a person can read, replaced as a whole. So it is not written for each unit: the thread writes what
has come together and then rests for many times as long as that took. A kill costs the entries that were not written
yet, whose units a resume tries again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hpc.ending import EngineThread
from hpc.errors import LockLostError
from hpc.store.records import write_keyed

_PAUSE: Final = 0.1
"""Seconds between two writes at least."""
_SHARE: Final = 0.05
"""Of its time the thread may spend on writing, however long the record has become."""


@dataclass(frozen=True, slots=True)
class UnitFailure:
    """A unit that raised on every try, or whose process died too often."""

    key: str
    error: str
    traceback: str
    rank: int
    attempt: int


class Quarantine:
    """The units of one stage that were given up.

    Parameters
    ----------
    file
        The record; None keeps none.
    units
        What earlier attempts gave up.
    check
        Called before the record is put in its place; see `hpc.store.lock.Claim.verify`.
    warn
        Told once in a while why the record cannot be written.
    """

    def __init__(
        self,
        file: Path | None = None,
        units: Mapping[str, UnitFailure] | None = None,
        check: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._file = file
        self._check = check
        self._warn = warn
        self._guard = threading.Lock()
        self._writing = threading.Lock()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread: EngineThread | None = None
        self._units = dict(units or {})

    @property
    def units(self) -> dict[str, UnitFailure]:
        """The units as they are now."""
        with self._guard:
            return dict(self._units)

    def add(self, failure: UnitFailure) -> None:
        """Give a unit up; its record is written soon."""
        with self._guard:
            self._units[failure.key] = failure
        self._changed.set()
        if self._thread is None:
            self._thread = EngineThread("quarantine", self._keep)

    def withdraw(self, keys: Iterable[str]) -> None:
        """Take units out of it again; `save` makes that durable."""
        with self._guard:
            for key in keys:
                self._units.pop(key, None)

    def save(self) -> None:
        """Write the record now; remove one that an earlier attempt left for none.

        Raises
        ------
        OSError
            As raised by the file system.
        """
        if self._file is None:
            return
        with self._writing:
            units = self.units
            self._check()
            if not units:
                self._file.unlink(missing_ok=True)
            else:
                write_keyed(self._file, {key: asdict(failure) for key, failure in units.items()}, self._check)

    def close(self) -> None:
        """End the thread; what it has not written is tried once more."""
        if self._thread is None:
            return
        self._closing.set()
        self._changed.set()
        self._thread.join()
        self._thread = None

    def _keep(self) -> None:
        said = ""
        while self._changed.wait():
            self._changed.clear()
            start = time.monotonic()
            try:
                self.save()
                said = ""
            except LockLostError:
                return  # rank 0 sees it with its next heartbeat, and ends the ranks
            except OSError as error:
                if not self._closing.is_set():
                    self._changed.set()
                if said != (said := f"{self._file}: cannot be saved now ({error.strerror})"):
                    self._warn(said)
            except Exception as error:  # noqa: BLE001 - said where people look; the stage's end tries it again and fails
                self._warn(f"{self._file}: the record of quarantined units cannot be kept: {error!r}")
                return
            if self._closing.is_set() and not self._changed.is_set():
                return
            self._closing.wait(max(_PAUSE, (time.monotonic() - start) / _SHARE))
