"""``failure.json``: which rank failed, where and why, in the last attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpc.store.plain import read_json
from hpc.watch.fields import record

AFTERGLOW: Final = 10.0
"""Seconds for which the other ranks may still write progress after one has failed."""

_TAIL: Final = 15
"""Lines of a log or traceback that are quoted; the rest is in the file."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What the failing rank left; ``rank`` is None and ``traceback`` empty where it could not leave a word itself.

    Attributes
    ----------
    error
        Type and text of the exception.
    message
        Its text alone.
    expected
        Whether it was raised on purpose, so that its message says all.
    """

    error: str
    rank: int | None = None
    host: str = ""
    stage: str = ""
    unit: str = ""
    message: str = ""
    expected: bool = False
    traceback: str = ""

    @property
    def told(self) -> str:
        """``rank 3 (host) failed in stage patches, unit k: ValueError: …``, as far as it is known."""
        cause = self.message if self.expected else self.error
        if self.rank is None or (self.expected and not self.stage):
            return cause
        host = f" ({self.host})" if self.host else ""
        stage = f" in stage {self.stage}" if self.stage else ""
        unit = f", unit {self.unit}" if self.unit else ""
        return f"rank {self.rank}{host} failed{stage}{unit}: {cause}"

    @property
    def quoted(self) -> str:
        """The end of the traceback; empty for an error that was raised on purpose, which it would only bury."""
        return "" if self.expected else last_lines(self.traceback)


def read_failure(run: Path) -> Failure | None:
    """Return what is left of a failed attempt; the file is removed when the next one starts.

    Progress that went on after it belongs to healthy ranks: what failed was a second start beside them.

    Raises
    ------
    OSError, ValueError
        If the file is damaged.
    """
    file, progress = run / "failure.json", run / "progress.json"
    try:
        values = read_json(file)
        outlived = progress.exists() and progress.stat().st_mtime - file.stat().st_mtime > AFTERGLOW
    except FileNotFoundError:
        return None
    if isinstance(values, dict):  # what a rank could not say is null
        values = {key: value for key, value in values.items() if value is not None}
    failure = record(Failure, values)
    return None if outlived else failure


def last_lines(text: str) -> str:
    """Return the end of a text, indented, saying how much is left out."""
    lines = text.strip().splitlines()
    cut = [f"… ({len(lines) - _TAIL} lines above)"] if len(lines) > _TAIL else []
    return "\n".join("  " + line for line in [*cut, *lines[-_TAIL:]])
