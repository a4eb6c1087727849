"""Files that users hand in: what libraries raise on damaged ones, in words that name file, cause and remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hpc.store.plain import require_regular

_RUST: Final = "pyo3_runtime"
"""Module of what is raised where a library in Rust gives up; it is no ``Exception``."""

_SHOWN: Final = 500
"""Letters of a path in a message."""


@contextmanager
def explained(what: str, remedy: str, wrong: type[ValueError]) -> Iterator[None]:
    """Turn whatever is raised within into an error of the workload's own.

    Readers of damaged files raise what their authors did not think of: a flipped bit makes a key missing, a size
    negative, a text a number. So everything is caught here, and only around such readers.

    Parameters
    ----------
    what
        Begins the message: ``frame a.fits``.
    remedy
        Ends it, after the cause.
    wrong
        Of which kind the error is. Those of its family, which say all themselves, pass.

    Raises
    ------
    ValueError
        Of the kind ``wrong``.
    """
    try:
        yield
    except _family(wrong):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != _RUST:
            raise  # the user, or the interpreter, ends the process
        msg = f"{what} {cause(error)}; {remedy}"
        raise wrong(msg) from error


def cause(error: BaseException) -> str:
    """Return what an error of a reader says, as the middle of a sentence that begins with the file."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, UnicodeDecodeError):
        byte = f"byte 0x{error.object[error.start]:02x}"
        return f"is no UTF-8 text ({byte}; save it as UTF-8: iconv -f LATIN1 -t UTF-8 OLD > NEW)"
    if isinstance(error, MemoryError):
        return f"asks for more memory than there is ({_told(error)})"
    if isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is not None:
        return f"cannot be read ({error.strerror})"
    return f"cannot be read ({_told(error)})"


def read_number(text: str) -> float:
    """Read a number as data have it: Python's ``1_000`` is a damaged ``1.000``, and other scripts' digits are none.

    Raises
    ------
    ValueError
        If the text is not one.
    """
    if "_" in text or not text.isascii():
        msg = f"could not convert string to float: {text!r}"
        raise ValueError(msg)
    return float(text)


def require_file(path: Path, what: str, remedy: str, wrong: type[ValueError]) -> None:
    """Raise unless there is a plain file: a named pipe would make every rank wait, or read its own part.

    Raises
    ------
    ValueError
        Of the kind ``wrong``.
    """
    named = f"{what} {os.fspath(path)[:_SHOWN]}".strip()
    try:
        require_regular(path)
    except FileNotFoundError:
        msg = f"{named} does not exist; {remedy}"
        raise wrong(msg) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"{named} cannot be read ({reason}); {remedy}"
        raise wrong(msg) from error


def _family(wrong: type[ValueError]) -> type[ValueError]:
    """Return the base of a workload's own errors."""
    own = [kind for kind in wrong.__mro__ if kind.__module__ == wrong.__module__]
    return own[-1]


def _told(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    plain = isinstance(error, OSError | ValueError | RuntimeError | MemoryError) and first
    return first if plain else f"{type(error).__name__}: {first}" if first else type(error).__name__
