"""Numbers that say how wide a PSF is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.psf import PsfField

Floats = NDArray[np.float64]


def width_of(psf: PsfField) -> float:
    """Return the FWHM, pixels, of the mean stamp of a PSF: twice the mean radius at half of the peak."""
    stamp = psf.stamps[0]
    half = stamp.shape[0] // 2
    cross = np.stack([stamp[half, half:], stamp[half, half::-1], stamp[half:, half], stamp[half::-1, half]]).mean(
        axis=0
    )
    below = np.flatnonzero(cross < cross[0] / 2)
    if cross[0] <= 0 or below.size == 0:
        return np.nan
    k = int(below[0])
    share = (cross[k - 1] - cross[0] / 2) / (cross[k - 1] - cross[k])
    return float(2 * (k - 1 + share) / psf.oversampling)


def growth_curve(stamp: Floats, oversampling: int) -> tuple[Floats, Floats]:
    """Return radii (pixels) and the flux within them, for a stamp as in `PsfField`."""
    half = stamp.shape[0] // 2
    offsets = np.arange(-half, half + 1) / oversampling
    radius = np.hypot(offsets[None, :], offsets[:, None])
    order = np.argsort(radius, axis=None, kind="stable")
    flux = np.cumsum(stamp.ravel()[order]) / oversampling**2
    radii = np.arange(0.5, half / oversampling + 0.25, 0.5)
    return radii, flux[np.searchsorted(radius.ravel()[order], radii, side="right") - 1]
