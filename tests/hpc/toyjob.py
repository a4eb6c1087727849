"""A made-up workload for the engine's tests: a map whose result is known, and a loop on top of it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hpc import Arrays, Context, Job, Loop, Map, Range, Results, Stage, Unit


@dataclass(frozen=True)
class ToyOptions:
    units: Annotated[int, Range(ge=0)] = 20
    seconds: Annotated[float, Range(ge=0)] = 0.0  # of a unit of average cost
    skew: Annotated[float, Range(ge=0)] = 0.0  # the largest unit costs 1 + skew times the smallest
    steps: Annotated[int, Range(ge=0)] = 0  # of the loop; 0 leaves the loop out
    chunks: Annotated[int, Range(ge=1)] = 7
    fail: tuple[str, ...] = ()  # units that raise
    fail_once: tuple[str, ...] = ()  # units that raise on the first try of a run
    kill: tuple[str, ...] = ()  # units that kill their process
    unstorable: tuple[str, ...] = ()  # units, or the loop, that return what cannot be stored
    slow: tuple[str, ...] = ()  # units that take an hour, on the first try of a run
    fail_setup_on: int = -1  # rank whose setup raises
    complaint: str = ""  # what the job says of its finished results
    scratch: Path | None = None  # remembers tries between attempts
    numeric: bool = False  # units multiply matrices and take exponentials, in whose last bits kernels differ
    factor: Path | None = None  # input file: a number that all squares are multiplied by
    folder: Path | None = None  # input folder, of which nothing is read


class Squares(Map):
    """Unit k returns random numbers of its own stream and k squared."""

    name = "squares"

    def __init__(self, options: ToyOptions, factor: Callable[[], float] = lambda: 1.0) -> None:
        self.options = options
        self.factor = factor

    def units(self, ctx: Context) -> Sequence[Unit]:
        o = self.options
        return [Unit(f"u{k:05d}", 1.0 + o.skew * k / max(1, o.units - 1)) for k in range(o.units)]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        o = self.options
        if o.seconds:
            time.sleep(o.seconds * unit.cost / (1 + o.skew / 2))
        if unit.key in o.slow and self._first_try(unit.key):
            time.sleep(3600)
        if unit.key in o.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.key in o.fail:
            msg = f"poisoned {unit.key}"
            raise ValueError(msg)
        if unit.key in o.fail_once and self._first_try(unit.key):
            msg = f"first try of {unit.key}"
            raise ValueError(msg)
        k = int(unit.key[1:])
        if unit.key in o.unstorable:
            return {"square": np.float64(k), "when": np.zeros(2, "M8[s]")}
        if o.numeric:
            matrix = ctx.rng(unit.key).normal(size=(90, 70))
            return {"product": matrix.T @ matrix, "exp": np.exp(matrix), "square": np.float64(k * k)}
        return {
            "noise": ctx.rng(unit.key).normal(size=1 + k % 5),
            "square": np.float64(k * k) * self.factor(),
            "name": np.array([unit.key, "ü"]),
            "image": np.arange(6, dtype=np.float32).reshape(2, 3) + k,
        }

    def _first_try(self, key: str) -> bool:
        assert self.options.scratch is not None
        mark = self.options.scratch / f"tried-{key}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def merge(self, results: Results, ctx: Context) -> None:
        digest = hashlib.sha256()
        total = 0.0
        for key, arrays in results.items():
            digest.update(key.encode())
            for name in sorted(arrays):
                digest.update(arrays[name].tobytes())
            total += float(arrays["square"])
        (ctx.results_dir / "squares.txt").write_text(f"{len(results)} {total:.0f} {digest.hexdigest()}\n")


class Walk(Loop):
    """A chaotic recursion on sums over chunks: any changed bit shows after some steps."""

    name = "walk"

    def __init__(self, options: ToyOptions) -> None:
        self.options = options

    def start(self, ctx: Context) -> Arrays:
        odd = {"when": np.zeros(2, "M8[s]")} if self.name in self.options.unstorable else {}
        return {"x": np.linspace(0.1, 0.2, 5), "n": np.int64(0), **odd}

    def step(self, state: Arrays, ctx: Context) -> Arrays:
        if self.options.seconds:
            time.sleep(self.options.seconds)
        n = self.options.chunks
        parts = ({"s": np.sin(state["x"] * (1 + c) / 3.0)} for c in ctx.my_chunks(n))
        total = ctx.sum_chunks(n, parts)["s"]
        return {"x": np.mod(3.9 * state["x"] * (1 - state["x"]) + 0.01 * total, 1.0), "n": state["n"] + 1}

    def done(self, state: Arrays) -> bool:
        return int(state["n"]) >= self.options.steps

    def steps(self, state: Arrays) -> tuple[int, int]:
        return int(state["n"]), self.options.steps

    def figures(self, state: Arrays) -> dict[str, float | str]:
        return {"phase": "walk", "x": float(state["x"][0]), "unknown": float("nan")}

    def finish(self, state: Arrays, ctx: Context) -> None:
        (ctx.results_dir / "walk.txt").write_text(state["x"].tobytes().hex() + "\n")


class ToyJob(Job):
    Options = ToyOptions

    def __init__(self, options: Any) -> None:
        self.options: ToyOptions = options
        self.table = np.zeros(0)
        self.factor = 1.0

    def inputs(self) -> list[Path]:
        return [path for path in (self.options.factor, self.options.folder) if path is not None]

    def setup(self, ctx: Context) -> None:
        if ctx.rank == self.options.fail_setup_on:
            msg = "this rank cannot set up"
            raise RuntimeError(msg)

        def fill(array: np.ndarray, part: int, parts: int) -> None:
            array[part::parts] = np.arange(100)[part::parts]

        if self.options.factor is not None:
            self.factor = float(self.options.factor.read_text().split()[0])
        self.table = ctx.shared((100,), np.float64, fill)
        assert self.table.sum() == 4950

    def stages(self) -> Sequence[Stage]:
        stages: list[Stage] = [Squares(self.options, lambda: self.factor)]
        if self.options.steps:
            stages.append(Walk(self.options))
        return stages

    def complaint(self, ctx: Context) -> str | None:
        return self.options.complaint or None
