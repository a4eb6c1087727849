"""Try again while the file system refuses: what is computed must not be lost because of the last few kilobytes.

A file that cannot be read *now* (a server that restarts, no free file descriptor, a permission that is being
repaired) is not a damaged file. Reading it is tried again, and given up in the end with nothing changed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Container
from typing import Final, Protocol, TypeVar

from hpc.errors import UnreadableError
from hpc.store.reading import is_absent

T = TypeVar("T")

_PASSING: Final = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EREMOTEIO, errno.ENOLCK),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EBUSY, errno.EINTR),
        *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ESHUTDOWN),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    }
)
"""What may go away by itself or by somebody's help; a missing file or a forbidden folder does not."""

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0
_LONGEST_READING_PAUSE: Final = 2.0


class Reading(Protocol):
    """How to read: at once, or again while the file system refuses."""

    def __call__(self, action: Callable[[], T], /) -> T:
        """Call ``action``, which only reads, and return what it returns."""
        ...


def at_once(action: Callable[[], T], /) -> T:
    """Read without patience: what the file system raises goes to the caller."""
    return action()


def insist(action: Callable[[], T], deadline: float, warn: Callable[[str], None]) -> T:
    """Call ``action``, which writes, until the file system lets it through; return what it returns.

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

    def told(error: OSError, pause: float) -> str:
        return f"cannot write now ({error}); checkpoints are intact, trying again in {pause:g} s: make room"

    return _again(action, _PASSING, deadline, _LONGEST_PAUSE, lambda e, pause: warn(told(e, pause)))


def read_patiently(action: Callable[[], T], deadline: float, warn: Callable[[str], None]) -> T:
    """Call ``action``, which only reads, until the file system lets it through; return what it returns.

    Parameters
    ----------
    action, deadline, warn
        See `insist`.

    Raises
    ------
    hpc.errors.UnreadableError
        If the file system still refuses after ``deadline`` seconds. Nothing was changed.
    OSError
        At once, if the file is not there.
    """

    def told(error: OSError, pause: float) -> None:
        warn(f"cannot be read now ({error}); nothing is wrong with the run, trying again in {pause:g} s")

    try:
        return _again(action, _Refusals(), deadline, _LONGEST_READING_PAUSE, told)
    except OSError as error:
        if is_absent(error):
            raise
        raise unreadable(error) from error


def unreadable(error: OSError) -> UnreadableError:
    """Return the error to raise for a file that the file system does not give out."""
    return UnreadableError(
        f"cannot be read now: {error}; nothing was changed and nothing is lost: "
        "repair the file system or its permissions, then resume the run"
    )


class _Refusals:
    """All error numbers but those of a file that is not there."""

    def __contains__(self, number: object, /) -> bool:
        return isinstance(number, int) and not is_absent(OSError(number, ""))


def _again(
    action: Callable[[], T],
    passing: Container[int | None],
    deadline: float,
    longest: float,
    told: Callable[[OSError, float], None],
) -> T:
    end, pause = time.monotonic() + deadline, _FIRST_PAUSE
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in passing or time.monotonic() + pause > end:
                raise
            told(error, pause)
        time.sleep(pause)
        pause = min(2 * pause, longest)
