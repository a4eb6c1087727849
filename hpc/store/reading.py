"""What a refusal of the file system says of a file: that it is not there, or that it cannot be read now.

Neither says that the file is damaged. Only its content can: a checksum, a digest or a format that does not hold.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from hpc.store.faults import reached
from hpc.store.plain import read_plain

_ABSENT: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG}
)
"""There is no such file, or something that is none: see `hpc.store.plain`."""


def is_absent(error: OSError) -> bool:
    """Say whether an error means that there is no such file: waiting does not bring it."""
    return error.errno in _ABSENT


def is_refusal(error: BaseException) -> bool:
    """Say whether an error came from the system and tells nothing of the file: HDF5's own errors have no number."""
    return isinstance(error, OSError) and error.errno is not None and not is_absent(error)


def content_of(path: Path, look: Callable[[os.stat_result], object] = lambda _: None) -> bytes:
    """Return the bytes of a file; see `hpc.store.plain.read_plain` for ``look``.

    Raises
    ------
    OSError
        As raised by the file system, with the file's name, which an error of the reading itself lacks.
    ValueError
        If it is far too large.
    """
    try:
        reached("read", path)
        return read_plain(path, look=look)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def names_in(directory: Path, pattern: str = "*") -> list[str]:
    """Return the names in a folder that match a pattern, in order; none if there is no such folder.

    ``Path.glob`` calls a folder that it may not read empty, and a resume would compute everything again.

    Raises
    ------
    OSError
        If the folder cannot be read now.
    """
    try:
        return sorted(path.name for path in directory.iterdir() if fnmatchcase(path.name, pattern))
    except OSError as error:
        if is_absent(error):
            return []
        raise


def any_stored(checkpoints: Path, patterns: Sequence[str]) -> bool:
    """Say whether any stage's folder has a name that matches one of some patterns; see `names_in` for errors."""
    return any(names_in(checkpoints / stage, pattern) for stage in names_in(checkpoints) for pattern in patterns)
