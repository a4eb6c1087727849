"""Small text files that anybody may have put into a run directory, read without trusting them.

Whatever lies under a name is looked at first: a named pipe would make a reader wait for ever, and a device may never
end. What is refused is refused as an ``OSError`` or ``ValueError``, which readers of damaged files expect anyway.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

MOST: Final = 256 << 20
"""Bytes of a file that is read whole; more is no record of a run."""

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: Path) -> None:
    """Raise unless there is a plain file, or a link to one, under this name; nothing is opened.

    Raises
    ------
    OSError
        `FileNotFoundError` if there is nothing, else saying what it is instead.
    """
    _refuse_others(path.stat(), path)


def _nothing(_: os.stat_result) -> None:
    """Do without what is told."""


def read_plain(path: Path, most: int = MOST, look: Callable[[os.stat_result], object] = _nothing) -> bytes:
    """Return the content of a plain file; never waits for a writer.

    Parameters
    ----------
    path
        The file; links are followed.
    most
        Bytes that it may have.
    look
        Told what the file system says of the very file that is read, whatever the path names by then.

    Raises
    ------
    OSError
        If it is missing, unreadable, or not a plain file.
    ValueError
        If it is larger than ``most`` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _refuse_others(found, path)
        look(found)
        if found.st_size > most:
            msg = f"is {found.st_size / 2**20:.0f} MiB large, which no file of its kind is"
            raise ValueError(msg)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def read_end(path: Path, most: int, start: int = 0) -> bytes:
    """Return the last ``most`` bytes of a plain file that may be long, nothing of what lies before ``start``.

    One that has become shorter than that was begun anew: all of it counts.

    Raises
    ------
    OSError
        As raised by `read_plain`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _refuse_others(found, path)
        begin = start if start <= found.st_size else 0
        return os.pread(descriptor, most, max(begin, found.st_size - most))
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises
    ------
    OSError
        As raised by `read_plain`.
    ValueError
        If it is no JSON, or is nested too deep.
    """
    return parse_json(read_plain(path))


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text; raises ``ValueError`` as `read_json` does."""
    try:
        return json.loads(text)
    except RecursionError:
        msg = "it is nested too deep"
        raise ValueError(msg) from None


def _refuse_others(found: os.stat_result, path: Path) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file")
    code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
    raise OSError(code, f"it is {kind}, not a file", str(path))
