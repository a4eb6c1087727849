"""A map of very many small units, for the checkpoint benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc import Arrays, Context, Job, Map, Stage, Unit


@dataclass(frozen=True)
class SmallOptions:
    """How many units, and how often each repeats its little computation."""

    units: int = 100_000
    repeat: int = 1


class Small(Map):
    """Every unit returns five small arrays, after about 0.2 ms of numpy for each repeat."""

    name = "small"

    def __init__(self, options: SmallOptions) -> None:
        self.options = options

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List the units."""
        del ctx
        return [Unit(f"u{k:06d}") for k in range(self.options.units)]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Compute one."""
        noise = ctx.rng(unit.key).normal(size=64)
        for _ in range(self.options.repeat):
            spectrum = np.fft.rfft(np.sort(np.tile(noise, 64)))
        return {
            "flux": noise[:5],
            "position": noise[5:7],
            "covariance": np.outer(noise[:4], noise[:4]),
            "spectrum": np.abs(spectrum[:8]).astype(np.float32),
            "flag": np.int32(noise[0] > 0),
        }


class SmallJob(Job):
    """The job of one stage."""

    Options = SmallOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    def stages(self) -> Sequence[Stage]:
        """Return the stage."""
        return [Small(self.options)]
