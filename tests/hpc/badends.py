"""A made-up workload that comes to a bad end."""

from __future__ import annotations

import decimal
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc import Arrays, Context, Job, Loop, Map, Stage, Unit
from hpc.store import atomic


@dataclass(frozen=True)
class Options:
    how: str = ""
    signal: int = 0  # that the first process sends itself while the report is drawn
    megabytes: int = 0  # of the state


class Steps(Loop):
    name = "steps"

    def __init__(self, options: Options) -> None:
        self.options = options

    def start(self, ctx: Context) -> Arrays:
        return {"n": np.int64(0), "a": np.random.default_rng(1).random(self.options.megabytes * 131072)}

    def step(self, state: Arrays, ctx: Context) -> Arrays:
        if self.options.how == "raise" and state["n"] == 3:
            time.sleep(0.05)  # the writer is in the middle of the state before this
            msg = "the model is not finite"
            raise FloatingPointError(msg)
        if self.options.how == "figures":
            time.sleep(0.1)
        return {"n": np.int64(state["n"] + 1), "a": state["a"]}

    def done(self, state: Arrays) -> bool:
        return int(state["n"]) >= (300 if self.options.how == "figures" else 5)

    def steps(self, state: Arrays) -> tuple[int, int]:
        return int(state["n"]), 5

    def figures(self, state: Arrays) -> dict[str, Any]:
        return {"n": state["n"], **({"price": decimal.Decimal(3)} if self.options.how == "figures" else {})}

    def finish(self, state: Arrays, ctx: Context) -> None:
        (ctx.results_dir / "n.txt").write_text(str(state["n"]))


class Units(Map):
    """One unit takes an hour, which a stop signal cannot wait for; the others are quick."""

    name = "units"

    def units(self, ctx: Context) -> Sequence[Unit]:
        return [Unit("long", 1000.0), *(Unit(f"u{k:03d}") for k in range(12))]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        time.sleep(3600 if unit.key == "long" else 0.02)
        return {"a": np.ones(3)}


class SlowDisk(Job):
    """Files become durable slowly on every rank but the first, as seen on shared file systems."""

    Options = Options

    def __init__(self, options: Any) -> None:
        pass

    def setup(self, ctx: Context) -> None:
        if ctx.rank > 0:
            true = atomic._fsync

            def slow(path: Path) -> None:
                time.sleep(1.0)
                true(path)

            atomic._fsync = slow

    def stages(self) -> Sequence[Stage]:
        return [Units()]


class BadEnd(Job):
    Options = Options

    def __init__(self, options: Any) -> None:
        self.options: Options = options

    def stages(self) -> Sequence[Stage]:
        return [Steps(self.options)]

    def report(self, run: Any) -> tuple[()]:
        if self.options.signal:
            os.kill(os.getpid(), signal.Signals(self.options.signal))
            time.sleep(0.5)
        return ()
