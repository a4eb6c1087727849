"""After a stop signal: save at once, and leave in time, whatever the computation is busy with.

The scheduler that sent the signal will kill the job soon. What is finished is handed to the writer the moment
the signal is seen, even while the rank sits in a long unit or an MPI call. A unit that does not end within
``engine.grace`` seconds is abandoned in good order: it counts as not begun and is run again later.

One rank that leaves ends all, so none leaves before every rank has made durable what it had finished, however slow its
disk is, unless the time is nearly over. Each rank tells rank 0 when it has; rank 0 then closes the books, gives up the
lock and lets all leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from hpc.desk import Desk, RemoteDesk
from hpc.ending import EngineThread, end_with_all
from hpc.life import Life
from hpc.stop import Wish

_LOOK: Final = 0.1
"""Seconds between looks at what the other ranks say."""

_FAREWELL: Final = 2.0
"""Seconds rank 0 waits for the others to hear that they may leave, and they to save what came in since."""


class Grace:
    """Watches over a rank's stop flag.

    Parameters
    ----------
    life
        The rank.
    give_up_lock
        Releases the run's lock; called on the way out.
    """

    def __init__(self, life: Life, give_up_lock: Callable[[], None]) -> None:
        self._life = life
        self._give_up_lock = give_up_lock
        self._left = threading.Event()
        self._deciding = threading.Lock()
        self._leaving = False
        if life.desk is not None:
            life.desk.on_wish = life.stop.request
        if isinstance(life.source, RemoteDesk):
            life.source.on_word = self._hear
        self._thread = EngineThread("grace", self._watch)

    def close(self) -> None:
        """Stop watching: the rank has left its stages by itself. It does not return if the rank is leaving already."""
        with self._deciding:
            if not self._leaving:
                self._left.set()
        if self._leaving:
            self._thread.join()
        if self._life.stop.raised.is_set():
            self._thread.join()

    def _watch(self) -> None:
        self._life.stop.raised.wait()
        start = time.monotonic()
        if self._life.saving is not None:
            self._life.saving.flush()
        while time.monotonic() < start + self._life.settings.grace:
            if self._left.wait(_LOOK):
                return
        self._abandon_unit()
        leave = self._leave_as_first if self._life.desk is not None else self._leave_when_told
        leave(start + self._life.settings.leave_by)

    def _abandon_unit(self) -> None:
        """Say first that the unit was given up: a process that is killed while it saves did not die of it."""
        life, unit = self._life, self._life.here.unit
        life.log.warning("stage %s, unit %s: the grace period is over", life.here.stage, unit)
        with suppress(Exception):
            if unit is not None and life.journal is not None:
                life.journal.end(unit)

    def _drain(self, seconds: float) -> None:
        with suppress(Exception):  # whatever is wrong with the disk, the way out is the same
            if self._life.saving is not None:
                self._life.saving.drain(max(0.0, seconds))

    def _leave_when_told(self, end: float) -> None:
        life = self._life
        self._drain(end - time.monotonic())
        assert isinstance(life.source, RemoteDesk)  # noqa: S101 - for the type checker
        life.source.drained(life.pulse())
        while not self._left.wait(_LOOK):
            life.source.pulse(life.pulse(), life.stop.wish)
            if time.monotonic() > end + _FAREWELL:
                self._go(life.stop.wish)

    def _hear(self, wish: Wish, go: bool) -> None:
        """Take a word of rank 0; any thread may bring it."""
        if go:
            self._go(wish)
        self._life.stop.request(wish)

    def _leave_as_first(self, end: float) -> None:
        life, desk = self._life, self._life.desk
        assert desk is not None  # noqa: S101 - rank 0 only
        with self._deciding:
            if self._left.is_set():
                return
            self._leaving = True
        self._drain(end - time.monotonic())
        others = set(range(1, life.ranks.size))
        while not others <= desk.drained and time.monotonic() < end:
            time.sleep(_LOOK)
        self._close_books(desk, sorted(others - desk.drained))
        self._give_up_lock()
        desk.going = True
        farewell = time.monotonic() + _FAREWELL
        while not others <= desk.sent_off and time.monotonic() < farewell:
            time.sleep(_LOOK)
        end_with_all(life.ranks, life.stop_code())

    def _close_books(self, desk: Desk, missing: list[int]) -> None:
        life = self._life
        desk.event("abandoned", stage=life.here.stage, unit=life.here.unit, unsaved_ranks=missing)
        with suppress(Exception):
            desk.pulse(life.pulse(), "")
        desk.progress.message = "stopped in the middle of a unit, which a resume runs again"
        if missing:
            desk.progress.message += f"; {len(missing)} ranks could not save in time what they had finished"
        desk.close_books("stopped")  # from here on nobody's wish changes the exit code
        desk.progress.write()

    def _go(self, wish: Wish) -> None:
        """Leave, with what came in since this rank said that it had saved everything."""
        self._drain(_FAREWELL / 2)
        end_with_all(self._life.ranks, self._life.stop_code(wish))
