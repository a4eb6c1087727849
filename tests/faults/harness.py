"""The fault harness: makes runs, lets a fault strike, resumes, and compares with the undisturbed run bit by bit.

A *scenario* is a configuration of the toy workload (a map and a loop on one run) with the truth of its undisturbed
run. A *kind* of fault is a function that takes a `Harness` and a random generator, makes a run directory on
which one or more faults have struck, and returns it as a `Struck`; the harness resumes it on 1, 2 or 3 ranks
and judges what came out.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from devslurm import Node
from workers import CHECKOUT, PATIENCE, Worker, child_environment

from hpc.errors import LockedError, TesseraError
from hpc.rundir import RunDir
from hpc.store.segments import Segment

sys.path.append(str(CHECKOUT / "tests" / "hpc"))  # the toy workload: retrying asks it for its stages
HANG = 10.0
"""Seconds for anything to end after its fault, however busy the machine: what takes longer counts as a hang. (An
undisturbed run takes one or two.)"""
RECYCLE = 40
"""Attempts after which the MPI ranks are started anew: they keep threads and windows of every attempt."""

Arrays = dict[str, dict[str, bytes]]


@dataclass(frozen=True)
class Truth:
    """What an undisturbed run leaves: its results files and, bit by bit, every unit's arrays."""

    code: int
    files: dict[str, bytes]
    units: Arrays


@dataclass(frozen=True)
class Scenario:
    """A configuration whose truth is known."""

    name: str
    config: dict[str, Any]
    truth: Truth


@dataclass(frozen=True)
class Struck:
    """A run directory after its faults.

    Attributes
    ----------
    faults
        How many struck; 0 if the run was over before they could (it is judged, but not counted).
    ranks
        On how many to resume; None leaves it to the harness.
    done
        The run needs no resume: it went on by itself.
    """

    path: Path
    scenario: Scenario
    faults: int = 1
    ranks: int | None = None
    done: bool = False


Kind = Callable[["Harness", np.random.Generator], Struck]


@dataclass
class Row:
    """The table's line for one kind of fault."""

    kind: str
    injected: int = 0
    recovered: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    hung: list[float] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


@dataclass
class Harness:
    """Everything a kind of fault needs: a scratch folder, workers, scenarios and the table.

    Parameters
    ----------
    scratch
        An empty folder; run directories are made in it and removed when they were judged right.
    node
        Returns a node of a SLURM cluster that is this harness's alone; None where there can be none.
    """

    scratch: Path
    node: Callable[[], Node] | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    stock: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = (self.scratch / f"run-{n:05d}" for n in itertools.count())
        self._forks: Worker | None = None
        self._ranks: Worker | None = None
        self._hung: list[float] = []  # of the kind that strikes now

    def close(self) -> None:
        """End the workers."""
        for worker in (self._forks, self._ranks):
            if worker is not None:
                worker.close()

    def scenario(self, name: str = "plain", *, like: Scenario | None = None, **changes: Any) -> Scenario:
        """Return a scenario, after running it undisturbed the first time; ``like`` another, it has that one's truth."""
        if name not in self.scenarios:
            config = toy_config(**changes)
            truth = like.truth if like is not None else self._truth(config)
            self.scenarios[name] = Scenario(name, config, truth)
        return self.scenarios[name]

    def _truth(self, config: dict[str, Any]) -> Truth:
        path = self.prepare(config)
        code = self.attempt(path)
        return Truth(code, result_files(path), stored_units(path)[0])

    def new_path(self) -> Path:
        """Return a name for a run directory."""
        return next(self._names)

    def prepare(self, config: dict[str, Any], path: Path | None = None) -> Path:
        """Make a run directory, or make it ready for another attempt."""
        path = path or self.new_path()
        RunDir.prepare(path, {**config, "run": {"dir": str(path)}})
        return path

    def end_of(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of what a fault has struck; return the exit code."""
        with self.timed():
            return process.wait(PATIENCE)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done in the block as a hang if it takes longer than `HANG`."""
        begun = time.monotonic()
        try:
            yield
        finally:
            if (seconds := time.monotonic() - begun) > HANG:
                self._hung.append(seconds)

    def attempt(
        self,
        path: Path,
        *,
        fault: str = "",
        kill_after: float | None = None,
        file_limit: int = 0,
        clock: float = 0.0,
        lost_link: str = "",
    ) -> int:
        """Run one rank on a prepared run directory; return its exit code, negative for a signal."""
        self._forks = self._forks or Worker(["fork"], 1, self.scratch / "forks.err")
        with self.timed():
            return self._forks.ask(
                path=str(path),
                output=str(output_of(path)),
                fault=fault,
                kill_after=kill_after,
                file_limit=file_limit,
                clock=clock,
                lost_link=lost_link,
            )

    def passed(self, path: Path) -> int:
        """Return how many points of the write protocol the last attempt passed that had a fault to wait for."""
        return int(output_of(path).with_suffix(".passed").read_text())

    def resume(self, path: Path, config: dict[str, Any], ranks: int) -> int:
        """Run the directory again, undisturbed, on so many ranks; return the exit code."""
        self._prepare_when_free(config, path)
        if ranks == 1:
            return self.attempt(path)
        if self._ranks is not None and (self._ranks.count >= RECYCLE or not self._ranks.alive):
            self._ranks.close()
            self._ranks = None
        self._ranks = self._ranks or Worker(["ranks"], 3, self.scratch / "ranks.err")
        with self.timed():
            return self._ranks.ask(path=str(path), ranks=ranks)

    def _prepare_when_free(self, config: dict[str, Any], path: Path) -> None:
        """Prepare; the struck attempt may still be on its way out with the lock in its hand."""
        end = time.monotonic() + 60
        while True:
            try:
                return self.prepare(config, path)
            except LockedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def strike(self, name: str, kind: Kind, seed: tuple[int, ...]) -> None:
        """Let one fault of a kind strike, resume, judge, and count."""
        rng = np.random.default_rng(seed)
        row = self.rows.setdefault(name, Row(name))
        self._hung = row.hung
        try:
            struck = kind(self, rng)
            ranks = struck.ranks or int(rng.choice([1, 1, 2, 3]))
            code = struck.scenario.truth.code
            if not struck.done:
                code = self.resume(struck.path, struck.scenario.config, ranks)
            verdict = judge(struck.path, struck.scenario.truth, code)
        except (AssertionError, TesseraError, TimeoutError) as error:
            row.injected += 1
            row.stuck.append(f"{name} {seed}: {error!r}")
            return
        row.injected += struck.faults
        row.recovered += struck.faults * verdict.right
        row.lost += verdict.lost
        row.doubled += verdict.doubled
        row.wrong += verdict.wrong
        if verdict.right:
            remove(struck.path)
        else:
            said = output_of(struck.path).read_text()[-1500:] if output_of(struck.path).exists() else ""
            row.stuck.append(f"{name} {seed}, resumed on {ranks} ranks, exit {code}: {struck.path}: {verdict}\n{said}")

    def table(self) -> str:
        """Return the table of all faults so far."""
        hangs = f"hangs over {HANG:g} s"
        heads = ("fault", "injected", "recovered", "units lost", "units doubled", "wrong results", hangs)
        rows = [(r.kind, r.injected, r.recovered, r.lost, r.doubled, r.wrong, len(r.hung)) for r in self.rows.values()]
        total = ("total", *(sum(int(row[i]) for row in rows) for i in range(1, len(heads))))
        lines = [heads, *rows, total]
        widths = [max(len(str(line[i])) for line in lines) for i in range(len(heads))]
        text = [
            "| " + " | ".join(f"{v!s:{'<' if i == 0 else '>'}{widths[i]}}" for i, v in enumerate(line)) + " |"
            for line in lines
        ]
        rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
        return "\n".join([text[0], rule, *text[1:]])

    def complaints(self) -> list[str]:
        """Return what went wrong, with seeds; empty if nothing did."""
        return [text for row in self.rows.values() for text in row.stuck]

    def hangs(self) -> list[str]:
        """Return what took long to end."""
        return [f"{row.kind}: {seconds:.1f} s" for row in self.rows.values() for seconds in row.hung]


@dataclass(frozen=True)
class Verdict:
    """What a resumed run is worth."""

    code: int
    finished: bool
    lost: int
    doubled: int
    wrong: int

    @property
    def right(self) -> bool:
        return self.finished and not (self.lost or self.doubled or self.wrong)


def judge(path: Path, truth: Truth, code: int) -> Verdict:
    """Compare a run with the truth: results byte by byte, units bit by bit, each once."""
    units, doubled = stored_units(path)
    files = result_files(path)
    lost = len(truth.units.keys() - units.keys())
    wrong = sum(units[key] != truth.units[key] for key in units if key in truth.units)
    wrong += len(units.keys() - truth.units.keys())
    finished = code == truth.code
    if finished:  # an unfinished run has no results yet
        wrong += sum(files.get(name) != content for name, content in truth.files.items())
    return Verdict(code, finished, lost if finished else 0, doubled, wrong)


def stored_units(path: Path) -> tuple[Arrays, int]:
    """Return every unit's arrays as bytes with type and shape, and how many units are stored twice."""
    units: Arrays = {}
    doubled = 0
    for file in sorted((path / "checkpoints").glob("*/seg-*.h5")):
        segment = Segment(file)
        for key in segment.keys:
            doubled += key in units
            units[key] = {n: _fingerprint(a) for n, a in segment[key].items()}
    return units, doubled


def _fingerprint(array: np.ndarray) -> bytes:
    return f"{array.dtype.str}{array.shape}".encode() + array.tobytes()


def result_files(path: Path) -> dict[str, bytes]:
    """Return the results files' content."""
    return {p.name: p.read_bytes() for p in sorted((path / "results").glob("*")) if p.is_file()}


def toy_config(
    *, units: int = 12, steps: int = 8, every: str | float = "2 steps", of: str = "toyjob.ToyJob", **options: Any
) -> dict[str, Any]:
    """Return the configuration of a small run with several segments and generations."""
    job = {"_target_": of, "name": "toy", "units": units, "steps": steps, "seconds": 0.002}
    return {
        "job": {**job, **options},
        "cluster": {"ranks": 1, "threads_per_process": 1},
        "checkpoint": {"every": every, "keep": 2, "deadline": 20.0},
        "engine": {"heartbeat": 0.1, "max_unit_deaths": 3},
        "seed": 5,
    }


def tessera(*words: str | Path, codes: Iterable[int] = (0,), **environment: str) -> str:
    """Run the command; fail unless it ends with one of some codes; return what it printed."""
    command = [sys.executable, "-m", "hpc", *map(str, words)]
    wide = {**child_environment(), "COLUMNS": "250", **environment}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, timeout=PATIENCE)
    said = done.stdout + done.stderr
    assert done.returncode in codes, f"tessera {' '.join(map(str, words))}: exit {done.returncode}: {said}"
    return said


def output_of(path: Path) -> Path:
    """Where a run's attempts write what they say."""
    return path.with_name(f"{path.name}.out")


def remove(path: Path) -> None:
    """Delete a run and what belongs to it."""
    shutil.rmtree(path, ignore_errors=True)
    for file in path.parent.glob(f"{path.name}.*"):
        file.unlink()
