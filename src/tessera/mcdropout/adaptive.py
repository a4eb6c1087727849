"""Passes until the trace of each image is known well enough, instead of the same number for all."""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np
from torch import Tensor

from tessera.mcdropout.errors import DrawError
from tessera.mcdropout.moments import effective_rank, trace_spread
from tessera.mcdropout.trial import Rows, TrialEngine, TrialResult

_FEWEST: Final = 4
"""Passes that an estimate of the effective rank needs at least to be worth anything."""


def run_adaptive(
    engine: TrialEngine,
    inputs: Tensor,
    images: Rows,
    *,
    seed: int,
    trial: int,
    most: int,
    least: int = 8,
    gate: float = 0.1,
    confidence: float = 0.95,
) -> TrialResult:
    """Make passes in rounds of `least`, and stop an image when the confidence interval of its trace is narrow.

    The relative standard deviation of a trace from T passes is ``sqrt(2 / ((T - 1) r))`` with r the effective rank of
    the covariance, estimated from the passes made so far. Whether an image stops depends on that image alone, and its
    passes are the first ones of the whole trial.

    Parameters
    ----------
    engine, inputs, images, seed, trial
        As in `TrialEngine.run`.
    most
        Passes after which an image stops whatever its interval.
    least
        Passes before an image may stop, and between two looks at it.
    gate
        Half width of the interval, relative to the trace.
    confidence
        Of the interval.

    Returns
    -------
    TrialResult
        `Moments.passes` tells where each image stopped; features (most, N, D) are NaN after it.

    Raises
    ------
    DrawError
        The gate, the confidence, or the numbers of passes make no sense, or the engine draws from the torch stream.
    """
    _check(engine, most, least, gate, confidence)
    sigmas = NormalDist().inv_cdf(0.5 + confidence / 2)
    with engine.computing():
        prepared = engine.prepare(inputs, images)
        moments = engine.empty_moments(prepared)
        features = prepared.reference.new_full((most, *prepared.reference.shape), float("nan"))
        rows, made = np.arange(len(images)), 0
        while len(rows) and made < most:
            stop = min(made + least, most)
            work = engine.features_of(prepared, images, rows, range(made, stop), seed=seed, trial=trial)
            for number, some, found in work:
                moments.add(some, found.to(moments.pre.shift.device))
                features[number, some] = found
            made = stop
            spread = trace_spread(effective_rank(features[:made, rows]), made)
            rows = rows[(sigmas * spread > gate).cpu().numpy()]
        return TrialResult(moments.cpu(), features.cpu().numpy())


def _check(engine: TrialEngine, most: int, least: int, gate: float, confidence: float) -> None:
    if engine.settings.rng == "torch":
        msg = "adaptive passes stop images one by one, which rng=torch cannot draw; use rng=philox"
        raise DrawError(msg)
    if not _FEWEST <= least <= most:
        msg = f"adaptive passes need {_FEWEST} <= least_passes <= passes; they are {least} and {most}"
        raise DrawError(msg)
    if not (gate > 0 and 0 < confidence < 1):
        msg = f"adaptive passes need a gate above 0 and a confidence inside (0, 1), not {gate} and {confidence}"
        raise DrawError(msg)
