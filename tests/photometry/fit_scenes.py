"""Scenes for the tests of the renderer and the fit, drawn without them.

Stars are Moffat functions evaluated at pixel centres; galaxies are sums of such stars over a quadrature of their
disk. Nothing here is a Fourier transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessera.photometry.psf import PsfField
from tessera.photometry.sources import EXP, STAR, PatchPixels, Sources

EXP_RADIUS = 1.6783469900166605
HALF = 29


@dataclass(frozen=True)
class Moffat:
    """An elliptical Moffat function of unit integral."""

    fwhm: float
    beta: float = 3.5
    e1: float = 0.03
    e2: float = -0.02

    def __call__(self, dx, dy):
        alpha = self.fwhm / (2 * np.sqrt(2 ** (1 / self.beta) - 1))
        det = np.sqrt(1 - self.e1**2 - self.e2**2)
        r2 = ((1 - self.e1) * dx * dx - 2 * self.e2 * dx * dy + (1 + self.e1) * dy * dy) / det
        return (self.beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -self.beta

    def field(self, oversampling=4, half=HALF):
        axis = np.arange(-half * oversampling, half * oversampling + 1) / oversampling
        return PsfField(self(axis[None, :], axis[:, None])[None], oversampling)


def disk_nodes(re, ab, theta, radial=32, angular=32):
    """Return offsets and weights of a quadrature of an infinite exponential disk."""
    t, w = np.polynomial.legendre.leggauss(radial)
    r = 9.0 * (t + 1)  # scale lengths; 3e-7 of the light is beyond 18
    w = 9.0 * w * r * np.exp(-r)
    phi = 2 * np.pi * (np.arange(angular) + 0.5) / angular
    h = re / EXP_RADIUS
    u, v = h * np.outer(r, np.cos(phi)), ab * h * np.outer(r, np.sin(phi))
    c, s = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    return (u * c - v * s).ravel(), (u * s + v * c).ravel(), np.repeat(w / w.sum() / angular, angular)


def draw(psf, x, y, shape, galaxy=None):
    """Draw a source of unit flux on a frame; ``galaxy`` is ``(re, ab, theta)``."""
    yy, xx = np.mgrid[: shape[0], : shape[1]].astype(float)
    if galaxy is None:
        return psf(xx - x, yy - y)
    picture = np.zeros(shape)
    for dx, dy, w in zip(*disk_nodes(*galaxy), strict=True):
        picture += w * psf(xx - x - dx, yy - y - dy)
    return picture


def catalog(x, y, bands, galaxies=None, jitter=None):
    """Return sources at positions, all stars unless ``galaxies`` gives ``(re, ab, theta)`` or None for each."""
    x, y = np.array(x, float), np.array(y, float)
    if jitter is not None:
        x, y = x + jitter.normal(0, 0.15, len(x)), y + jitter.normal(0, 0.15, len(y))
    galaxies = galaxies or [None] * len(x)
    shapes = np.array([g or (np.nan, np.nan, np.nan) for g in galaxies], float).reshape(-1, 3)
    return Sources(
        x=x,
        y=y,
        kind=np.array([STAR if g is None else EXP for g in galaxies], dtype=np.int64),
        flux=np.full((len(x), bands), np.nan),
        re=shapes[:, 0],
        ab=shapes[:, 1],
        theta=shapes[:, 2],
        position_sigma=np.full(len(x), np.inf),
    )


def observe(truth, sky_sigma, gain, rng=None):
    """Return pixels of a noiseless picture, shape (B, h, w), with noise if a generator is given."""
    variance = np.full(truth.shape, float(sky_sigma) ** 2)
    image = truth.copy()
    if rng is not None:
        image += rng.normal(size=truth.shape) * np.sqrt(variance + np.maximum(truth, 0) / gain)
    return PatchPixels(0, 0, image.astype(np.float32), variance, np.full(len(truth), float(gain)))


def star_error(psf, flux, sky_sigma, gain):
    """Return the error of an isolated star's flux at a known position: the Cramér-Rao bound."""
    axis = np.arange(-HALF, HALF + 1.0)
    p = psf(axis[None, :], axis[:, None])
    return 1 / np.sqrt(np.sum(p**2 / (sky_sigma**2 + flux * p / gain)))
