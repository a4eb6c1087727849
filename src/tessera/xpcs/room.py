"""Memory for many arrays that are kept, in pieces large enough for huge pages."""

from __future__ import annotations

import math
import threading
from typing import Final

import numpy as np

from tessera.xpcs.native import PAD, aligned
from tessera.xpcs.physics import Floats

_PIECE: Final = 2**21
"""Elements of a piece, 16 MiB: numpy asks for huge pages from 4 MiB on, and faults in small ones cost more than use."""


class Room:
    """Gives out arrays; from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece = np.empty(0)

    def empty(self, shape: tuple[int, ...]) -> Floats:
        """Return an array of float64, not initialised, that begins with a line of the cache."""
        size = math.prod(shape)
        if size > _PIECE // 2:
            return aligned(shape)
        with self._lock:
            if self._piece.size < size:
                self._piece = aligned((_PIECE,))
            taken, self._piece = self._piece[:size], self._piece[-(-size // PAD) * PAD :]
        return taken.reshape(shape)
