"""When to save: every so many seconds or steps, or as often as the cost of a save and of a failure warrant."""

from __future__ import annotations

import math
import time
from typing import Final

from hpc.settings import CheckpointSettings

_SHORTEST: Final = 1.0
_LONGEST: Final = 600.0
_FILES: Final = 20.0
"""Files a second that all writers of a folder may make together: more of them save more rarely (docs/scaling.md)."""


def daly_interval(cost: float, mtbf: float) -> float:
    """Return the interval between saves that loses least time to saving and to failures together.

    Parameters
    ----------
    cost
        Seconds that one save takes.
    mtbf
        Mean time between failures of the job, seconds.

    Returns
    -------
    float
        Seconds of work between two saves: Daly's higher-order estimate (Future Generation Computer Systems 22,
        303, 2006, eq. 37), ``sqrt(2 c M) (1 + sqrt(c / 2M) / 3 + c / 18M) - c``, or M where c >= 2 M.
    """
    if cost >= 2 * mtbf:
        return mtbf
    x = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - cost


class Cadence:
    """Says when the next save is due.

    Parameters
    ----------
    settings
        ``checkpoint.every`` and ``checkpoint.mtbf``.
    writers
        How many save into the same folder.
    """

    def __init__(self, settings: CheckpointSettings, writers: int = 1) -> None:
        self._settings = settings
        self._least = writers / _FILES if writers > 1 else 0.0
        self._seconds = max(self._least, settings.every if isinstance(settings.every, float) else _SHORTEST)
        self._last = time.monotonic()
        self._steps = 0

    @property
    def seconds(self) -> float:
        """The interval now; with ``auto`` it follows the measured cost."""
        return self._seconds

    def step(self) -> None:
        """Count a finished step or unit."""
        self._steps += 1

    def due(self) -> bool:
        """Say whether it is time to save."""
        wanted = self._settings.every_steps
        if wanted is not None:
            return self._steps >= wanted
        return time.monotonic() - self._last >= self._seconds

    def saved(self) -> None:
        """Start the next interval."""
        self._last = time.monotonic()
        self._steps = 0

    def measured(self, cost: float) -> None:
        """Take the seconds from handing over a save to its being durable."""
        if self._settings.every == "auto":
            # A save must not be handed over before the one before is durable, or it would only be replaced.
            best = max(daly_interval(cost, self._settings.mtbf), cost)
            self._seconds = max(self._least, min(max(best, _SHORTEST), _LONGEST))
