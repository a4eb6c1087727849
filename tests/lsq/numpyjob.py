"""A job whose objective is plain numpy: a fit as the engine runs it, without the seconds that JAX takes to start."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hpc.context import Context
from hpc.job import Job
from tessera.lsq.hybrid import Plan
from tessera.lsq.objective import Sum
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Quadratic
from tessera.lsq.stage import FitStage, Problem

CHUNKS, POINTS = 13, 400
T = np.linspace(0, 5, CHUNKS * POINTS).reshape(CHUNKS, POINTS)
Y = 1.4 * np.sin(2.2 * T + 0.3) * np.exp(-0.1 * T) + np.random.default_rng(8).normal(0, 0.05, T.shape)


@dataclass(frozen=True)
class FitOptions:
    starts: int = 1
    warmup: int = 0
    sandwich: bool = False
    seconds: float = 0.0
    profile: bool = False
    far: bool = False


@dataclass(frozen=True)
class Wave:
    """A damped wave: four parameters, thirteen chunks."""

    add: Sum
    seconds: float = 0.0
    names = ("a", "w", "phi", "g")

    def evaluate(self, x, *, order=2, single=False, scores=False):
        time.sleep(self.seconds)
        sums = self.add(CHUNKS, partial(self._chunks, np.asarray(x, float)))
        middle = sums.pop("scores")
        return Quadratic.from_sums(x, sums | ({"scores": middle} if scores else {}))

    def _chunks(self, x, mine) -> Iterator[dict[str, Any]]:
        a, w, phi, g = x
        for t, y in zip(T[mine.start : mine.stop], Y[mine.start : mine.stop], strict=True):
            e, s, c = np.exp(-g * t), np.sin(w * t + phi), np.cos(w * t + phi)
            r = a * s * e - y
            j = np.stack([s * e, a * t * c * e, a * c * e, -a * t * s * e])
            yield {
                "cost": np.array(0.5 * r @ r),
                "gradient": j @ r,
                "hessian": j @ j.T,
                "scores": (j * r**2) @ j.T,
                "count": np.array(t.size),
                "rejected": np.array(0),
            }


class NumpyFitJob(Job):
    Options = FitOptions

    def __init__(self, options):
        self.options = options

    def stages(self):
        return [FitStage(self._problem, self._write, profile=self.options.profile)]

    def _problem(self, ctx: Context) -> Problem:
        o = self.options
        config = HybridStreamingConfig(
            enable_multistart=o.starts > 1,
            n_starts=o.starts,
            warmup_iterations=o.warmup,
            max_warmup_iterations=o.warmup,
            enable_warm_start_detection=o.warmup == 0,
            active_switching_criteria=("max_iter",),
        )
        low, high = np.array([0.1, 0.1, -3.2, 0.0]), np.array([5.0, 6.0, 3.2, 2.0])
        x0 = np.array([4.5, 2.7, 2.0, 0.01] if o.far else [1.0, 1.8, 0.0, 0.3])
        build = partial(Wave, seconds=o.seconds)
        return Problem(build, x0, low, high, Plan(config), sandwich=o.sandwich, last=self._last)

    def _last(self, objective, x):
        return {"again": np.array(objective.evaluate(x, order=0).cost)}

    def _write(self, result, extra, ctx: Context) -> None:
        record = {name: value.hex() for name, value in zip(result.names, map(float, result.x), strict=True)}
        record |= {"covariance": result.covariance.tobytes().hex(), "history": result.history.tobytes().hex()}
        record |= {"status": result.status.name, "again": float(extra["again"]).hex(), "passes": result.evaluations}
        (ctx.results_dir / "fit.json").write_text(json.dumps(record, sort_keys=True))
