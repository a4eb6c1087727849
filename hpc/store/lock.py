"""One process group at a time may work in a run directory.

The lock is a file made with ``link``, which is atomic on NFS too, naming its owner. The owner touches it with
every heartbeat. A lock is taken over when its owner is a dead process of this host or, if it is of another host or
cannot be read, has not touched it for a minute. Taking over renames the stale file first, which only one
contender can do; one that came late and renamed the winner's new lock notices and puts it back.

An owner that was only cut off, or asleep, lives on after that. So every rank carries a `Claim`, looks at the lock
before it puts any file in its place, and writes nothing more once the lock is another's.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpc.errors import LockedError, LockLostError
from hpc.store.records import sealed, unsealed

STALE_AFTER: Final = 60.0
"""Seconds without a heartbeat after which an owner on another host counts as dead."""

_LOOKS: Final = (0.05, 0.5, 0.0)
"""Seconds to wait after each look that finds no lock: a contender that came late may be putting it back."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the lock says for as long as the run belongs to one process group; the same on all of its ranks.

    Attributes
    ----------
    path
        The lock file.
    content
        Its bytes.
    """

    path: Path
    content: bytes

    def verify(self) -> None:
        """Return if the run is still ours.

        Raises
        ------
        hpc.errors.LockLostError
            If another process has taken it over.
        OSError
            If this cannot be told now: the file system fails, or the run directory is away.
        """
        for pause in _LOOKS:
            try:
                found = self.path.read_bytes()
            except FileNotFoundError:
                time.sleep(pause)
                continue
            if found == self.content:
                return
            msg = f"{self.path.parent}: {_taken_by(self.path)}"
            raise LockLostError(msg)
        (self.path.parent / "config.yaml").stat()  # a mount that is away has lost nothing
        msg = (
            f"{self.path.parent}: its lock is gone, so another attempt took this run over and has ended; "
            "this one stops without writing: see tessera status, and resume the run if it is not done"
        )
        raise LockLostError(msg)


def _taken_by(path: Path) -> str:
    owner = read_owner(path) or {}
    job = f" (SLURM job {owner['slurm_job']})" if owner.get("slurm_job") else ""
    who = f"process {owner['pid']} on {owner['host']}{job}" if owner else "another process"
    return (
        f"{who} has taken this run over because this attempt was not heard for a while; "
        "this one stops without writing: see tessera status"
    )


class RunLock:
    """The lock of a run directory.

    Attributes
    ----------
    claim
        What every rank needs to see whether the lock is still held.
    released
        Whether it was given up.

    Raises
    ------
    hpc.errors.LockedError
        If a living process holds it; the message names the owner.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.released = False
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": uuid.uuid4().hex,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        mine = path.with_name(f"{path.name}.{self._owner['token']}")
        self.claim = Claim(path, json.dumps(sealed(self._owner)).encode())
        mine.write_bytes(self.claim.content)
        try:
            for _ in range(10):
                if self._try(mine):
                    return
        finally:
            mine.unlink(missing_ok=True)
        msg = f"{path}: several processes are fighting for this run; start it again when they have ended"
        raise LockedError(msg)

    def _try(self, mine: Path) -> bool:
        with suppress(FileExistsError):
            os.link(mine, self.path)
            return True
        try:
            judged = self.path.read_bytes()
        except FileNotFoundError:
            return False
        refuse_if_held(self.path)
        stale = self.path.with_name(f"{self.path.name}.stale-{uuid.uuid4().hex[:8]}")
        with suppress(FileNotFoundError):
            self.path.rename(stale)
            if stale.read_bytes() != judged:
                with suppress(FileExistsError):
                    os.link(stale, self.path)
            stale.unlink()
        return False

    def touch(self) -> None:
        """Tell others that the owner lives."""
        with suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Give the lock up, if it is still this owner's."""
        self.released = True
        owner = read_owner(self.path)
        if owner is not None and owner.get("token") == self._owner["token"]:
            self.path.unlink(missing_ok=True)


def read_owner(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock, None if nobody does or the file is damaged."""
    try:
        return unsealed(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def refuse_if_held(path: Path) -> None:
    """Raise if a living process holds the lock.

    Raises
    ------
    hpc.errors.LockedError
        Naming the owner.
    """
    owner = read_owner(path)
    if owner is None and not _is_silent(path):
        msg = (
            f"{path}: cannot be read but was touched less than {STALE_AFTER:g} s ago, so a process may be working on "
            "this run; try again in a minute, or remove the file if you know that there is none"
        )
        raise LockedError(msg)
    if owner is not None and not _is_dead(owner, path):
        job = f" (SLURM job {owner['slurm_job']})" if owner.get("slurm_job") else ""
        msg = (
            f"{path.parent}: this run is being worked on by process {owner['pid']} on {owner['host']}{job}; "
            "wait for it, or stop it first"
        )
        if owner["host"] != socket.gethostname():
            msg += f" (if that host is down: it counts as dead after {STALE_AFTER:g} s, or remove {path})"
        raise LockedError(msg)


def _is_dead(owner: dict[str, Any], path: Path) -> bool:
    if owner["host"] == socket.gethostname():
        started = _started(owner["pid"])
        return started is None or started != owner["started"]
    if owner["slurm_job"] and owner["slurm_job"] == os.environ.get("SLURM_JOB_ID"):
        return True  # this very job before it was requeued to other nodes
    return _is_silent(path)


def _is_silent(path: Path) -> bool:
    """Say whether nobody has touched the lock for a while; there may be none."""
    try:
        return time.time() - path.stat().st_mtime > STALE_AFTER
    except OSError:
        return True


def _started(pid: int) -> str | None:
    """Return the kernel's start time of a process: a pid that was given to another process does not fool us."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
