"""One Moffat profile for several stars at once: the smooth part of an ePSF, and its wings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.psf_grids import moffat
from tessera.photometry.stars import Stamps

Floats = NDArray[np.float64]

_BETA_RANGE: Final = (1.6, 12.0)
_ELLIPTICITY: Final = 0.6
_STEP: Final = 1e-4
_RELATIVE_NOISE: Final = 0.01
"""Stars are not fitted to better than this fraction of a pixel's light: no profile is exact, and the brightest star
would otherwise decide alone."""
_MISFIT: Final = 0.05
"""Misfits are told in units of the noise or of this fraction of a pixel's light, so that bright stars, which show
every flaw of the profile, are not taken for outliers."""


@dataclass(frozen=True)
class MoffatFit:
    """The common profile, and each star in it.

    Attributes
    ----------
    fwhm, beta, e1, e2
        As in `tessera.photometry.psf_grids.moffat`.
    flux, sky
        Of each star, shape (n,).
    x, y
        Refined positions from the centre of the middle pixel, shape (n,).
    chi2
        Mean squared misfit of each star in units of noise and 5 % of its light, shape (n,).
    """

    fwhm: float
    beta: float
    e1: float
    e2: float
    flux: Floats
    sky: Floats
    x: Floats
    y: Floats
    chi2: Floats

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> MoffatFit:
        """Return the profile with some of the stars."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("flux", "sky", "x", "y", "chi2")})

    def density(self, dx: Floats, dy: Floats) -> Floats:
        """Return the profile at offsets in pixels; unit flux over the plane."""
        return moffat(dx, dy, self.fwhm, self.beta, self.e1, self.e2)


def fit_moffat(stamps: Stamps, fwhm: float, beta: float, radius: float) -> MoffatFit:
    """Fit a common elliptical Moffat profile; flux, sky and a small shift are free for each star.

    The four profile parameters are found by Gauss-Newton (`scipy.optimize.least_squares`); what is linear in
    each star is solved exactly at every step (variable projection, Golub & Pereyra 1973).

    Parameters
    ----------
    stamps
        At least one star.
    fwhm, beta
        First guess.
    radius
        Pixels further out than this are not used.

    Returns
    -------
    MoffatFit
        The profile and the stars.
    """
    from scipy.optimize import least_squares

    half = stamps.data.shape[1] // 2
    cut = int(min(half, np.ceil(radius)))
    window = (slice(None), slice(half - cut, half + cut + 1), slice(half - cut, half + cut + 1))
    fitted = _Stars(stamps, stamps.data[window], _weights(stamps, _RELATIVE_NOISE)[window], cut)
    start = np.array([np.log(fwhm), np.log(beta), 0.0, 0.0])
    bounds = (
        [np.log(1.0), np.log(_BETA_RANGE[0]), -_ELLIPTICITY, -_ELLIPTICITY],
        [np.log(2 * cut + 1.0), np.log(_BETA_RANGE[1]), _ELLIPTICITY, _ELLIPTICITY],
    )
    start = np.clip(start, np.array(bounds[0]) + 1e-3, np.array(bounds[1]) - 1e-3)
    found = least_squares(fitted.misfit, start, bounds=bounds, diff_step=np.full(4, _STEP), max_nfev=40)
    residuals, linear = fitted.residuals(found.x)
    judged = residuals * _weights(stamps, _MISFIT)[window] / np.where(fitted.weights > 0, fitted.weights, 1.0)
    good = np.count_nonzero(fitted.weights, axis=(1, 2))
    width, power = float(np.exp(found.x[0])), float(np.exp(found.x[1]))
    flux = np.where(linear[:, 0] > 0, linear[:, 0], np.nan)
    shift = np.clip(linear[:, 1:3] / flux[:, None], -1.0, 1.0)
    return MoffatFit(
        fwhm=width,
        beta=power,
        e1=float(found.x[2]),
        e2=float(found.x[3]),
        flux=flux,
        sky=linear[:, 3],
        x=stamps.x + np.nan_to_num(shift[:, 0]),
        y=stamps.y + np.nan_to_num(shift[:, 1]),
        chi2=(judged**2).sum(axis=(1, 2)) / np.maximum(good, 1),
    )


def _weights(stamps: Stamps, fraction: float) -> Floats:
    sigma = np.hypot(stamps.sigma, fraction * np.maximum(stamps.data, 0))
    return np.where(np.isfinite(sigma), 1 / sigma, 0.0)


@dataclass(frozen=True)
class _Stars:
    stamps: Stamps
    data: Floats
    weights: Floats
    half: int

    def misfit(self, p: Floats) -> Floats:
        """Return all normalised residuals."""
        return self.residuals(p)[0].ravel()

    def residuals(self, p: Floats) -> tuple[Floats, Floats]:
        """Return normalised residuals (n, s, s) and the linear solution (n, 4): flux, flux * shift x and y, sky."""
        offsets = np.arange(-self.half, self.half + 1.0)
        dx = offsets[None, None, :] - self.stamps.x[:, None, None]
        dy = offsets[None, :, None] - self.stamps.y[:, None, None]
        shape = (float(np.exp(p[0])), float(np.exp(p[1])), float(p[2]), float(p[3]))
        centre, along_x, along_y = _with_slopes(dx, dy, *shape)
        design = np.stack([centre, along_x, along_y, np.ones_like(centre)], axis=1) * self.weights[:, None]
        target = self.data * self.weights
        normal = np.einsum("nayx,nbyx->nab", design, design)
        right = np.einsum("nayx,nyx->na", design, target)
        scale = np.sqrt(np.maximum(np.einsum("naa->na", normal), 1e-300))
        ridge = 1e-12 * np.eye(4)
        solved = np.linalg.solve(normal / (scale[:, :, None] * scale[:, None, :]) + ridge, (right / scale)[..., None])
        linear = solved[..., 0] / scale
        return target - np.einsum("na,nayx->nyx", linear, design), linear


def _with_slopes(
    dx: Floats, dy: Floats, fwhm: float, beta: float, e1: float, e2: float
) -> tuple[Floats, Floats, Floats]:
    """Return `moffat`, and how it changes when the star moves along x and y."""
    density = moffat(dx, dy, fwhm, beta, e1, e2)
    a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1) * np.sqrt(1 - e1 * e1 - e2 * e2)
    u, v = ((1 - e1) * dx - e2 * dy) / a2, ((1 + e1) * dy - e2 * dx) / a2
    steep = 2 * beta * density / (1 + u * dx + v * dy)
    return density, steep * u, steep * v
