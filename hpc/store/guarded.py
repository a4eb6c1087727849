"""HDF5 files on a disk that may be full, or may not answer: the two ways in which everything here opens one.

HDF5 does not survive a file system that refuses a write: the file cannot be closed any more, and a later call crashes
the process (HDF5 2.0, seen on a full tmpfs). It therefore writes through an object that notes the first
refusal, swallows what follows, and lets HDF5 finish in peace; then the refusal is raised, as an ordinary ``OSError``.

Reading goes through the same object: HDF5 reports what the file system refused in the same words as a damaged file,
and only a damaged one may be computed again.

Neither asks for HDF5's lock on the file, which not every file system has; what is written is in nobody's hands yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py

from hpc.store.faults import reached
from hpc.store.plain import require_regular

LIBVER: Final = ("v110", "v110")
"""Checksummed metadata, and readable by every HDF5 since 1.10 (2016)."""


@contextmanager
def new_hdf5(path: Path, libver: tuple[str, str] | None = None) -> Iterator[h5py.File]:
    """Create an HDF5 file and close it at the end of the block.

    Parameters
    ----------
    path
        The file; one that exists is emptied first.
    libver
        Oldest and newest version of the format to use, such as `LIBVER`; None leaves it to h5py.

    Raises
    ------
    OSError
        As raised by the file system; the file is then useless and to be removed.
    """
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, "w", libver=libver) as file:
        yield file


@contextmanager
def changed_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to be changed in its place, and close it at the end of the block.

    Raises
    ------
    OSError
        As raised by the file system; the file may then be half changed.
    """
    with _opened(path, os.O_RDWR, "r+") as file:
        yield file


@contextmanager
def existing_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to be read, and close it at the end of the block.

    Raises
    ------
    OSError
        With an ``errno`` if the file system refuses, without one if this is no HDF5 file or a damaged one.
    """
    reached("read", path)
    require_regular(path)
    with _opened(path, os.O_RDONLY, "r") as file:
        yield file


def input_hdf5(path: Path, **options: Any) -> h5py.File:
    """Open a file of input data, which may be large and read by several threads; the caller closes it.

    Parameters
    ----------
    path
        The file.
    **options
        Of `h5py.File`, such as its chunk cache.
    """
    return h5py.File(path, "r", locking=False, **options)


@contextmanager
def _opened(path: Path, flags: int, mode: str, **options: Any) -> Iterator[h5py.File]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    target = _Guarded(descriptor)
    try:
        with h5py.File(target, mode, **options) as file:
            yield file
    except Exception:
        if target.refusal is None:
            raise
        # Otherwise HDF5 stumbled over the refusal, which is raised below, out of reach of HDF5's exception: that one
        # leads to objects which must not outlive the library, or the process crashes when it ends.
    finally:
        os.close(descriptor)
    if target.refusal is not None:
        raise OSError(target.refusal.errno, target.refusal.strerror, str(path))


class _Guarded:
    """The file-like object that h5py's ``fileobj`` driver wants, over a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self.refusal: OSError | None = None

    def _refuse(self, error: OSError) -> None:
        """Note a refusal, without its traceback, which would keep this object alive beyond HDF5's own end."""
        self.refusal = OSError(error.errno, error.strerror)

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
            self._refuse(error)
        self._position += len(rest)
        return len(rest)

    def readinto(self, content: memoryview) -> int:
        rest = memoryview(content).cast("B")
        done = 0
        try:
            while self.refusal is None and done < len(rest):
                found = os.preadv(self._descriptor, [rest[done:]], self._position + done)
                if not found:
                    break
                done += found
        except OSError as error:
            self._refuse(error)
        if done < len(rest):
            rest[done:] = bytes(len(rest) - done)  # or HDF5 would take what lay in its memory for the file's content
        self._position += done
        return done

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
                self._refuse(error)
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""
