"""After a stop signal: save at once, and leave in time, whatever the computation is busy with.

The scheduler that sent the signal will kill the job soon. What is finished is handed to the writer the moment
the signal is seen, even while the rank sits in a long unit or an MPI call. A unit that does not
end within ``engine.grace`` seconds is abandoned in good order: it counts as not begun and is run again later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from hpc.ending import EngineThread
from hpc.life import Life

_FAREWELL: Final = 1.0
"""Seconds between a rank's last save and its leaving, which ends all ranks: the others were told at the same time."""


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
        EngineThread("grace", self._watch)

    def close(self) -> None:
        """Stop watching: the rank has left its stages by itself."""
        self._left.set()

    def _watch(self) -> None:
        self._life.stop.raised.wait()
        if self._life.saving is not None:
            self._life.saving.flush()
        if not self._left.wait(self._life.settings.grace):
            self._leave()

    def _leave(self) -> None:
        life = self._life
        unit = life.here.unit
        life.log.warning("abandoned stage %s, unit %s: the grace period is over", life.here.stage, unit)
        with suppress(Exception):  # whatever is wrong with the disk, the way out is the same
            if life.saving is not None:
                life.saving.drain()
            if unit is not None and life.journal is not None:
                life.journal.end(unit)
        if life.desk is not None:
            life.desk.event("abandoned", stage=life.here.stage, unit=unit)
            life.desk.progress.state = "stopped"
            life.desk.progress.message = "stopped in the middle of a unit, which a resume runs again"
            life.desk.progress.write()
            self._give_up_lock()
        time.sleep(_FAREWELL)
        life.ranks.abort(life.stop_code())
