"""Which process is meant: a pid alone may name another one later, and names another one in another container.

A process is known by its machine (the host's name and the kernel's boot id), its pid namespace, its pid, and the
kernel's start time of it. Only a process of this very machine and namespace can be judged from here.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_EXITING: Final = 0x4
"""Flag of the kernel (PF_EXITING) for a process that it is taking down."""

_GONE: Final = ("Z", "X")
"""States of a process that runs no more, whether or not its parent has taken note."""


@cache
def boot_id() -> str:
    """Return what the kernel calls this start of the machine; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Return the kernel's number of this process's pid namespace; empty where it does not say."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return ""


def place(boot: str, namespace: str) -> str:
    """Return a short name for a pid namespace of a started machine; empty if it is not known."""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16] if boot and namespace else ""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one machine.

    Attributes
    ----------
    host
        Name of the machine.
    pid, started
        As its kernel counts them; ``started`` is in clock ticks since the boot.
    place
        From `place`; empty in records of old, which are judged by the other three.
    """

    host: str
    pid: int
    started: str
    place: str = ""

    @classmethod
    def this(cls) -> Process:
        """Return the process that asks."""
        return cls(socket.gethostname(), os.getpid(), started(os.getpid()) or "", here())

    def lives(self) -> bool | None:
        """Say whether it runs; None if that cannot be seen from here."""
        if self.host != socket.gethostname() or self.place not in ("", here()) or self.pid <= 0:
            return None
        now = started(self.pid)
        if now is None:
            return _hidden(self.pid)
        return now == self.started if self.started else None

    def signal(self, number: int) -> bool:
        """Send it a signal; return whether it got it. Another process that has its pid by now gets none.

        Raises
        ------
        PermissionError
            If it is somebody else's.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except (OSError, ValueError):
            return False
        try:
            if self.lives() is not True:  # looked at while the descriptor holds the pid
                return False
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
                return True
            return False
        finally:
            os.close(descriptor)


def here() -> str:
    """Return the name of this machine's pid namespace; see `place`."""
    return place(boot_id(), pid_namespace())


def started(pid: int) -> str | None:
    """Return the kernel's start time of a process; None if there is none, or if it has ended and nobody took note."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A killed process may still have threads that are inside a write.
    return None if fields[0] in _GONE and int(fields[17]) <= 1 else fields[19]


def is_ending(pid: int) -> bool:
    """Say whether a process has died or is about to: killed, but not yet taken down, which takes some milliseconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in _GONE or bool(int(fields[6]) & _EXITING)


def _hidden(pid: int) -> bool | None:
    """Judge a process that /proc does not show: some sites hide those of other users."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return None
    except (OSError, OverflowError):
        return False
    return False if Path("/proc/self/stat").exists() else None  # a zombie
