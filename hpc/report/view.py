"""What a workload sees of a finished run when it draws its part of the report, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture of the report.

    Attributes
    ----------
    image
        The bytes of a PNG or SVG file; they are embedded, so that the page is self-contained.
    caption
        One or two sentences that say what is seen and what would be a bad sign.
    """

    image: bytes
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report; cells are shown as given (floats with four significant digits)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A headed part of the report: text, then tables, then figures."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    figures: Sequence[Figure] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it lies on disk.

    Attributes
    ----------
    path
        The run directory.
    config
        The resolved configuration (``config.yaml``).
    events
        The records of ``events.jsonl``, in order.
    timings
        Seconds by name, as recorded with ``ctx.timed(name)``: the longest over the ranks.
    left_out
        Sentences on what could not be read, so that the page lacks it.
    """

    path: Path
    config: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    timings: Mapping[str, float]
    left_out: Sequence[str] = ()

    @property
    def results_dir(self) -> Path:
        """Where the job wrote what the scientist came for."""
        return self.path / "results"
