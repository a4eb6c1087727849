"""What a finished fit says about each source: values, marginal errors and measures of quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.problem import Problem
from tessera.photometry.profiles import ellipse
from tessera.photometry.solve import variances
from tessera.photometry.sources import STAR, PatchFit, Sources
from tessera.photometry.step import Look, State

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_DEGENERATE: Final = 1e4
"""Variance of a flux over that with all other fluxes known, beyond which sources are one and the same."""


@dataclass(frozen=True)
class Progress:
    """How far each source got: steps taken, gain of ln P promised by the next one, done or not; shapes (n,)."""

    steps: Ints
    promise: Floats
    settled: Bools


def measure(problem: Problem, sources: Sources, state: State, seen: Look, progress: Progress) -> PatchFit:
    """Put the results together, in the order of ``sources``.

    Parameters
    ----------
    problem
        The patch.
    sources
        All sources given, measurable or not.
    state
        The solution.
    seen
        The problem around it.
    progress
        How the fit ended.

    Returns
    -------
    PatchFit
        NaN for sources, bands and parameters that were not measured.
    """
    linear_variance, covariance = variances(seen.reduced, problem.shared.floor, seen.free)
    flux_variance = linear_variance[:, :-1].T
    curvature = np.einsum("bii->ib", seen.normal.linear)[:-1]
    alone = np.einsum("bii->ib", seen.reduced.inverse)[:-1] * curvature
    degenerate = np.any((alone > _DEGENERATE) & problem.usable, axis=1)
    chi2, npix, fracflux = _quality(problem, state, seen.weights)
    x, y, x_err, y_err = _positions(problem, state, covariance)
    shapes, shape_errors = _shapes(problem, state, covariance)
    rows, n, known = problem.rows, len(sources), problem.usable
    at_bound = np.zeros(len(rows), bool)
    layout = problem.shared
    at_bound[layout.owner[~seen.free & (layout.low < layout.high)]] = True

    def spread(values: Floats) -> Floats:
        out = np.full((n, *values.shape[1:]), np.nan)
        out[rows] = values
        return out

    def flags(values: Bools) -> Bools:
        out = np.zeros(n, bool)
        out[rows] = values
        return out

    def counts(values: Ints) -> Ints:
        out = np.zeros((n, *values.shape[1:]), np.int64)
        out[rows] = values
        return out

    re, ab, theta = map(spread, shapes)
    re_err, ab_err, theta_err = map(spread, shape_errors)
    return PatchFit(
        flux=spread(np.where(known, state.flux, np.nan)),
        flux_err=spread(np.where(known, np.sqrt(flux_variance), np.nan)),
        x=spread(x),
        y=spread(y),
        x_err=spread(x_err),
        y_err=spread(y_err),
        re=re,
        ab=ab,
        theta=theta,
        re_err=re_err,
        ab_err=ab_err,
        theta_err=theta_err,
        sky=state.sky,
        sky_err=np.where(problem.sky_seen, np.sqrt(linear_variance[:, -1]), np.nan),
        chi2=spread(chi2),
        npix=counts(npix),
        fracflux=spread(fracflux),
        niters=counts(progress.steps),
        converged=flags(progress.settled & ~degenerate),
        hit_max_iters=flags(~progress.settled),
        bound_stalled=flags(at_bound),
        degenerate=flags(degenerate),
        last_dlnp=spread(progress.promise),
        model=(state.image + state.sky[:, None, None]).astype(np.float32),
    )


def _quality(problem: Problem, state: State, weights: Floats) -> tuple[Floats, Ints, Floats]:
    """Return chi2, npix and fracflux, shape (n, B) each (definitions: `PatchFit`)."""
    residual = state.residual(problem.data)
    chi2, fracflux = np.full(state.flux.shape, np.nan), np.full(state.flux.shape, np.nan)
    npix = np.zeros(state.flux.shape, np.int64)
    for i, (flux, stamp) in enumerate(zip(state.flux, state.stamps, strict=True)):
        good = weights[stamp.box] > 0
        profile = np.maximum(stamp.maps[:, 0], 0.0) * good
        known = problem.usable[i]
        squares = weights[stamp.box] * residual[stamp.box] ** 2
        light = np.einsum("byx->b", profile)[known]
        chi2[i, known] = np.einsum("byx,byx->b", profile, squares)[known] / light
        npix[i, known] = good.sum(axis=(1, 2))[known]
        seen = np.einsum("byx,byx->b", profile, state.image[stamp.box])[known]
        own = flux[known] * np.einsum("byx,byx->b", profile, stamp.maps[:, 0])[known]
        fracflux[i, known] = (seen - own) / np.where(own != 0, np.abs(own), np.nan)
    return chi2, npix, fracflux


def _positions(problem: Problem, state: State, covariance: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    first = problem.first[:-1]
    variance = np.diag(covariance)
    error = np.sqrt(variance)
    return state.shared[first], state.shared[first + 1], error[first], error[first + 1]


def _shapes(problem: Problem, state: State, covariance: Floats) -> tuple[Floats, Floats]:
    """Return (re, ab, theta) and their errors, shape (3, n) each; NaN for stars."""
    values, errors = np.full((2, 3, len(problem.rows)), np.nan)
    for i in np.flatnonzero(problem.kind != STAR):
        own = slice(problem.first[i] + 2, problem.first[i + 1])
        fits = problem.fits_shape[i]
        values[:, i], jacobian = ellipse(state.shared[own] if fits else problem.shape[i])
        if fits:
            errors[:, i] = np.sqrt(np.diag(jacobian @ covariance[own, own] @ jacobian.T))
    return values, errors
