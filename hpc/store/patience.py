"""Try again while the disk is full or failing: what is computed must not be lost because of the last few kilobytes."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final

_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE})
"""What may go away by itself or by somebody's help; a missing file does not."""

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0


def insist(action: Callable[[], None], deadline: float, warn: Callable[[str], None]) -> None:
    """Call ``action`` until the file system lets it through.

    Parameters
    ----------
    action
        May be repeated from its beginning.
    deadline
        Seconds after which a refusal is raised instead of tried again.
    warn
        Called with a sentence for every refusal.

    Raises
    ------
    OSError
        The last refusal, or at once an error that waiting does not mend.
    """
    end, pause = time.monotonic() + deadline, _FIRST_PAUSE
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING or time.monotonic() + pause > end:
                raise
            warn(f"cannot write now ({error}); checkpoints are intact, trying again in {pause:g} s: make room")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
