"""A rank that is cut off ends by itself.

Where a node loses its network, the scheduler can neither end its ranks nor tell them that the run goes on elsewhere.
`hpc.store.lock.Claim` keeps such ranks from writing; the fence keeps them from computing for nothing, for hours,
on a node that may be given to somebody else.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Final

from hpc.desk import RemoteDesk
from hpc.ending import EngineThread
from hpc.life import Life
from hpc.terminal import complain

_LOOK: Final = 0.5
"""Seconds between looks."""

_BEATS: Final = 150
"""Heartbeats without a word from rank 0: a unit there may hold Python's lock, or its disk hang, for minutes."""


def patience(heartbeat: float, beat: float) -> float:
    """Return the seconds without a word from rank 0 after which a rank ends.

    Parameters
    ----------
    heartbeat
        ``engine.heartbeat``.
    beat
        Seconds between two signs of life as they are: longer where there are very many ranks.
    """
    return max(_BEATS * heartbeat, 3 * beat)


class Fence:
    """Ends this rank if rank 0 does not answer its signs of life any more; on rank 0 it does nothing.

    Parameters
    ----------
    life
        The rank.
    seconds
        How long rank 0 may be silent.
    """

    def __init__(self, life: Life, seconds: float) -> None:
        self._life = life
        self._seconds = seconds
        self._end = threading.Event()
        if isinstance(life.source, RemoteDesk):
            EngineThread("fence", self._watch, life.source)

    def close(self) -> None:
        """Stop watching."""
        self._end.set()

    def _watch(self, desk: RemoteDesk) -> None:
        # Looks are counted, not seconds: a job that was suspended for an hour was not cut off.
        heard, looks = desk.heard, 0
        while not self._end.wait(_LOOK):
            looks = looks + 1 if desk.heard == heard else 0
            heard = desk.heard
            if looks * _LOOK >= self._seconds:
                self._die()

    def _die(self) -> None:
        """Die as the killed do: a job whose ranks were killed comes back."""
        rank = self._life.ranks.rank
        text = f"nothing was heard of rank 0 for {self._seconds:g} s; this rank ends, what it had saved is safe"
        self._life.log.critical("%s", text)
        complain(f"tessera: rank {rank} ({socket.gethostname()}): {text}")
        os.kill(os.getpid(), signal.SIGKILL)
