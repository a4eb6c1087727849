"""Normalisation of the parameters for the warm-up: x = scale * z + offset."""

from __future__ import annotations

import numpy as np

from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Vector
from tessera.lsq.space import Space


def normalised(x0: Vector, lower: Vector, upper: Vector, config: HybridStreamingConfig) -> Space:
    """Return the normalisation that the options ask for.

    ``bounds`` maps the box to the unit cube, where both bounds are finite; ``p0`` the start values to ±1, where they
    are not zero; ``auto`` prefers the first, parameter by parameter. What a strategy cannot scale keeps scale 1.
    (The Gauss-Newton phase scales itself by the Jacobian and needs none of them.)
    """
    p = x0.size
    scale, offset = np.ones(p), np.zeros(p)
    strategy = config.normalization_strategy if config.normalize else "none"
    if strategy in {"p0", "auto"}:
        scale = np.where(x0 != 0, np.abs(x0), 1.0)
    if strategy in {"bounds", "auto"}:
        boxed = np.isfinite(lower) & np.isfinite(upper)
        width = np.where(boxed, np.where(boxed, upper, 1.0) - np.where(boxed, lower, 0.0), 1.0)
        scale, offset = np.where(boxed, width, scale), np.where(boxed, lower, offset)
    return Space(lower, upper, scale, offset)
