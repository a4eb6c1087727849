"""One process group at a time may work in a run directory.

The lock is a file made with ``link``, which is atomic on NFS too, naming its owner. The owner touches it with
every heartbeat. A lock is taken over when its owner is a dead process of this machine, or this very SLURM job before it
was requeued. An owner that cannot be seen from here (another machine, another container on this one, an unreadable
lock) counts as dead once it has not touched the lock for a minute. What time it is says the file system, not this
machine's clock. Taking over renames the stale file first, which only one contender can do; one that
came late and renamed the winner's new lock notices and puts it back.

An owner that was only cut off, or asleep, lives on after that. So every rank carries a `Claim`, looks at the lock
before it puts any file in its place, and writes nothing more once the lock is another's.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from hpc.errors import LockedError, LockLostError
from hpc.process import Process, boot_id, pid_namespace, place
from hpc.store.newfile import create
from hpc.store.plain import read_json, read_plain
from hpc.store.records import sealed, unsealed
from hpc.terminal import complain

T = TypeVar("T")

STALE_AFTER: Final = 60.0
"""Seconds without a heartbeat after which an owner that cannot be seen from here counts as dead."""

_SKEW: Final = 300.0
"""Seconds that the clocks of two nodes may differ (munge, SLURM's ticket office, refuses more): some file systems
take a file's time from the node that touches it."""

_LOOK: Final = 2.5
"""Seconds to watch a lock that looks silent but may only be of another clock, and `_BEATS` of its owner's heartbeats:
a living owner touches it meanwhile."""

_BEATS: Final = 1.25

_POLL: Final = 0.5
"""Seconds between two looks of a process that waits."""

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
                found = read_plain(self.path)
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

    Parameters
    ----------
    path
        The lock file.
    beat
        Seconds between the owner's touches.

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

    def __init__(self, path: Path, beat: float = 0.0) -> None:
        self.path = path
        self.released = False
        self._owner = {**_new_owner(), "beat": beat}
        mine = path.with_name(f"{path.name}.{self._owner['token']}")
        self.claim = Claim(path, json.dumps(sealed(self._owner)).encode())
        create(mine, self.claim.content)
        try:
            for _ in range(10):
                if self._try(mine):
                    return
        finally:
            mine.unlink(missing_ok=True)
        msg = f"{path}: several processes are fighting for this run; start it again when they have ended"
        raise LockedError(msg)

    def _try(self, mine: Path) -> bool:
        if self._link(mine):
            return True
        try:
            judged = read_plain(self.path)
        except FileNotFoundError:
            return False
        refuse_if_held(self.path)
        stale = self.path.with_name(f"{self.path.name}.stale-{secrets.token_hex(8)}")
        with suppress(FileNotFoundError):  # somebody else was faster; or NFS lost the answer, and it is done
            self.path.rename(stale)
        with suppress(FileNotFoundError):
            if read_plain(stale) != judged:
                with suppress(FileExistsError):
                    os.link(stale, self.path)
            stale.unlink()
        return False

    def _link(self, mine: Path) -> bool:
        """Put our file in the lock's place; return False if another one is there.

        NFS asks again when an answer is lost, and is told that the file exists: the one it has just made.
        """
        try:
            os.link(mine, self.path)
        except OSError as error:
            with suppress(OSError):
                if read_plain(self.path) == self.claim.content:
                    return True
            if not isinstance(error, FileExistsError):
                raise
            return False
        return True

    def touch(self) -> None:
        """Tell others that the owner lives."""
        with suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Give the lock up, if it is still this owner's."""
        self.released = True
        owner = read_owner(self.path)
        if owner is not None and owner.get("token") == self._owner["token"]:
            with suppress(OSError):  # left behind it is that of a dead process: no reason for a run to fail at its end
                self.path.unlink()


def take_patiently(
    path: Path, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False, beat: float = 0.0
) -> RunLock:
    """Take the lock; under SLURM, wait for that where its owner may just have been killed.

    A job that starts within a minute of another's death cannot know that it died: refused, it would never come
    back. It waits until the lock has been silent for long enough, and is refused once its owner gives a sign of life.

    Parameters
    ----------
    path
        The lock file.
    say
        Told once what is waited for.
    stopping
        Ends the waiting.
    beat
        See `RunLock`.

    Raises
    ------
    hpc.errors.LockedError
        If a living process holds it.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return RunLock(path, beat)
    return _patiently(lambda: RunLock(path, beat), path, say, stopping)


def refuse_if_held_for_long(path: Path) -> None:
    """Raise as `refuse_if_held` does; in a batch job of SLURM, wait first as `take_patiently` does."""
    if "SLURM_JOB_ID" in os.environ and os.environ.get("ENVIRONMENT") == "BATCH":
        _patiently(lambda: refuse_if_held(path), path, complain)
    else:
        refuse_if_held(path)


def _patiently(
    action: Callable[[], T], path: Path, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False
) -> T:
    seen = _touched(path)
    end = time.monotonic() + STALE_AFTER + _SKEW
    said = False
    while True:
        try:
            return action()
        except LockedError as error:
            if time.monotonic() > end or _touched(path) != seen or stopping():
                raise
            if not said:
                say(f"waiting until the lock has been silent for {STALE_AFTER:g} s: {error}")
                said = True
        time.sleep(_POLL)


def _touched(path: Path) -> tuple[int, int] | None:
    """Return what changes with every sign of life of an owner; the file is opened, so that NFS asks the server."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return found.st_ino, found.st_mtime_ns


def read_owner(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock, None if nobody does or the file is damaged."""
    try:
        return unsealed(read_json(path))
    except (OSError, ValueError):
        return None


def living_owner(path: Path) -> Process | None:
    """Return the owner of this lock if it is a living process of this machine, else None."""
    process = _process(read_owner(path) or {})
    return process if process is not None and process.lives() else None


def is_held(path: Path) -> bool:
    """Say whether a living process holds the lock, without writing anything."""
    try:
        refuse_if_held(path, write=False)
    except LockedError:
        return True
    return False


def refuse_if_held(path: Path, *, write: bool = True) -> None:
    """Raise if a living process holds the lock.

    Parameters
    ----------
    path
        The lock file.
    write
        Ask the file system for the time by making a file there; without, this machine's clock has to do.

    Raises
    ------
    hpc.errors.LockedError
        Naming the owner.
    """
    if not path.exists():
        return
    owner = read_owner(path)
    if _is_dead(owner, path, write=write):
        return
    if owner is None:
        msg = (
            f"{path}: cannot be read but was touched less than {STALE_AFTER:g} s ago, so a process may be working on "
            "this run; try again in a minute, or remove the file if you know that there is none"
        )
        raise LockedError(msg)
    job = f" (SLURM job {owner['slurm_job']})" if owner.get("slurm_job") else ""
    msg = (
        f"{path.parent}: this run is being worked on by process {owner.get('pid')} on {owner.get('host')}{job}; "
        "wait for it, or stop it first"
    )
    if _lives(owner) is None:
        msg += (
            f" (it cannot be seen from here: it counts as dead {STALE_AFTER:g} s after its last sign of life; "
            f"if you know that it is, remove {path})"
        )
    raise LockedError(msg)


def _new_owner() -> dict[str, Any]:
    process = Process.this()
    return {
        "host": process.host,
        "boot": boot_id(),
        "pid_namespace": pid_namespace(),
        "pid": process.pid,
        "started": process.started,
        "token": secrets.token_hex(16),
        "slurm_cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restarts": _restarts(),
    }


def _restarts() -> int:
    """Return how often this SLURM job has come back."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def _process(owner: Mapping[str, Any]) -> Process | None:
    """Return the process an owner's record names; one without boot id and namespace is of an older version."""
    host, pid, started = owner.get("host"), owner.get("pid"), owner.get("started")
    if not isinstance(host, str) or not isinstance(pid, int) or not isinstance(started, str):
        return None
    return Process(host, pid, started, place(str(owner.get("boot") or ""), str(owner.get("pid_namespace") or "")))


def _is_dead(owner: Mapping[str, Any] | None, path: Path, *, write: bool = False) -> bool:
    lives = _lives(owner)
    return _is_silent(path, owner or {}, write=write) if lives is None else not lives


def _lives(owner: Mapping[str, Any] | None) -> bool | None:
    """Say whether an owner is at work; None if only its silence can tell."""
    process = _process(owner or {})
    if owner is None or process is None:
        return None
    lives = process.lives()
    return False if lives is None and _came_back(owner) else lives


def _came_back(owner: Mapping[str, Any]) -> bool:
    """Say whether the owner is this very SLURM job before it was requeued to other nodes, and not a step beside us."""
    restarts = owner.get("slurm_restarts")
    return (
        bool(owner.get("slurm_job"))
        and owner.get("slurm_job") == os.environ.get("SLURM_JOB_ID")
        and owner.get("slurm_cluster") == os.environ.get("SLURM_CLUSTER_NAME")
        and isinstance(restarts, int)
        and restarts < _restarts()
    )


def _is_silent(path: Path, owner: Mapping[str, Any], *, write: bool) -> bool:
    """Say whether nobody has touched the lock for a while; there may be none."""
    touched = _touched(path)
    if touched is None:
        return not path.exists()
    age = (_now(path) if write else time.time()) - touched[1] * 1e-9
    if abs(age) > STALE_AFTER + _SKEW:
        return True  # also one that was dated into the future: a living owner would have touched it since
    if age <= STALE_AFTER:
        return False
    beat = owner.get("beat")
    time.sleep(max(_LOOK, _BEATS * min(beat, STALE_AFTER)) if isinstance(beat, int | float) else _LOOK)
    return _touched(path) == touched


def _now(path: Path) -> float:
    """Return the present as the file system dates it: this machine's clock may differ from the owner's."""
    probe = path.with_name(f"{path.name}.now-{secrets.token_hex(8)}")
    try:
        create(probe, b"now")
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()
