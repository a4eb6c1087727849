"""From sums per angle to cost, gradient and Gauss-Newton matrix, with contrast and offset at their optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tessera.lsq.quadratic import Quadratic, Vector
from tessera.xpcs.physics import Floats
from tessera.xpcs.scaling import Scaling

_SYMMETRIC: Final = 1e-6
"""Share of the variance that may be in the difference of the halves of C₂ if it is to count as symmetric."""


@dataclass(frozen=True)
class Shape:
    """How the functions that the kernel sums belong to the parameters.

    Attributes
    ----------
    scaling
        Of contrast and offset.
    free
        Which physical parameters are fitted.
    precision
        1/σ² of each angle, shape (n_phi,).
    turning
        d ln cos(phi0 - phi)/d phi0 of each angle, 1/deg; None without flow.
    """

    scaling: Scaling
    free: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    precision: Floats
    turning: Floats | None


@dataclass(frozen=True)
class _Optimum:
    """Normal equations of contrast and offset - 1, their solution, and the cost there."""

    scale: Floats  # weight of an angle
    twice: float
    coefficients: Floats
    contrast: Floats
    offset: Floats  # minus 1
    normal: Floats  # of (offset, contrast)
    chi2: Floats


def _optimum(sums: dict[str, Floats], shape: Shape) -> _Optimum:
    weight, y, yy, _, _, unlike = sums["fixed"].T
    twice = _halves(sums["fixed"])
    g, gg, gy = sums["plain"][:, 0], sums["gram"][:, 0, 0], sums["data"][:, 0]
    scale = scale_of(sums["fixed"], shape.precision)
    normal = np.stack([np.stack([gg, g], 1), np.stack([g, weight], 1)], 1)
    right = np.stack([gy + g, y + weight], 1)
    coefficients = shape.scaling.optimum(normal * scale[:, None, None], right * scale[:, None])
    contrast, offset = shape.scaling.at(coefficients).T
    o = offset - 1.0
    chi2 = yy - 2 * (o * y + contrast * gy) + o * o * weight + 2 * o * contrast * g + contrast**2 * gg
    chi2 = scale * (chi2 + (unlike if twice > 1 else 0.0))
    return _Optimum(scale, twice, coefficients, contrast, o, normal, chi2)


def _halves(fixed: Floats) -> float:
    """Return how many independent measurements the halves of C₂ are: one if it is symmetric, else two."""
    weight, y, yy, _, _, unlike = fixed.sum(0)
    return 2.0 if unlike > _SYMMETRIC * (yy - y * y / max(weight, 1e-300)) else 1.0


def noise_cost(fixed: Floats, variances: Floats, precision: Floats) -> float:
    """Return the cost of noise of given variances, shape (n_phi,), in the mean of both halves of C₂."""
    twice = _halves(fixed)
    unlike = fixed[:, 5] if twice > 1 else 0.0
    return 0.5 * float(twice * precision @ (fixed[:, 0] * variances + unlike))


def scale_of(fixed: Floats, precision: Floats) -> Floats:
    """Return 1/σ² of the mean of both halves of C₂, of each angle, shape (n_phi,)."""
    return _halves(fixed) * precision


def assemble(sums: dict[str, Floats], x: Vector, shape: Shape) -> Quadratic:
    """Return the local model at ``x``, of which contrast and offset are replaced by their optimum.

    Parameters
    ----------
    sums
        ``gram`` (n_phi, k, k), ``plain`` and ``data`` (n_phi, k) of the kernel and ``fixed`` (n_phi, 6) of the strips.
    x
        Parameters, shape (p,).
    shape
        What they mean.
    """
    best = _optimum(sums, shape)
    weight, y, yy, count, rejected, _ = sums["fixed"].T
    into = _columns(best.contrast, shape, sums["plain"].shape[1])
    ones = np.concatenate([weight[:, None], sums["plain"]], 1)
    gram = _with_ones(weight, sums) * best.scale[:, None, None]
    data = best.scale[:, None] * np.concatenate([y[:, None], sums["data"]], 1)
    slope = best.offset[:, None] * gram[:, 0] + best.contrast[:, None] * gram[:, 1] - data
    out = x.copy()
    out[len(shape.free) :] = best.coefficients
    mean = (best.scale @ y) / max(float(best.scale @ weight), 1e-300)
    power = best.offset**2 * weight + 2 * best.offset * best.contrast * ones[:, 1]
    power = power + best.contrast**2 * sums["gram"][:, 0, 0]
    return Quadratic(
        x=out,
        cost=0.5 * float(best.chi2.sum()),
        gradient=(into @ slope[:, :, None]).sum(0)[:, 0],
        hessian=(into @ gram @ into.transpose(0, 2, 1)).sum(0),
        count=int(best.twice * count.sum()),
        rejected=int(best.twice * rejected.sum()),
        power=float(best.scale @ power),
        spread=float(best.scale @ yy - mean * (best.scale @ y)),
    )


def assemble_at(sums: dict[str, Floats], x: Vector, shape: Shape, loss_scale: float) -> Quadratic:
    """Return the local model of a robust loss at ``x``, contrast and offset included.

    Parameters
    ----------
    sums
        Of a robust pass at ``x``: as for `assemble`, with residuals in the place of the data, and ``extra``.
    x
        Parameters, shape (p,).
    shape
        What they mean.
    loss_scale
        C of cost = ½ C² Σ rho((r/C)²).
    """
    contrast, offset = shape.scaling.at(x[len(shape.free) :]).T
    scale = scale_of(sums["fixed"], shape.precision)
    into = _columns(contrast, shape, sums["plain"].shape[1])
    weight, residual, loss = sums["extra"].T
    slope = scale[:, None] * np.concatenate([residual[:, None], sums["data"]], 1)
    o = offset - 1.0
    power = o**2 * weight + 2 * o * contrast * sums["plain"][:, 0] + contrast**2 * sums["gram"][:, 0, 0]
    return Quadratic(
        x=np.array(x),
        cost=0.5 * loss_scale**2 * float(loss.sum()),
        gradient=(into @ slope[:, :, None]).sum(0)[:, 0],
        hessian=(into @ (_with_ones(weight, sums) * scale[:, None, None]) @ into.transpose(0, 2, 1)).sum(0),
        count=int(sums["fixed"][:, 3].sum()),
        rejected=int(sums["fixed"][:, 4].sum()),
        power=float(scale @ power),
    )


def scores_at(sums: dict[str, Floats], x: Vector, shape: Shape) -> Floats:
    """Return the middle of the sandwich covariance, (p, p), from the sums of a pass weighted for it at ``x``."""
    contrast, _ = shape.scaling.at(x[len(shape.free) :]).T
    into = _columns(contrast, shape, sums["plain"].shape[1])
    return np.asarray((into @ _with_ones(sums["extra"][:, 0], sums) @ into.transpose(0, 2, 1)).sum(0))


def _with_ones(weight: Floats, sums: dict[str, Floats]) -> Floats:
    """Return the Gram matrix of 1 and the kernel's functions, shape (n_phi, k+1, k+1), given Σw."""
    ones = np.concatenate([weight[:, None], sums["plain"]], 1)
    gram = np.empty((*ones.shape, ones.shape[1]))
    gram[:, 0] = gram[:, :, 0] = ones
    gram[:, 1:, 1:] = sums["gram"]
    return gram


def _columns(contrast: Floats, shape: Shape, functions: int) -> Floats:
    """Return the derivatives of the model as sums of 1 and the kernel's functions; shape (n_phi, p, k+1)."""
    n_phi, m = shape.scaling.basis.shape
    into = np.zeros((n_phi, len(shape.free) + 2 * m, functions + 1))
    for row, parameter in enumerate(shape.free):
        into[:, row, 2 + parameter] = contrast
        if shape.turning is not None and parameter == functions - 2:
            into[:, row, 2 + parameter] *= shape.turning
    first = len(shape.free)
    into[:, first : first + m, 1] = shape.scaling.basis
    into[:, first + m :, 0] = shape.scaling.basis
    return into
