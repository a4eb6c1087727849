"""Whether it makes sense to go on: a stage in which everything fails in the same way is not worth trying to its end.

A missing file, library or licence fails every unit. If the first units (the largest) all fail with the same error, on
every rank, and none has succeeded, a few that are spread over all others are tried. If these fail
likewise, nothing is wrong with the units: the run stops, and none of them is quarantined.
"""

from __future__ import annotations

import re
from typing import Final

from hpc.quarantine import UnitFailure

PROBES: Final = 8
"""Units of all sorts that are tried before the rest is given up."""

_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+), in ', re.MULTILINE)


class Doubt:
    """What speaks against a stage.

    Parameters
    ----------
    size
        How many ranks work at it.
    after
        So many units must have failed before the doubt is serious; 0 never doubts.
    """

    def __init__(self, size: int, after: int) -> None:
        self._size = size
        self._after = after
        self._ranks: set[int] = set()
        self._failed: list[UnitFailure] = []
        self._probes_from = 0
        self.lifted = after == 0

    @property
    def failed(self) -> tuple[UnitFailure, ...]:
        """The units that failed, in order."""
        return tuple(self._failed)

    def lift(self) -> None:
        """Note that a unit succeeded, or failed in a way of its own."""
        self.lifted = True
        self._failed.clear()

    def note(self, failure: UnitFailure) -> bool:
        """Note that a unit failed; return whether it is time to try units of all sorts."""
        if self.lifted:
            return False
        if self._failed and _signature(failure) != _signature(self._failed[0]):
            self.lift()
            return False
        self._failed.append(failure)
        self._ranks.add(failure.rank)
        if self._probes_from or len(self._failed) < self._after or len(self._ranks) < self._size:
            return False
        self._probes_from = len(self._failed)
        return True

    def settled(self, in_flight: int) -> bool:
        """Say whether nothing is left that could lift the doubt."""
        return not self.lifted and self._probes_from > 0 and in_flight == 0


def _signature(failure: UnitFailure) -> tuple[str, tuple[str, str]]:
    """Return type and place of an error: its text often names the unit."""
    frames = _FRAME.findall(failure.traceback)
    return failure.error.partition(":")[0], frames[-1] if frames else ("", "")
