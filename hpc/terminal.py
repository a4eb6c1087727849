"""What this process says, and to whom: the one owner of standard output and standard error.

Whoever reads may go away (``| head``, a closed terminal), never have been there (``>&-``), have no room (a full disk)
or no letters for what is said (ASCII). None of that ends a run: what cannot be written is dropped, and the exit code
tells how the run ended. And what is said often comes from files that others wrote, so nothing in it may command the
reader's terminal.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO, cast

from hpc.errors import OutputError

_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they turn the direction of what follows
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line ends in disguise; bytes of a path that are no UTF-8
)
_LAYOUT: Final = re.compile("[\t\n]")

_NAMES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}

_SPELLED: Final = {
    "×": "x",
    "–": "-",
    "—": "-",
    "━": "-",
    "…": "...",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "±": "+-",
    "µ": "u",
    "·": ".",
    "²": "^2",
    "³": "^3",
}
"""For streams that have only ASCII letters."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Of a disk there may be room on again; everything else means that nobody reads any more."""


def visible(text: str, *, lines: bool = True) -> str:
    r"""Return a text in which nothing commands a terminal: control characters are shown as ``\x1b``.

    Parameters
    ----------
    text
        From wherever.
    lines
        Whether it may have lines and tabs; those of a name are shown as ``\n`` and ``\t``.
    """
    shown = _UNSEEN.sub(lambda found: _escape(found[0]), text)
    return shown if lines else _LAYOUT.sub(lambda found: _NAMES[found[0]], shown)


def say(text: str) -> None:
    """Print a text."""
    print(visible(text), flush=True)  # noqa: T201 - this is the one place


def say_data(text: str) -> None:
    """Print a text for programs, as it is: its maker has escaped what needs it (JSON, YAML)."""
    print(text, flush=True)  # noqa: T201 - this is the one place


def complain(text: str) -> None:
    """Print a text on standard error."""
    print(visible(text), file=sys.stderr, flush=True)  # noqa: T201 - this is the one place


def has_room() -> bool:
    """Say whether standard output takes a line now, without waiting for a reader that has fallen asleep."""
    try:
        return bool(select.select([], [sys.stdout.fileno()], [], 0)[1])
    except (OSError, ValueError):
        return True


class Output:
    """A text stream that drops what it cannot write.

    Parameters
    ----------
    inner
        The stream it writes to.

    Attributes
    ----------
    lost
        Why something was dropped though somebody wants it (a full disk); None if nothing was.
    """

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            self._inner.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write, or drop."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            self._inner.flush()
        except OSError as error:
            self._drop(error)

    def end(self) -> None:
        """Write what is left; what does not get out now never will, and Python must not complain of it at its exit."""
        self.flush()
        if self.lost is not None:
            self._forsake()
            with suppress(OSError):
                self._inner.flush()

    def _drop(self, error: OSError) -> None:
        if error.errno in _FULL:
            self.lost = error
        else:
            self._forsake()

    def _forsake(self) -> None:
        """Let the stream lead nowhere."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._inner.fileno())
            os.close(nowhere)


_optional = False


def only_accompany() -> None:
    """Declare that what is printed from here on accompanies a run, so that its exit code stands, read or not."""
    global _optional  # noqa: PLW0603 - one process, one standard output
    _optional = True


def guard_output() -> None:
    """Guard both streams for the rest of the process's life."""
    _fill_gaps()
    sys.stdout, sys.stderr = _guarded(sys.stdout, 1), _guarded(sys.stderr, 2)


@contextmanager
def guarded_output() -> Iterator[None]:
    """Guard both streams for the block.

    Raises
    ------
    hpc.errors.OutputError
        At the end, if a full disk has swallowed an answer: not of what `only_accompany` has declared a run's.
    """
    global _optional  # noqa: PLW0603 - one process, one standard output
    _optional = False
    before = sys.stdout, sys.stderr
    spelling = [getattr(stream, "errors", None) for stream in before]
    guard_output()
    ours = cast("tuple[Output, Output]", (sys.stdout, sys.stderr))
    try:
        yield
    finally:
        for stream, inner, errors in zip(ours, before, spelling, strict=True):
            stream.end()
            if isinstance(inner, io.TextIOWrapper) and errors:
                inner.reconfigure(errors=errors)
        sys.stdout, sys.stderr = before
    if ours[0].lost is not None and not _optional:
        msg = f"standard output cannot be written ({ours[0].lost.strerror}); what was asked for is not all there"
        raise OutputError(msg)


def _fill_gaps() -> None:
    """Open what the caller has closed (``>&-``): the next file that is opened would become standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _guarded(stream: Any, number: int) -> TextIO:
    if isinstance(stream, Output):
        return cast("TextIO", stream)
    if stream is None:
        stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good, and no path
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="tessera.spelled")
    return cast("TextIO", Output(stream))


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Stand in for letters that a stream has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_SPELLED.get(letter) or _escape(letter) for letter in letters), error.end


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte of a path that is no UTF-8
        code -= 0xDC00
    return _NAMES.get(letter) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


codecs.register_error("tessera.spelled", _spell)
