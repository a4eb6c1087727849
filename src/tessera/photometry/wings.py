"""The light of very bright stars beyond their PSF stamps.

A stamp ends where ordinary stars are far below the noise, but a saturated one may still be above it there. Beyond
its stamp a star is continued with the power law to which its PSF has fallen at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tessera.photometry.problem import Problem
from tessera.photometry.psf import PsfField
from tessera.photometry.sources import STAR
from tessera.photometry.step import State

Floats = NDArray[np.float64]

_SEEN: Final = 0.05
"""Wings below this fraction of the sky noise in each pixel are left to the sky constant."""
_RINGS: Final = (0.55, 0.75, 0.95)
"""Edges, as fractions of half the stamp, of the two rings that give the power law."""
_POSITIVE: Final = 0.9
_SANE_POWER: Final = (1.5, 12.0)


@dataclass(frozen=True)
class Wing:
    """``density * (r / radius) ** -power``: fraction of the flux per pixel at ``r`` pixels from a star."""

    density: float
    radius: float
    power: float

    def at(self, r2: ArrayLike) -> Floats:
        """Return the density at squared distances."""
        return np.asarray(self.density * (np.asarray(r2) / self.radius**2) ** (-self.power / 2))


def wing_of(stamp: Floats, oversampling: int) -> Wing | None:
    """Fit a power law to the outer part of a PSF stamp.

    Parameters
    ----------
    stamp
        Shape (m, m), as in `PsfField`.
    oversampling
        Samples per pixel.

    Returns
    -------
    Wing or None
        None where the stamp does not fall like a power between 1.5 and 12: it ends in noise, or in a Gaussian.
    """
    half = (stamp.shape[0] - 1) // 2
    offsets = np.arange(-half, half + 1) / oversampling
    radius = np.hypot(offsets[None, :], offsets[:, None])
    edges = np.array(_RINGS) * half / oversampling
    rings = [(radius >= low) & (radius < high) for low, high in pairwise(edges)]
    if any(np.mean(stamp[ring] > 0) < _POSITIVE for ring in rings):
        return None
    # The mean logarithms lie on the power law itself, however wide the rings are.
    where = [float(np.log(radius[ring]).mean()) for ring in rings]
    level = [float(np.log(np.maximum(stamp[ring], 1e-3 * stamp[ring].mean())).mean()) for ring in rings]
    power = (level[0] - level[1]) / (where[1] - where[0])
    if not _SANE_POWER[0] <= power <= _SANE_POWER[1]:
        return None
    return Wing(math.exp(level[1]), math.exp(where[1]), power)


def far_light(problem: Problem, state: State, psfs: Sequence[PsfField], x0: int, y0: int) -> Floats:
    """Draw what the brightest stars of a patch shine beyond their stamps.

    Parameters
    ----------
    problem
        The patch.
    state
        A solution for the fluxes.
    psfs
        One field a band.
    x0, y0
        Frame pixel of the patch's first pixel.

    Returns
    -------
    numpy.ndarray
        Shape (B, h, w), counts.
    """
    light = np.zeros(problem.data.shape)
    _, height, width = problem.data.shape
    first = problem.first[:-1]
    x, y = state.shared[first] - x0, state.shared[first + 1] - y0
    for b, psf in enumerate(psfs):
        wing = wing_of(psf.at(x0 + width / 2, y0 + height / 2)[0], psf.oversampling)
        noise = math.sqrt(problem.variance[b].min())
        if wing is None or not math.isfinite(noise):
            continue
        edge = (psf.stamps.shape[-1] - 1) / 2 / psf.oversampling
        bright = (problem.kind == STAR) & (state.flux[:, b] * wing.at(edge**2) > _SEEN * noise)
        for i in np.flatnonzero(bright):
            r2 = (np.arange(width) - x[i]) ** 2 + ((np.arange(height) - y[i]) ** 2)[:, None]
            beyond = state.flux[i, b] * wing.at(np.maximum(r2, 1.0))
            stamp = state.stamps[i]
            beyond[stamp.rows, stamp.cols] = 0.0
            light[b] += beyond
    return light
