"""The normal equations of many sources in many bands, and their solution.

Fluxes and skies of a band are coupled to each other and to the positions and shapes, but not to the fluxes of
other bands: the Fisher matrix is an arrow. Each band's block is eliminated first (a Schur complement), so that the
cost grows with the number of bands and not with its cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.render import Stamp

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Pair = tuple[int, int]
T = TypeVar("T")

_RIDGE: Final = 1e-5
"""Relative addition to the diagonal, above the rounding of single-precision sums: identical sources share their
light instead of stopping the solution."""


class Run(Protocol):
    """Applies a function to indices, on some threads, and returns the results in order."""

    def __call__(self, function: Callable[[int], T], indices: Sequence[int], /) -> Iterable[T]:
        """Return ``function(i)`` for each of the indices."""
        ...


@dataclass(frozen=True)
class Normal:
    """The linearised problem at the current parameters.

    n sources, B bands, m shared parameters (positions and shapes). The linear parameters of a band are its n
    fluxes and, last, its sky.

    Attributes
    ----------
    linear
        Shape (B, n + 1, n + 1), curvature in the linear parameters; 1 on the diagonal of dead ones.
    cross
        Shape (B, n + 1, m).
    shared
        Shape (m, m).
    linear_gradient, shared_gradient
        Shapes (B, n + 1) and (m,): the gradients of ln P.
    """

    linear: Floats
    cross: Floats
    shared: Floats
    linear_gradient: Floats
    shared_gradient: Floats


@dataclass(frozen=True)
class Eliminated:
    """The arrow after its bands are eliminated.

    Attributes
    ----------
    inverse
        Shape (B, n + 1, n + 1), inverse of ``Normal.linear``.
    response
        Shape (B, n + 1, m), ``inverse @ cross``: how the linear parameters follow the shared ones.
    schur
        Shape (m, m), curvature in the shared parameters with the linear ones free.
    gradient
        Shape (m,).
    """

    inverse: Floats
    response: Floats
    schur: Floats
    gradient: Floats


class Blocks:
    """Weighted products of the sources' pictures, kept from step to step.

    Only pairs with a redrawn source are computed again: the others differ by their weights alone, which
    hardly move after the first steps and enter the curvature only, never the gradient.

    Parameters
    ----------
    scale
        Shape (B,), a typical weight of a pixel; keeps single precision in range whatever the unit of the counts.
    """

    def __init__(self, scale: Floats) -> None:
        self._scale = scale
        self.pairs: dict[Pair, Floats] = {}
        self.skies: dict[int, Floats] = {}

    def refresh(self, stamps: Sequence[Stamp], weights: Floats, redrawn: Bools, run: Run) -> None:
        """Compute the products of the redrawn stamps with all that they touch."""
        relative = (weights / self._scale[:, None, None]).astype(np.float32)
        touching = _touching(stamps)
        # A pair of two redrawn stamps is left to the first of them.
        mine = touching & redrawn[:, None] & ~(redrawn & np.tri(len(stamps), k=-1, dtype=bool))
        self.pairs = {pair: block for pair, block in self.pairs.items() if touching[pair]}

        def products(i: int) -> tuple[Floats, dict[Pair, Floats]]:
            weighted = stamps[i].maps * relative[stamps[i].box][:, None]
            sky = np.einsum("bkyx->bk", weighted) * self._scale[:, None]
            found = {}
            for j in np.flatnonzero(mine[i]).tolist():
                block = _product(stamps[i], weighted, stamps[j]) * self._scale[:, None, None]
                found[min(i, j), max(i, j)] = block if i <= j else block.transpose(0, 2, 1)
            return sky, found

        indices = np.flatnonzero(redrawn).tolist()
        for i, (sky, found) in zip(indices, run(products, indices), strict=True):
            self.skies[i] = sky
            self.pairs.update(found)


def _touching(stamps: Sequence[Stamp]) -> Bools:
    """Return which stamps share a pixel, shape (n, n)."""
    edges = np.array([(s.rows.start, s.rows.stop, s.cols.start, s.cols.stop) for s in stamps]).reshape(-1, 4).T
    low = np.maximum(edges[::2, :, None], edges[::2, None, :])
    high = np.minimum(edges[1::2, :, None], edges[1::2, None, :])
    return np.asarray((low < high).all(axis=0), dtype=bool)


def _product(a: Stamp, weighted: NDArray[np.float32], b: Stamp) -> Floats:
    """Return ``sum over common pixels of a w b``, shape (B, ka, kb), given a's maps times w."""
    rows = slice(max(a.rows.start, b.rows.start), min(a.rows.stop, b.rows.stop))
    cols = slice(max(a.cols.start, b.cols.start), min(a.cols.stop, b.cols.stop))
    left, right = _cut(weighted, a, rows, cols), _cut(b.maps, b, rows, cols)
    return np.asarray(np.matmul(left, right.transpose(0, 2, 1)), dtype=np.float64)


def _cut(maps: NDArray[np.float32], stamp: Stamp, rows: slice, cols: slice) -> NDArray[np.float32]:
    y, x = stamp.rows.start, stamp.cols.start
    part = maps[:, :, rows.start - y : rows.stop - y, cols.start - x : cols.stop - x]
    return part.reshape(part.shape[0], part.shape[1], -1)


def assemble(
    blocks: Blocks,
    sky_curvature: Floats,
    gradients: Sequence[Floats],
    sky_gradient: Floats,
    flux: Floats,
    prior: tuple[Floats, Floats],
) -> Normal:
    """Put the products of unit-flux pictures together.

    Parameters
    ----------
    blocks
        Weighted products of the pictures of n sources.
    sky_curvature, sky_gradient
        Shape (B,): sum of the weights and of the weighted residuals, 0 where the sky is not fitted.
    gradients
        For each source the weighted sum of its maps times the residual, shape (B, k).
    flux
        Shape (n, B).
    prior
        Curvature and gradient of the priors on the shared parameters, shapes (m,).

    Returns
    -------
    Normal
        The matrices.
    """
    n, bands = flux.shape
    first = np.concatenate([[0], np.cumsum([g.shape[1] - 1 for g in gradients])]).astype(int)
    linear = np.zeros((bands, n + 1, n + 1))
    cross = np.zeros((bands, n + 1, first[-1]))
    shared = np.diag(prior[0])
    linear_gradient, shared_gradient = np.zeros((bands, n + 1)), prior[1].copy()
    own = [slice(first[i], first[i + 1]) for i in range(n)]
    for (i, j), block in blocks.pairs.items():
        fi, fj = flux[i][:, None], flux[j][:, None]
        linear[:, i, j] = linear[:, j, i] = block[:, 0, 0]
        cross[:, i, own[j]] = fj * block[:, 0, 1:]
        cross[:, j, own[i]] = fi * block[:, 1:, 0]
        both = np.einsum("b,bkl->kl", flux[i] * flux[j], block[:, 1:, 1:])
        if i == j:
            shared[own[i], own[i]] += both
        else:
            shared[own[i], own[j]] = both
            shared[own[j], own[i]] = both.T
    for i, gradient in enumerate(gradients):
        sky_block = blocks.skies[i]
        linear_gradient[:, i] = gradient[:, 0]
        shared_gradient[own[i]] += np.einsum("b,bk->k", flux[i], gradient[:, 1:])
        linear[:, i, n] = linear[:, n, i] = sky_block[:, 0]
        cross[:, n, own[i]] = flux[i][:, None] * sky_block[:, 1:]
    dead_sky = sky_curvature <= 0
    linear[:, n, n] = sky_curvature
    linear_gradient[:, n] = sky_gradient
    linear[dead_sky, n, :] = linear[dead_sky, :, n] = 0.0
    cross[dead_sky, n] = 0.0
    return Normal(_without_zeros(linear), cross, shared, linear_gradient, shared_gradient)


def _without_zeros(linear: Floats) -> Floats:
    diagonal = np.einsum("bii->bi", linear)
    diagonal[diagonal <= 0] = 1.0
    return linear


def eliminate(normal: Normal) -> Eliminated:
    """Solve every band for its linear parameters as functions of the shared ones."""
    scale = 1 / np.sqrt(np.einsum("bii->bi", normal.linear))
    unit = normal.linear * scale[:, :, None] * scale[:, None, :]
    np.einsum("bii->bi", unit)[...] += _RIDGE
    inverse = np.linalg.inv(unit) * scale[:, :, None] * scale[:, None, :]
    response = inverse @ normal.cross
    schur = normal.shared - np.einsum("bik,bil->kl", normal.cross, response, optimize=True)
    gradient = normal.shared_gradient - np.einsum("bik,bi->k", response, normal.linear_gradient)
    # What is left after the elimination can be all rounding, or below zero: blocks of sources that did not move are of
    # an earlier weight. The steps are judged by chi² anyhow.
    diagonal = np.einsum("ii->i", schur)
    diagonal[...] = np.maximum(diagonal, 0.0) + _RIDGE * np.diag(normal.shared)
    return Eliminated(inverse, response, (schur + schur.T) / 2, gradient)


def shared_step(reduced: Eliminated, damping: Floats, free: Bools) -> Floats:
    """Return the damped Gauss-Newton step of the shared parameters, shape (m,); 0 for those not free."""
    step = np.zeros(len(free))
    if free.any():
        matrix = (reduced.schur + np.diag(damping))[np.ix_(free, free)]
        step[free] = _solve(matrix, reduced.gradient[free])
    return step


def linear_step(reduced: Eliminated, normal: Normal, shared: Floats) -> Floats:
    """Return the best change of fluxes and sky, shape (B, n + 1), when the shared parameters change so."""
    free = np.einsum("bij,bj->bi", reduced.inverse, normal.linear_gradient)
    return np.asarray(free - reduced.response @ shared)


def variances(reduced: Eliminated, damping: Floats, free: Bools) -> tuple[Floats, Floats]:
    """Return the marginal covariance.

    Returns
    -------
    linear
        Shape (B, n + 1), variances of fluxes and sky.
    shared
        Shape (m, m), covariance of the shared parameters; NaN on the diagonal of those not free.
    """
    m = len(free)
    shared = np.zeros((m, m))
    if free.any():
        index = np.ix_(free, free)
        shared[index] = _solve((reduced.schur + np.diag(damping))[index], np.eye(int(free.sum())))
    linear = np.einsum("bii->bi", reduced.inverse).copy()
    linear += np.einsum("bik,bik->bi", reduced.response @ shared, reduced.response)
    shared[~free, ~free] = np.nan
    return linear, shared


def _solve(matrix: Floats, right: Floats) -> Floats:
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), np.finfo(float).tiny))
    unit = matrix * scale[:, None] * scale
    unit[np.diag_indices_from(unit)] += _RIDGE
    shape = scale if right.ndim == 1 else scale[:, None]
    return np.asarray(np.linalg.solve(unit, right * shape) * shape)
