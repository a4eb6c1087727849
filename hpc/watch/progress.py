"""``progress.json``: how far the run is, replaced about once a second by rank 0."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from hpc.store.atomic import replace_json
from hpc.whereabouts import this_stay

SCHEMA: Final = 1
State = Literal["starting", "running", "stopping", "done", "failed", "stopped", "quarantined"]
_WINDOW: Final = 30.0
"""Seconds over which the rate is taken."""


@dataclass(slots=True)
class StageProgress:
    """Counts of one stage; ``saved`` of the ``done`` are durable, as far as rank 0 has heard."""

    name: str
    kind: str
    state: str = "pending"
    done: int = 0
    total: int = 0
    quarantined: int = 0
    restored: int = 0
    saved: int = 0
    seconds: float = 0.0
    figures: dict[str, float | str] = field(default_factory=dict)


@dataclass(slots=True)
class Pulse:
    """A rank's sign of life.

    ``saved`` units of the stage ``saved_of`` are durable; ``place`` and ``process_started`` say which process it is,
    see `hpc.process`.
    """

    rank: int
    host: str
    pid: int
    heartbeat: float
    unit: str | None = None
    done: int = 0
    busy: float = 0.0
    rss_mb: float = 0.0
    place: str = ""
    process_started: str = ""
    saved_of: str | None = None
    saved: int = 0


@dataclass
class Progress:
    """The record behind ``progress.json``; every method may be called from any thread."""

    path: Path | None
    attempt: int = 1
    size: int = 1
    threads: int = 1
    state: State = "starting"
    message: str = ""
    wish: str = ""
    stages: list[StageProgress] = field(default_factory=list)
    ranks: dict[int, Pulse] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._current = -1
        self._stage_start = time.monotonic()
        self._window: deque[tuple[float, int]] = deque()

    def plan(self, stages: Sequence[tuple[str, str]]) -> None:
        """List the stages as (name, kind)."""
        with self._lock:
            self.stages = [StageProgress(name, kind) for name, kind in stages]

    def begin(self, index: int, total: int, restored: int = 0, quarantined: int = 0) -> None:
        """Enter a stage of which ``restored`` units come from an earlier attempt."""
        with self._lock:
            self.state = "running"
            self._current = index
            stage = self.stages[index]
            stage.state, stage.total, stage.done = "running", total, restored
            stage.restored, stage.quarantined = restored, quarantined
            self._stage_start = time.monotonic()
            self._window = deque([(self._stage_start, restored)])

    def advance(self, done: int = 0, quarantined: int = 0) -> None:
        """Count finished and given-up units of the current stage."""
        with self._lock:
            stage = self.stages[self._current]
            stage.quarantined += quarantined
            self._count(stage, stage.done + done)

    def reach(self, done: int, total: int, figures: Mapping[str, float | str]) -> None:
        """Say how many steps of how many expected ones the current loop has made, and what it says of its state."""
        known = {k: _plain(v) for k, v in figures.items() if isinstance(v, str) or math.isfinite(v)}  # JSON has no NaN
        with self._lock:
            stage = self.stages[self._current]
            stage.total, stage.figures = total, known
            self._count(stage, done)

    def end(self) -> float:
        """Leave the current stage; return its seconds."""
        with self._lock:
            stage = self.stages[self._current]
            stage.state = "done"
            stage.saved = stage.done
            stage.seconds = time.monotonic() - self._stage_start
            return stage.seconds

    def skip(self, index: int, total: int, quarantined: int) -> None:
        """Note a stage that an earlier attempt completed."""
        with self._lock:
            stage = self.stages[index]
            stage.state, stage.total, stage.quarantined = "done", total, quarantined
            stage.done = stage.restored = stage.saved = total - quarantined

    @property
    def quarantined(self) -> int:
        """Units of all stages that were given up."""
        with self._lock:
            return sum(stage.quarantined for stage in self.stages)

    def pulse(self, pulse: Pulse) -> None:
        """Take a rank's sign of life."""
        with self._lock:
            self.ranks[pulse.rank] = pulse

    def snapshot(self) -> dict[str, Any]:
        """Return the content of ``progress.json``."""
        with self._lock:
            running = 0 <= self._current < len(self.stages) and self.stages[self._current].state == "running"
            rate, eta = self._rate() if running else (0.0, None)
            if running:
                stage = self.stages[self._current]
                stage.seconds = time.monotonic() - self._stage_start
                if stage.kind == "map":
                    saved = sum(rank.saved for rank in self.ranks.values() if rank.saved_of == stage.name)
                    stage.saved = stage.restored + saved
            return {
                "schema": SCHEMA,
                "state": self.state,
                "message": self.message,
                "wish": self.wish,
                "attempt": self.attempt,
                "stay": this_stay(),
                "stage": self.stages[self._current].name if running else None,
                "stages": [_as_record(stage) for stage in self.stages],
                "rate": rate,
                "eta": eta,
                "started": self.started,
                "updated": time.time(),
                "size": self.size,
                "threads": self.threads,
                "identity": dict(self.identity),
                "ranks": [asdict(self.ranks[r]) for r in sorted(self.ranks)],
            }

    def write(self) -> None:
        """Replace the file; a full disk costs the figure, never the run."""
        if self.path is not None:
            with suppress(OSError):
                replace_json(self.path, self.snapshot())

    def _count(self, stage: StageProgress, done: int) -> None:
        stage.done = done
        now = time.monotonic()
        self._window.append((now, done))
        while len(self._window) > 2 and now - self._window[1][0] > _WINDOW:
            self._window.popleft()

    def _rate(self) -> tuple[float, float | None]:
        stage = self.stages[self._current]
        (t0, n0), (_, n1) = self._window[0], self._window[-1]
        elapsed = time.monotonic() - t0
        if n1 <= n0 or elapsed <= 0:
            return 0.0, None
        rate = (n1 - n0) / elapsed
        if not stage.total:  # a loop that cannot know
            return rate, None
        return rate, max(0, stage.total - stage.done - stage.quarantined) / rate


def _plain(figure: float | str) -> float | str:
    """Return a number of numpy, which JSON does not take, as one of Python."""
    item = getattr(figure, "item", None)
    return figure if item is None else cast("float", item())


def _as_record(stage: StageProgress) -> dict[str, Any]:
    """Return the counts of a stage: what is durable was finished, also where the rank's receipt is still on its way."""
    return {**asdict(stage), "done": max(stage.done, stage.saved)}
