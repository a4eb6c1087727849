"""The ranks of a node watch each other: which process died first tells which unit was the cause.

Where a whole job is killed, its ranks die one right after the other, and none was the cause. So a rank that sees
another die waits a moment before it notes that: if it is killed meanwhile, or sees a third one die, there is no note.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Final

from hpc.ending import EngineThread, under_mpiexec
from hpc.life import Life
from hpc.process import here, is_ending

_LOOK: Final = 1000
"""Milliseconds between looks whether to end."""
_PAUSE: Final = 0.05
"""Seconds between a death and its note. A loop of kill(2) over 64 ranks takes less than a millisecond; srun kills the
others 125 to 150 ms after a rank has died (measured with SLURM 22.05)."""
_PAUSE_OF_MPIEXEC: Final = 0.001
"""The same under mpiexec, which kills the others after about 4 ms (measured with MPICH 4)."""


class Peers:
    """A thread that notes the death of another rank of this node. Collective.

    Parameters
    ----------
    life
        This rank.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._end = threading.Event()
        self._ranks: dict[int, tuple[int, int]] = {}
        place = here()
        for rank, (pid, where) in life.ranks.neighbours((os.getpid(), place)).items():
            if where == place and rank != life.ranks.rank:
                try:
                    self._ranks[os.pidfd_open(pid)] = rank, pid
                except OSError:  # it is gone already, or this kernel is too old
                    continue
        if self._ranks:
            EngineThread("peers", self._watch)

    def close(self) -> None:
        """Stop watching: from here on ranks may end."""
        self._end.set()

    def _watch(self) -> None:
        """Wait for the first death; what dies after it dies of it, or by the same hand."""
        poll = select.poll()
        for descriptor in self._ranks:
            poll.register(descriptor, select.POLLIN)
        while not self._end.is_set() and not poll.poll(_LOOK):
            pass
        time.sleep(_PAUSE_OF_MPIEXEC if under_mpiexec() else _PAUSE)
        ending = [rank for rank, pid in self._ranks.values() if is_ending(pid)]
        if len(ending) == 1:
            self._note(ending[0])
        for descriptor in self._ranks:
            os.close(descriptor)

    def _note(self, rank: int) -> None:
        journal = self._life.journal
        if journal is not None and not self._life.stop and not self._end.is_set():
            journal.ended(rank)
            self._life.log.critical("the process of rank %d has died", rank)
