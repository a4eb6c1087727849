"""What MPI leaves in a node's shared memory, and how a run neither trips over it nor adds to it.

MPICH names the segment through which the ranks of a node talk after job and step. Ranks that are killed, or leave by
MPI_Abort, leave it behind; a requeued job has the same job and step, and a new cluster begins its job numbers again:
MPI_Init opens the old segment and dies. Two things are done about it. Before MPI starts, segments of this user that
nobody holds are removed. Once all ranks of a node have opened the new one, its name is removed: the memory
lives as long as somebody maps it, and whatever kills the ranks, nothing is left.

(Making the step number follow the restart would have healed the requeue under srun, but neither the new cluster, nor
mpiexec, nor the megabytes that every dead run leaves.)
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where POSIX keeps shared memory

_NAMES: Final = ("mpich_shm_", "mpich_shar_tmp", "ucx_shm_posix_", "Intel_MPI_", "vader_segment.", "sm_segment.")
"""Beginnings of the names of segments: MPICH (two), UCX below it, Intel MPI, Open MPI 4 and 5."""

_UNNAMED: Final = "mpich_shm_"
"""Segments that are opened by name only while MPI starts; Open MPI opens its own when two ranks first talk."""

_PATIENCE: Final = 5.0
"""Seconds to wait for another rank of this node that is clearing up."""


def clear(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Remove segments of MPI that belong to this user and that no process of this machine has open or mapped.

    Several ranks of a node may do this at once, beside runs that are at work or just starting.

    Parameters
    ----------
    folder
        Where to look.

    Returns
    -------
    list of Path
        What was removed.
    """
    try:
        found = [path for path in folder.iterdir() if path.name.startswith(_NAMES)]
    except OSError:
        return []
    if not found:
        return []
    with _one_at_a_time(folder):
        return [path for path in found if _remove_unless_held(path)]


def unname(maps: Path = Path("/proc/self/maps")) -> None:
    """Take the name away from the segment that this process maps; all ranks of the node must have opened it."""
    with suppress(OSError):
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
        mapped = {line.split(maxsplit=5)[5] for line in lines if f"/{_UNNAMED}" in line}
        for path in mapped:
            with suppress(OSError):
                Path(path).unlink()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other ranks from clearing: two that look at a segment at once would each take the other for its user."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + _PATIENCE
    try:
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.01)
            else:
                break
        yield
    finally:
        os.close(file)


def _remove_unless_held(path: Path) -> bool:
    """Remove a segment that nobody holds.

    The kernel grants a write lease only on a file that nobody else has open or mapped, in whatever container, and
    holds back whoever opens it until the file is closed here: nothing can happen between the look and the removal.
    """
    try:
        # Not os.stat first: what is looked at must be what is removed. Without O_NONBLOCK a fifo would wait.
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            return False
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored; SIGIO, the default, would be death
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        path.unlink()
    except OSError:  # held by somebody, already gone, or a file system without leases: MPI's own affair then
        return False
    else:
        return True
    finally:
        os.close(file)
