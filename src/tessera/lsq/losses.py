"""Robust losses: how much a residual counts, as a function of its square.

The names, and ``rho`` with z = r², are those of `scipy.optimize.least_squares`; cost = ½ C² Σ rho((r/C)²) with the
scale C. Huber (1964); soft L1, Cauchy and arctan as in Triggs et al. (2000), section 3.3, and scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from jax import Array

Loss: TypeAlias = Literal["linear", "soft_l1", "huber", "cauchy", "arctan"]

LOSSES: Final = get_args(Loss)
_CURVATURE: Final = 0.1  # least share of rho' that is left as weight of JᵀJ


def weigh(loss: Loss, scale: float, r: Array) -> tuple[Array, Array, Array]:
    """Return what a residual contributes.

    Parameters
    ----------
    loss
        One of `LOSSES`, not ``linear``.
    scale
        C, in the units of r: residuals beyond it count less.
    r
        Weighted residuals.

    Returns
    -------
    cost, slope, curvature
        ``½ C² rho``; ``rho'``, with which r enters the gradient; ``rho' + 2 z rho''``, with which the squares of
        the Jacobian enter the Gauss-Newton matrix (Triggs et al. 2000, eq. 11), kept above a tenth of ``rho'`` so that
        the matrix stays positive definite.
    """
    import jax.numpy as jnp

    z = (r / scale) ** 2
    if loss == "soft_l1":
        root = jnp.sqrt(1 + z)
        rho, slope, bend = 2 * (root - 1), 1 / root, -0.5 / root**3
    elif loss == "huber":
        root = jnp.sqrt(jnp.maximum(z, 1.0))
        rho, slope, bend = jnp.where(z <= 1, z, 2 * root - 1), 1 / root, jnp.where(z <= 1, 0.0, -0.5 / root**3)
    elif loss == "cauchy":
        rho, slope, bend = jnp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2
    else:
        rho, slope, bend = jnp.arctan(z), 1 / (1 + z**2), -2 * z / (1 + z**2) ** 2
    return 0.5 * scale**2 * rho, slope, jnp.maximum(slope + 2 * z * bend, _CURVATURE * slope)
