"""HDF5 files on a disk that may be full.

HDF5 does not survive a file system that refuses a write: the file cannot be closed any more, and a later call crashes
the process (HDF5 2.0, seen on a full tmpfs). It therefore writes through an object that notes the first
refusal, swallows what follows, and lets HDF5 finish in peace; then the refusal is raised, as an ordinary ``OSError``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import h5py

LIBVER: Final = ("v110", "v110")
"""Checksummed metadata, and readable by every HDF5 since 1.10 (2016)."""


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file and close it at the end of the block.

    Raises
    ------
    OSError
        As raised by the file system; the file is then useless and to be removed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    target = _Guarded(descriptor)
    try:
        with h5py.File(target, "w", libver=LIBVER) as file:
            yield file
    except Exception:
        if target.refusal is not None:  # what HDF5 stumbled over
            raise target.refusal from None
        raise
    finally:
        os.close(descriptor)
    if target.refusal is not None:
        raise target.refusal


class _Guarded:
    """The file-like object that h5py's ``fileobj`` driver wants, over a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self.refusal: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (os.fstat(self._descriptor).st_size if start is None else start)
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, content: memoryview) -> int:
        rest = memoryview(content).cast("B")
        done = 0
        try:
            while self.refusal is None and done < len(rest):
                done += os.pwrite(self._descriptor, rest[done:], self._position + done)
        except OSError as error:
            self.refusal = error
        self._position += len(rest)
        return len(rest)

    def readinto(self, content: memoryview) -> int:
        found = os.preadv(self._descriptor, [content], self._position)
        self._position += found
        return found

    def read(self, size: int) -> bytes:
        """Exist: h5py knows a file-like object by it, and then calls `readinto`."""
        found = os.pread(self._descriptor, size, self._position)
        self._position += len(found)
        return found

    def truncate(self, size: int) -> int:
        if self.refusal is None:
            try:
                os.ftruncate(self._descriptor, size)
            except OSError as error:
                self.refusal = error
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""
