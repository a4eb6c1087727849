"""How a fit ended, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.quadratic import Vector


class Status(Enum):
    """How a fit ended: a code, whether that is a success, and the cause and remedy in words."""

    RUNNING = (0, False, "still running")
    CONVERGED = (1, True, "converged: the next step would be far below the standard errors")
    ROUNDING = (2, True, "converged to rounding error: no step reduces the cost measurably any more")
    AT_BOUND = (
        3,
        True,
        (
            "converged with parameters at their bounds; the minimum without bounds lies elsewhere and the errors hold "
            "only if the bounds are part of the model: widen them if they are not"
        ),
    )
    SINGULAR = (
        -1,
        False,
        (
            "the data do not determine all parameters: some change the model in the same way or not at all; fix one of "
            "them, or bring data in which they differ"
        ),
    )
    MAX_PASSES = (
        -2,
        False,
        ("not converged in the passes allowed; raise gauss_newton_max_iterations or start from the parameters found"),
    )
    STAGNATED = (
        -3,
        False,
        (
            "no step reduces the cost although the gradient says that one should; the model is not smooth there or its "
            "derivatives are wrong: check it near the parameters found, or start elsewhere"
        ),
    )
    NOT_FINITE = (
        -4,
        False,
        (
            "the model is not finite anywhere the steps lead to; give bounds that keep the parameters where it is, or "
            "another start"
        ),
    )

    def __init__(self, code: int, success: bool, text: str) -> None:
        self.code = code
        self.success = success
        self.text = text

    @classmethod
    def of(cls, code: int) -> Status:
        """Return the status with this code."""
        return next(s for s in cls if s.code == code)


HISTORY = ("cost", "decrement", "radius", "step", "ratio", "accepted")
"""Columns of `Result.history`: cost of the accepted point; how far, in standard errors, the Gauss-Newton step from it
would go; trust radius and length of the step tried, both in scaled parameters; actual over predicted reduction; whether
the step was accepted."""


@dataclass(frozen=True)
class Result:
    """What a fit found.

    Attributes
    ----------
    names
        One name per parameter.
    x
        The parameters, in the user's units, shape (p,).
    covariance
        Of the parameters, shape (p, p); infinite where the data do not determine them.
    errors
        Square roots of the covariance's diagonal.
    cost
        ½ Σ rho(r²) at ``x`` (by the quadratic model where the last step was below a thousandth of a standard error).
    chi2
        Twice the cost: Σ (r/σ)² without a robust loss.
    reduced
        chi2 per degree of freedom; NaN if there is none.
    count, rejected
        Points that took part, and points left out (masked or not finite).
    status, message, success
        How it ended; the message says cause and remedy and names the parameters concerned.
    iterations, evaluations
        Accepted steps, and passes over the data (warm-up and multi-start included).
    history
        One row per Gauss-Newton pass, columns as `HISTORY`.
    telemetry
        What the phases recorded; empty with telemetry off.
    """

    names: tuple[str, ...]
    x: Vector
    covariance: NDArray[np.float64]
    errors: Vector
    cost: float
    chi2: float
    reduced: float
    count: int
    rejected: int
    status: Status
    message: str
    success: bool
    iterations: int
    evaluations: int
    history: NDArray[np.float64]
    telemetry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def correlation(self) -> NDArray[np.float64]:
        """Correlation matrix of the parameters, shape (p, p); NaN where an error is zero or infinite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.covariance / np.outer(self.errors, self.errors))

    def __getitem__(self, name: str) -> float:
        """Return a parameter by name."""
        return float(self.x[self.names.index(name)])
