"""The local quadratic model of a cost: what one pass over the data yields, and all the optimizer ever sees of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""A vector of parameters, or of anything with one entry per parameter."""


@dataclass(frozen=True, slots=True)
class Quadratic:
    """Cost, gradient and Gauss-Newton matrix at one point, summed over all data.

    With weighted residuals r = w (f(x) - y) and loss rho: cost = ½ Σ rho(r²), gradient = Jᵀ(rho' r),
    hessian = Jᵀ(rho' J) (Triggs et al. 2000, eqs. 10-11, without the second-derivative term where it would make
    the matrix indefinite).

    Attributes
    ----------
    x
        Where it was taken: the parameters in the user's units, shape (p,). Where linear parameters are eliminated
        (variable projection) they are the optimal ones at the nonlinear parameters that were asked for.
    cost
        ½ Σ rho(r²); without a loss half the sum of squares.
    gradient
        Shape (p,), in units of cost per unit of parameter; zeros if it was not asked for.
    hessian
        Shape (p, p); zeros if it was not asked for.
    count
        Number of data points that took part: not masked, finite.
    rejected
        Number of data points left out because data or model were not finite.
    scores
        Σ (rho' r)² j jᵀ, shape (p, p): the middle of the sandwich covariance; None unless asked for.
    root
        Triangular factor of [J r], shape (p+1, p+1), of which hessian and gradient are products; known only where one
        chunk holds all data. With it the condition of J is not squared.
    power
        Σ (w f)²: the rounding error of the residuals is some eps √power. 0 if it is not known.
    spread
        Weighted variance of the data about their mean, twice the cost of the best constant per point; None if it is
        not known.
    """

    x: Vector
    cost: float
    gradient: Vector
    hessian: NDArray[np.float64]
    count: int
    rejected: int = 0
    scores: NDArray[np.float64] | None = None
    root: NDArray[np.float64] | None = None
    power: float = 0.0
    spread: float | None = None

    def finite(self) -> bool:
        """Whether an optimizer can go on from here."""
        return bool(np.isfinite(self.cost) and np.isfinite(self.gradient).all() and np.isfinite(self.hessian).all())

    @classmethod
    def from_sums(cls, x: Vector, sums: Mapping[str, NDArray[Any]]) -> Quadratic:
        """Build it from sums with the keys ``cost, gradient, hessian, count, rejected[, scores, root, power]``."""
        scores = sums.get("scores")
        root = sums.get("root")
        return cls(
            x=x,
            cost=float(sums["cost"]),
            gradient=np.asarray(sums["gradient"], np.float64),
            hessian=np.asarray(sums["hessian"], np.float64),
            count=int(sums["count"]),
            rejected=int(sums["rejected"]),
            scores=None if scores is None else np.asarray(scores, np.float64),
            root=None if root is None else np.asarray(root, np.float64),
            power=float(sums.get("power", 0.0)),
        )
