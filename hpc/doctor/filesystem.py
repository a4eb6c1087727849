"""Whether the file system under the runs keeps the promises that checkpoints rest on, and how fast."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from hpc.doctor.finding import Finding

_FSYNCS: Final = 5
_SLOW_FSYNC: Final = 1.0
"""Seconds; checkpoints are written aside, so that slower ones are a nuisance and no fault."""

_LITTLE_SPACE: Final = 5 * 2**30


def check(directory: Path) -> Finding:
    """Try out what runs do there: exclusive links (the lock), fsync, rename; and look at the free space."""
    name = f"files in {directory}"
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tessera-doctor-") as folder:
            try_lock(Path(folder))
            _rename(Path(folder))
            latency = fsync_seconds(Path(folder))
    except OSError as error:
        text = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        return Finding(name, "fail", text, "run in a folder you can write, on a file system with hard links")
    free = shutil.disk_usage(directory).free
    text = f"lock and rename work, fsync takes {latency * 1e3:.1f} ms, {free / 2**30:.1f} GiB free"
    if free < _LITTLE_SPACE:
        return Finding(name, "warn", text, "free space, or put run.dir on another file system")
    if latency > _SLOW_FSYNC:
        return Finding(name, "warn", text, "raise checkpoint.every, or put run.dir on a faster file system")
    return Finding(name, "ok", text)


def try_lock(folder: Path) -> None:
    """Take a lock as a run does: a hard link, of which there can be only one.

    Raises
    ------
    OSError
        If that does not work here.
    """
    mine = folder / "mine"
    mine.write_bytes(b"")
    os.link(mine, folder / "lock")
    try:
        os.link(mine, folder / "lock")
    except FileExistsError:
        return
    message = "a second hard link of the same name was allowed: two runs could work in one directory"
    raise OSError(message)


def _rename(folder: Path) -> None:
    """Replace a file by another, as every checkpoint does."""
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.replace(old)
    if old.read_bytes() != b"new":
        message = "a renamed file still shows its old content"
        raise OSError(message)


def fsync_seconds(folder: Path) -> float:
    """Return the median time of making a small file and its folder entry durable."""
    seconds = []
    for number in range(_FSYNCS):
        start = time.perf_counter()
        with (folder / f"fsync-{number}").open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[_FSYNCS // 2]
