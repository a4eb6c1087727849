"""A made-up workload that comes to a bad end."""

from __future__ import annotations

import decimal
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc import Arrays, Context, Job, Loop, Stage


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
