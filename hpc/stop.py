"""Signals only set a flag; what follows is decided at a unit or step boundary.

SIGTERM and SIGINT mean "save and stop", SIGUSR1 and SIGUSR2 "save and come back" (a time limit or a
preemption is near). Python runs its signal handlers between bytecodes of the main thread, which may be inside
an MPI call for minutes; the wake-up descriptor is written by the C handler, so a thread sees the signal at once.
"""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType
from typing import Final, Literal

from hpc.ending import EngineThread

Wish = Literal["", "stop", "requeue"]

_WISHES: Final[dict[int, Wish]] = {
    signal.SIGTERM: "stop",
    signal.SIGINT: "stop",
    signal.SIGUSR1: "requeue",
    signal.SIGUSR2: "requeue",
}


class StopFlag:
    """What the outside world asked this process to do."""

    def __init__(self) -> None:
        self.wish: Wish = ""
        self.raised = threading.Event()

    def request(self, wish: Wish) -> None:
        """Ask for a stop; "stop" is not weakened to "requeue" by a later signal."""
        if self.wish != "stop":
            self.wish = wish
        self.raised.set()

    def __bool__(self) -> bool:
        return bool(self.wish)


def listen(flag: StopFlag) -> None:
    """Turn the stop signals into ``flag`` for the rest of the process's life. Main thread only."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def ignore(number: int, frame: FrameType | None) -> None:
        """Exist, so that the default action (death) does not happen."""

    for number in _WISHES:
        signal.signal(number, ignore)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with receiver, sender:
            while byte := receiver.recv(1):
                if wish := _WISHES.get(byte[0]):
                    flag.request(wish)

    EngineThread("signals", watch)


def ignore() -> None:
    """Hear no stop signals any more: the run is over, and Python, ending, would let them kill it. Main thread only."""
    for number in _WISHES:
        signal.signal(number, signal.SIG_IGN)
