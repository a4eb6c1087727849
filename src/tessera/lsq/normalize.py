"""Normalisation of the parameters for the warm-up: x = scale * z + offset."""

from __future__ import annotations

import numpy as np

from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.lsq.space import Space


def normalised(
    x0: Vector, lower: Vector, upper: Vector, config: HybridStreamingConfig, first: Quadratic | None = None
) -> Space:
    """Return the normalisation that the options ask for.

    ``jacobian`` takes as unit of a parameter what changes the model by the spread of the data, to first order at the
    start; ``bounds`` maps the box to the unit cube, where both bounds are finite; ``p0`` the start values to ±1, where
    they are not zero. ``auto`` is the first where the first pass allows it, else p0: wide bounds, as they should be,
    make steps that are small in their unit huge for the model. What a strategy cannot scale keeps scale 1.

    Parameters
    ----------
    x0, lower, upper
        Start and bounds, shape (p,).
    config
        Options.
    first
        The pass at the start; None: there was none.
    """
    p = x0.size
    scale, offset = np.ones(p), np.zeros(p)
    strategy = config.normalization_strategy if config.normalize else "none"
    if strategy in {"p0", "auto"}:
        scale = np.where(x0 != 0, np.abs(x0), 1.0)
    if strategy in {"jacobian", "auto"} and first is not None:
        scale = _jacobian_scale(first, scale)
    if strategy == "bounds":
        boxed = np.isfinite(lower) & np.isfinite(upper)
        width = np.where(boxed, np.where(boxed, upper, 1.0) - np.where(boxed, lower, 0.0), 1.0)
        scale, offset = np.where(boxed, width, scale), np.where(boxed, lower, offset)
    return Space(lower, upper, scale, offset)


def _jacobian_scale(first: Quadratic, fallback: Vector) -> Vector:
    """Return √(n spread / Σ w² (∂f/∂x)²) for each parameter, with the cost for the spread where that is not known."""
    total = first.count * first.spread if first.spread else 2 * first.cost
    columns = np.diagonal(first.hessian)
    known = np.isfinite(columns) & (columns > 0)
    return np.where(known & (total > 0), np.sqrt(total / np.where(known, columns, 1.0)), fallback)
