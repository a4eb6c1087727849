"""What stars show beyond their common Moffat profile, found with photutils' EPSFBuilder (Anderson & King 2000).

The builder is run twice, on the stars and on pictures of their profile: the difference is free of what
the builder itself does to a profile (it blurs narrow cores by up to 5 %). Of that, only what stands out of the noise
is taken.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.moffat_fit import MoffatFit
from tessera.photometry.options import EpsfOptions
from tessera.photometry.psf_grids import stamp_offsets
from tessera.photometry.stars import Stamps

Floats = NDArray[np.float64]

_REACH_FWHM: Final = 3.0
_RING_FWHM: Final = 0.5
_ROUND_FWHM: Final = 1.5
_SURE: Final = 3.0
"""Standard deviations of the noise's power by which a ring must exceed it."""
_FEWEST: Final = 10
"""Stars are not left out for their noise below this number: they sample the pixel's phases."""
_SMOOTHING: Final = {1: None, 2: "quadratic"}
"""Kernels of EPSFBuilder by oversampling: its default, made for 4, blurs the core by 3 to 5 % at 1 and 2 (measured)."""


def with_excess(
    smooth: Floats, fine: int, stars: Stamps, profile: MoffatFit, oversampling: int, options: EpsfOptions
) -> Floats:
    """Add to the Moffat profile what the stars show beyond it.

    Parameters
    ----------
    smooth
        Shape (m, m), the profile with ``fine`` samples per pixel.
    fine
        Its samples per pixel, a multiple of ``oversampling``.
    stars, profile
        The cleaned stars and their fit.
    oversampling
        Samples per pixel in the builder.
    options
        Of the builder.

    Returns
    -------
    numpy.ndarray
        Shape (m, m), with the flux of the profile.

    Raises
    ------
    ValueError
        If the builder fails.
    """
    rows = _quiet(stars, profile)
    stars, profile = stars.take(rows), profile.take(rows)
    seen = _built(stars.data - profile.sky[:, None, None], stars, profile, oversampling, options)
    drawn = _built(_pictures(stars, profile), stars, profile, oversampling, options)
    offsets = stamp_offsets(options.final_psf_size, oversampling)
    radius = np.hypot(offsets[None, :], offsets[:, None])
    inner = radius <= _REACH_FWHM * profile.fwhm
    # The scale and the sky of what is seen are free: flux is what the profile says.
    design = np.stack([drawn[inner], np.ones(int(inner.sum()))], axis=1)
    (scale, sky), *_ = np.linalg.lstsq(design, seen[inner], rcond=None)
    if not scale > 0:
        msg = "the ePSF has no core"
        raise ValueError(msg)
    extra = ((seen - sky) / scale - drawn) * (float(smooth.max()) / drawn.max())
    extra = _significant(extra, radius, stars, profile, oversampling)
    stamp: Floats = smooth + _finer(extra, fine, oversampling)
    stamp /= 1 + float(extra.sum()) / oversampling**2
    return stamp


def _quiet(stars: Stamps, profile: MoffatFit) -> NDArray[np.intp]:
    """Choose the stars whose plain mean has the least noise; the faintest of many would only add to it."""
    relative = np.array([np.median(s[np.isfinite(s)]) for s in stars.sigma]) / profile.flux
    order = np.argsort(relative, kind="stable")
    noise = np.sqrt(np.cumsum(relative[order] ** 2)) / np.arange(1, len(order) + 1)
    fewest = min(len(order), _FEWEST)
    count = fewest + int(np.argmin(noise[fewest - 1 :]))
    return np.sort(order[:count])


def _pictures(stars: Stamps, profile: MoffatFit) -> Floats:
    half = stars.data.shape[1] // 2
    offsets = np.arange(-half, half + 1.0)
    dx = offsets[None, None, :] - profile.x[:, None, None]
    dy = offsets[None, :, None] - profile.y[:, None, None]
    return profile.flux[:, None, None] * profile.density(dx, dy)


def _built(data: Floats, stars: Stamps, profile: MoffatFit, oversampling: int, options: EpsfOptions) -> Floats:
    """Run EPSFBuilder and return its ePSF, of any normalisation, on the samples of the final stamp."""
    from astropy.stats import SigmaClip
    from astropy.utils.exceptions import AstropyWarning
    from photutils.psf import EPSFBuilder, EPSFStar, EPSFStars

    half = data.shape[1] // 2
    cutouts = []
    for i, picture in enumerate(data):
        weights = np.where(np.isfinite(stars.sigma[i]), 1 / stars.sigma[i], 0.0)
        centre = (half + profile.x[i], half + profile.y[i])
        shown = np.where(weights > 0, picture, 0.0)
        cutouts.append(EPSFStar(shown, weights=weights, cutout_center=centre, flux=float(profile.flux[i])))
    builder = EPSFBuilder(
        oversampling=oversampling,
        smoothing_kernel=_SMOOTHING.get(oversampling, "quartic"),
        maxiters=options.maxiters,
        recentering_boxsize=options.recenter_boxsize,
        sigma_clip=SigmaClip(sigma=5.0, maxiters=5) if options.do_clip else None,
        progress_bar=False,
    )
    with warnings.catch_warnings():
        # A star whose fit failed is dropped by the builder; what matters is judged at the end.
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        epsf, _ = builder(EPSFStars(cutouts))
    built = np.asarray(epsf.data, np.float64)
    middle, wanted = built.shape[0] // 2, (options.final_psf_size // 2) * oversampling
    cut = built[middle - wanted : middle + wanted + 1, middle - wanted : middle + wanted + 1]
    if cut.shape != (2 * wanted + 1, 2 * wanted + 1) or not np.isfinite(cut).all():
        msg = f"an ePSF of {built.shape} samples, {np.count_nonzero(~np.isfinite(cut))} of them not finite"
        raise ValueError(msg)
    return cut


def _finer(samples: Floats, wanted: int, given: int) -> Floats:
    """Interpolate samples around the middle one from ``given`` to ``wanted`` per pixel."""
    if wanted == given:
        return samples
    from scipy.ndimage import map_coordinates

    half = samples.shape[0] // 2
    at = np.arange(-half * wanted // given, half * wanted // given + 1) * given / wanted + half
    finer: Floats = map_coordinates(samples, np.meshgrid(at, at, indexing="ij"), order=3, mode="nearest")
    return finer


def _significant(extra: Floats, radius: Floats, stars: Stamps, profile: MoffatFit, oversampling: int) -> Floats:
    """Return the part of ``extra`` that is signal: a Wiener filter in rings, and further out in their means.

    A ring of N samples of pure noise has a mean square with a relative scatter of ``sqrt(2 / N)``; only what exceeds
    that three times is taken for signal. Beyond 1.5 FWHM there are many samples and little light, so that only the
    mean around each ring counts there: what the profile's ellipticity leaves is round.
    """
    middles, shares, means = [], [], []
    edges = np.arange(0, _REACH_FWHM + _RING_FWHM, _RING_FWHM) * profile.fwhm
    for low, high in pairwise(edges):
        ring = (radius >= low) & (radius < high)
        samples = max(1, int(np.count_nonzero(ring)))
        noise = _noise_power(stars, profile, low, high) * oversampling**2
        mean = float(extra[ring].mean())
        shares.append(_share(float(np.mean(extra[ring] ** 2)), noise * (1 + _SURE * np.sqrt(2 / samples))))
        means.append(mean * _share(mean**2, _SURE**2 * noise / samples))
        middles.append((low + high) / 2)
    end = edges[-1] + profile.fwhm / 2
    whole = extra * np.interp(radius, [*middles, end], [*shares, 0.0])
    outer = np.interp(radius, [*middles, end], [*means, 0.0])
    inside = np.clip((_ROUND_FWHM + _RING_FWHM / 2 - radius / profile.fwhm) / _RING_FWHM, 0.0, 1.0)
    return np.asarray(inside * whole + (1 - inside) * outer)


def _share(power: float, noise: float) -> float:
    return max(0.0, 1 - noise / power) if power > 0 else 0.0


def _noise_power(stars: Stamps, profile: MoffatFit, low: float, high: float) -> float:
    """Return the variance of a pixel of the mean of all stars, scaled to unit flux, in a ring."""
    half = stars.data.shape[1] // 2
    offsets = np.arange(-half, half + 1.0)
    radius = np.hypot(offsets[None, :], offsets[:, None])
    ring = (radius >= low) & (radius < high)
    total = 0.0
    for sigma, flux in zip(stars.sigma, profile.flux, strict=True):
        known = sigma[ring & np.isfinite(sigma)]
        total += float(np.mean(known**2)) / flux**2 if known.size else 0.0
    return total / len(stars) ** 2
