"""When each stage ran and how busy each rank was, as a picture made from the run's events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from hpc.report.html import escape

PALETTE: Final = ("#4c8fb0", "#d98b4a", "#6aa56e", "#a877b8", "#c4646a", "#8c8451", "#5d7fc4", "#b0739a")
"""Colours of the stages, in their order; readable on light and dark."""

_WIDTH: Final = 1000
_LEFT: Final = 64
_LANE: Final = 20
_ROWS: Final = 360
_RANKS: Final = 100_000
"""More are not drawn; a damaged record may name rank 4,000,000."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the run: its records, and the seconds of work before it in earlier attempts."""

    events: Sequence[Mapping[str, Any]]
    offset: float

    @property
    def start(self) -> float:
        """Epoch of its first record."""
        return float(self.events[0]["t"])

    @property
    def seconds(self) -> float:
        """From its first to its last record."""
        return max(0.0, float(self.events[-1]["t"]) - self.start)


@dataclass(frozen=True, slots=True)
class Span:
    """A stage in an attempt, in seconds of work since the run began; ``ranks`` only if it was completed."""

    stage: str
    begin: float
    end: float
    ranks: Sequence[Mapping[str, Any]]


def attempts(events: Sequence[Mapping[str, Any]]) -> list[Attempt]:
    """Split the records of a run into its attempts."""
    starts = [i for i, event in enumerate(events) if event["event"] == "run_start"]
    found: list[Attempt] = []
    for begin, end in pairwise([*starts, len(events)]):
        offset = found[-1].offset + found[-1].seconds if found else 0.0
        found.append(Attempt(events[begin:end], offset))
    return found


def spans(attempt: Attempt) -> list[Span]:
    """Return the stages of an attempt; one that was interrupted lasts until the attempt's last record."""
    found = []
    for number, event in enumerate(attempt.events):
        if event["event"] != "stage_start":
            continue
        later = attempt.events[number + 1 :]
        last = next((e for e in later if e["event"] == "stage_end" and e["stage"] == event["stage"]), None)
        end = last or attempt.events[-1]
        begin_at, end_at = (attempt.offset + float(e["t"]) - attempt.start for e in (event, end))
        begin_at, end_at = max(0.0, begin_at), max(0.0, begin_at, end_at)  # clocks are set back
        found.append(Span(str(event["stage"]), begin_at, end_at, end.get("ranks", ())))
    return found


def timeline(events: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """Return an SVG: a lane of stages, then a row for each rank, time spent in units filled.

    Parameters
    ----------
    events
        The records of ``events.jsonl``.
    colours
        Of each stage.

    Returns
    -------
    str
        SVG text, or nothing if the run has no completed stage yet.
    """
    tries = attempts(events)
    parts = [span for attempt in tries for span in spans(attempt)]
    total = sum(attempt.seconds for attempt in tries)
    rank_count = 1 + max((int(r["rank"]) for span in parts for r in span.ranks), default=-1)
    if not 0 < rank_count <= _RANKS or total <= 0:
        return ""
    scale = (_WIDTH - _LEFT - 8) / total
    row = max(2.0, min(18.0, _ROWS / rank_count))
    height = _LANE + 8 + row * rank_count + 24
    shapes = [_ticks(total, scale, height)]
    shapes += [_stage(span, scale, colours) for span in parts]
    shapes += [_rank(span, rank, scale, row, colours) for span in parts for rank in span.ranks]
    shapes += [_label(number, row) for number in range(rank_count) if row >= 10 or number % 16 == 0]
    shapes += [_break(attempt.offset, scale, height) for attempt in tries[1:]]
    return (
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="stages and ranks over time">{"".join(shapes)}</svg>'
    )


def _x(seconds: float, scale: float) -> float:
    return _LEFT + seconds * scale


def _stage(span: Span, scale: float, colours: Mapping[str, str]) -> str:
    x, width = _x(span.begin, scale), max(1.0, (span.end - span.begin) * scale)
    title = f"{span.stage}: {span.end - span.begin:.2f} s"
    name = f'<text x="{x + 5:.1f}" y="14" style="fill:#fff">{escape(span.stage)}</text>'
    box = f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{_LANE}" rx="2" fill="{colours[span.stage]}">'
    return f"{box}<title>{escape(title)}</title></rect>" + (name if width > 8 * len(span.stage) + 8 else "")


def _rank(span: Span, rank: Mapping[str, Any], scale: float, row: float, colours: Mapping[str, str]) -> str:
    x, y = _x(span.begin, scale), _LANE + 8 + row * int(rank["rank"])
    busy, wall = float(rank.get("busy", 0.0)), span.end - span.begin
    tall = row - min(3.0, row / 3)
    colour = colours[span.stage]
    title = escape(
        f"rank {rank['rank']}, {span.stage}: {rank.get('units', 0)} units, {busy:.2f} of {wall:.2f} s in units"
    )
    return (
        f'<g fill="{colour}"><title>{title}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, wall * scale):.1f}" height="{tall:.1f}" opacity="0.22"/>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{min(busy, wall) * scale:.1f}" height="{tall:.1f}"/></g>'
    )


def _label(rank: int, row: float) -> str:
    y = _LANE + 8 + row * (rank + 0.5) + 3
    return f'<text x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end">rank {rank}</text>'


def _ticks(total: float, scale: float, height: float) -> str:
    step = next(
        (s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 7200, 21600) if total / s <= 10),
        86400.0 * math.ceil(total / 864000),
    )
    unit, name = (1.0, "s") if step < 60 else (60.0, "min") if step < 3600 else (3600.0, "h")
    shapes = []
    for number in range(int(total / step) + 1):
        x = _x(number * step, scale)
        shapes.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{_LANE + 4}" y2="{height - 18:.0f}"/>')
        label = f"{number * step / unit:g} {name}"
        shapes.append(f'<text x="{x:.1f}" y="{height - 5:.0f}" text-anchor="middle">{label}</text>')
    return "".join(shapes)


def _break(offset: float, scale: float, height: float) -> str:
    x = _x(offset, scale)
    line = f'<line class="break" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 18:.0f}"/>'
    return f"<g><title>stopped and resumed</title>{line}</g>"
