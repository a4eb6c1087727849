"""The ranks of a node watch each other: which process died first tells which unit was the cause.

The launcher kills the others within milliseconds (mpiexec) or somewhat later (srun), so a note is made at once.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Final

from hpc.ending import EngineThread
from hpc.life import Life
from hpc.process import here

_LOOK: Final = 1000
"""Milliseconds between looks whether to end."""


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
        self._ranks: dict[int, int] = {}
        place = here()
        for rank, (pid, where) in life.ranks.neighbours((os.getpid(), place)).items():
            if where == place and rank != life.ranks.rank:
                try:
                    self._ranks[os.pidfd_open(pid)] = rank
                except OSError:  # it is gone already, or this kernel is too old
                    continue
        if self._ranks:
            EngineThread("peers", self._watch)

    def close(self) -> None:
        """Stop watching: from here on ranks may end."""
        self._end.set()

    def _watch(self) -> None:
        poll = select.poll()
        for descriptor in self._ranks:
            poll.register(descriptor, select.POLLIN)
        while not self._end.is_set():
            for descriptor, _ in poll.poll(_LOOK):
                self._note(self._ranks[descriptor])
                poll.unregister(descriptor)
        for descriptor in self._ranks:
            os.close(descriptor)

    def _note(self, rank: int) -> None:
        journal = self._life.journal
        if journal is not None and not self._life.stop and not self._end.is_set():
            journal.ended(rank)
            self._life.log.critical("the process of rank %d has died", rank)
