"""Truncated conjugate gradients: a trust-region step for many parameters, without a factorisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tessera.lsq.quadratic import Vector


def steihaug(
    product: Callable[[Vector], Vector], gradient: Vector, radius: float, *, tolerance: float, most: int
) -> Vector:
    """Minimise ``g·d + ½ d·H d`` roughly, within ``|d| <= radius``.

    Steihaug (1983), "The conjugate gradient method and trust regions in large scale optimization": conjugate gradients
    from zero grow monotonously, so the first iterate that would leave the region is cut off at its boundary.

    Parameters
    ----------
    product
        H times a vector, H positive semidefinite.
    gradient
        g, shape (p,).
    radius
        May be infinite.
    tolerance
        Stop when the residual has fallen to this fraction of the gradient.
    most
        Iterations at most.
    """
    d = np.zeros_like(gradient)
    r = -gradient
    way, square = r.copy(), float(r @ r)
    enough = tolerance**2 * square
    for _ in range(most):
        if square <= enough or square == 0:
            break
        bent = product(way)
        curvature = float(way @ bent)
        if curvature <= 0:
            return d + _to_boundary(d, way, radius) * way if np.isfinite(radius) else d
        length = square / curvature
        if np.linalg.norm(d + length * way) >= radius:
            return d + _to_boundary(d, way, radius) * way
        d = d + length * way
        r = r - length * bent
        square, last = float(r @ r), square
        way = r + square / last * way
    return d


def _to_boundary(d: Vector, way: Vector, radius: float) -> float:
    """Return how far along ``way`` the boundary is."""
    a, b, c = float(way @ way), float(d @ way), float(d @ d) - radius**2
    return float((-b + np.sqrt(max(b * b - a * c, 0.0))) / a)
