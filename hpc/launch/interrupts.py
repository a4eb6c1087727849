"""Requests to stop that reach the command which follows a run: Ctrl-C, `tessera cancel`, a terminal that hangs up.

They are passed on to the ranks the moment they come, even while this process waits for whoever reads its output.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_BURST: Final = 0.2
"""Seconds within which signals are one request: ``timeout`` sends its signal twice, a log-out sends several kinds."""

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """How often this process was asked to stop, and what that does.

    Parameters
    ----------
    background
        Whether `hold_back` has held SIGINT back.

    Attributes
    ----------
    count
        Requests so far.
    """

    def __init__(self, *, background: bool = False) -> None:
        self.count = 0
        self._background = background
        self._last = -_BURST
        self._act: Callable[[int], None] | None = None

    def add(self, number: int, frame: FrameType | None = None) -> None:
        """Count a signal and pass it on."""
        del frame
        now = time.monotonic()
        burst, self._last = now - self._last < _BURST, now
        # A hang-up comes from the terminal and again from the shell; it is nobody's second thought.
        if burst or (self.count and number == signal.SIGHUP):
            return
        self.count += 1
        if self._act is not None:
            self._act(self.count)

    def pass_on(self, act: Callable[[int], None]) -> None:
        """Call ``act`` with the count at every request, also those that came before. After the ranks are started."""
        self._act = act
        if self.count:
            act(self.count)

    def look(self) -> None:
        """Take ``kill -INT`` for a request where Ctrl-C is none, since the terminal belongs to somebody else's job."""
        while self._background and (found := signal.sigtimedwait([signal.SIGINT], 0)) is not None:
            if found.si_code <= 0:  # of a process; those of the keyboard come from the kernel
                self.add(signal.SIGINT)


def hold_back() -> None:
    """Keep SIGINT for `Interrupts.look` if it is ignored, as it is for ``command &`` in a script.

    To be called before any library starts threads: one that does not block the signal would swallow it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


@contextmanager
def with_all_signals() -> Iterator[None]:
    """Let a process that is started in the block begin without blocked signals."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Count requests to stop instead of dying of them, for the block.

    What was ignored when the process began stays so: a hang-up under ``nohup``, Ctrl-C for a job in the background of a
    script. SIGTERM is always heard, as nobody sends it by accident.
    """
    before = {number: signal.getsignal(number) for number in _STOPPING}
    asked = Interrupts(background=signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    taken = [n for n in _STOPPING if n == signal.SIGTERM or before[n] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, asked.add)
    try:
        yield asked
    finally:
        for number in taken:
            signal.signal(number, before[number])
