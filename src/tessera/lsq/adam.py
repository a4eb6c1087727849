"""Adam (Kingma & Ba 2015, algorithm 1) with a learning-rate schedule, as a state that each gradient advances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Vector

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8


@dataclass(frozen=True, slots=True)
class Adam:
    """Running moments of the gradient.

    Attributes
    ----------
    rate
        Learning rate, in normalised parameters per step, before the schedule.
    mean, square
        Moments, shape (p,).
    count
        Gradients seen.
    """

    rate: float
    mean: Vector
    square: Vector
    count: int

    @classmethod
    def start(cls, p: int, rate: float) -> Adam:
        """Return a state that has seen no gradient of ``p`` parameters."""
        return cls(rate, np.zeros(p), np.zeros(p), 0)

    def update(self, gradient: Vector, config: HybridStreamingConfig) -> tuple[Vector, Adam]:
        """Return the step against this gradient, and the state that has seen it."""
        count = self.count + 1
        mean = _BETA1 * self.mean + (1 - _BETA1) * gradient
        square = _BETA2 * self.square + (1 - _BETA2) * gradient**2
        rate = self.rate * schedule(self.count, config) if config.use_learning_rate_schedule else self.rate
        corrected = np.sqrt(square / (1 - _BETA2**count)) + _EPSILON
        return -rate * (mean / (1 - _BETA1**count)) / corrected, Adam(self.rate, mean, square, count)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state as named arrays."""
        return {
            "rate": np.asarray(self.rate),
            "mean": self.mean,
            "square": self.square,
            "count": np.asarray(self.count),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Adam:
        """Return the state that `to_arrays` described."""
        return cls(float(arrays["rate"]), arrays["mean"], arrays["square"], int(arrays["count"]))


def schedule(count: int, config: HybridStreamingConfig) -> float:
    """Return the factor on the rate at step ``count``: a linear rise, then half a cosine down to the end value.

    The end value is relative to the exploration rate, as in optax's ``warmup_cosine_decay_schedule`` that NLSQ used.
    """
    rise, fall = config.lr_schedule_warmup_steps, config.lr_schedule_decay_steps
    if count < rise:
        return (count + 1) / (rise + 1)
    end = min(1.0, config.lr_schedule_end_value / config.warmup_learning_rate)
    share = min(1.0, (count - rise) / fall)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share))
