"""How a PSF varies over the frame: bilinear between the nodes of a grid, or a polynomial; and analytic profiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tessera.photometry.psf import PsfField

Floats = NDArray[np.float64]

SIGMA_OF_FWHM: Final = 1 / (2 * np.sqrt(2 * np.log(2)))


@dataclass(frozen=True)
class Bilinear:
    """Weights between the four nodes around a position; outside of the grid, those of the nearest edge.

    Attributes
    ----------
    x, y
        Node coordinates in 0-based frame pixels, ascending. Stamp ``iy * len(x) + ix`` belongs to node
        ``(x[ix], y[iy])``.
    """

    x: Floats
    y: Floats

    def __post_init__(self) -> None:
        for name, nodes in (("x", self.x), ("y", self.y)):
            if nodes.ndim != 1 or nodes.size == 0 or np.any(np.diff(nodes) <= 0):
                msg = f"the {name} nodes of a PSF grid must be a non-empty ascending list, not {nodes!r}"
                raise ValueError(msg)

    def weights(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return weights of shape (n_positions, n_nodes); every row sums to one."""
        xs, ys = np.broadcast_arrays(np.atleast_1d(x), np.atleast_1d(y))
        wx, wy = _hat_weights(self.x, xs.ravel()), _hat_weights(self.y, ys.ravel())
        return (wy[:, :, None] * wx[:, None, :]).reshape(wx.shape[0], -1)


def _hat_weights(nodes: Floats, position: NDArray[np.floating]) -> Floats:
    weights = np.zeros((position.size, nodes.size))
    if nodes.size == 1:
        weights[:] = 1.0
        return weights
    left = np.clip(np.searchsorted(nodes, position, side="right") - 1, 0, nodes.size - 2)
    share = np.clip((position - nodes[left]) / (nodes[left + 1] - nodes[left]), 0.0, 1.0)
    rows = np.arange(position.size)
    weights[rows, left] = 1.0 - share
    weights[rows, left + 1] = share
    return weights


@dataclass(frozen=True)
class Polynomial:
    """PSFEx's basis: all products ``u**i * v**j`` with ``i + j <= degree``, u fastest, normalised to unit flux.

    Attributes
    ----------
    degree
        Total degree.
    zero, scale
        ``u = (x - zero[0]) / scale[0]`` and ``v = (y - zero[1]) / scale[1]`` in 0-based frame pixels.
    flux
        Flux in each stamp, shape (n_stamps,). The weights are divided by the flux of the sum, so that the PSF
        contains the same flux everywhere and stays a linear combination of the stamps.
    """

    degree: int
    zero: tuple[float, float]
    scale: tuple[float, float]
    flux: Floats

    def weights(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return weights of shape (n_positions, n_terms)."""
        xs, ys = np.broadcast_arrays(np.atleast_1d(x), np.atleast_1d(y))
        u = (xs.ravel() - self.zero[0]) / self.scale[0]
        v = (ys.ravel() - self.zero[1]) / self.scale[1]
        terms = [u**i * v**j for j in range(self.degree + 1) for i in range(self.degree + 1 - j)]
        weights = np.stack(terms, axis=1).astype(np.float64)
        normalised: Floats = weights / np.einsum("pm,m->p", weights, self.flux)[:, None]
        return normalised


def moffat(dx: ArrayLike, dy: ArrayLike, fwhm: float, beta: float, e1: float = 0.0, e2: float = 0.0) -> Floats:
    """Return the density of a Moffat profile that contains unit flux over the infinite plane.

    ``(beta - 1) / (pi a^2) * (1 + r^2 / a^2)^-beta`` with ``a = fwhm / (2 sqrt(2^(1/beta) - 1))`` and ``r``
    sheared by an area-preserving ellipticity (Moffat 1969, A&A 3, 455).

    Parameters
    ----------
    dx, dy
        Offsets from the centre, pixels; they are broadcast.
    fwhm
        Full width at half maximum, pixels.
    beta
        Power of the wings, above 1.
    e1, e2
        Ellipticity along the axes and along the diagonals; positive e1 is long in x.

    Returns
    -------
    numpy.ndarray
        Flux per square pixel.
    """
    dx, dy = np.asarray(dx, np.float64), np.asarray(dy, np.float64)
    a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    shear = np.sqrt(1 - e1 * e1 - e2 * e2)
    r2 = ((1 - e1) * dx * dx - 2 * e2 * dx * dy + (1 + e1) * dy * dy) / shear
    density: Floats = (beta - 1) / (np.pi * a2) * (1 + r2 / a2) ** -beta
    return density


def gaussian(dx: ArrayLike, dy: ArrayLike, fwhm: float) -> Floats:
    """Return the density of a round Gaussian of unit flux; offsets and fwhm in pixels."""
    dx, dy = np.asarray(dx, np.float64), np.asarray(dy, np.float64)
    s2 = (fwhm * SIGMA_OF_FWHM) ** 2
    density: Floats = np.exp(-0.5 * (dx * dx + dy * dy) / s2) / (2 * np.pi * s2)
    return density


def stamp_offsets(size: int, oversampling: int = 1) -> Floats:
    """Return the offsets, native pixels, of the samples along one axis of a stamp ``size`` native pixels wide."""
    half = (size // 2) * oversampling
    return np.arange(-half, half + 1) / oversampling


def analytic_oversampling(fwhm: float) -> int:
    """Return samples per pixel that keep an analytic profile of this width (pixels) free of aliasing."""
    return int(np.clip(np.ceil(3.0 / fwhm), 1, 4))


def moffat_field(fwhm: float, beta: float, size: int) -> PsfField:
    """Return a constant Moffat PSF, sampled as an effective PSF, in a stamp ``size`` native pixels wide."""
    oversampling = analytic_oversampling(fwhm)
    offsets = stamp_offsets(size, oversampling)
    return PsfField(moffat(offsets[None, :], offsets[:, None], fwhm, beta)[None], oversampling)


def gaussian_field(fwhm: float, size: int) -> PsfField:
    """Return a constant Gaussian PSF, sampled as an effective PSF, in a stamp ``size`` native pixels wide."""
    oversampling = analytic_oversampling(fwhm)
    offsets = stamp_offsets(size, oversampling)
    return PsfField(gaussian(offsets[None, :], offsets[:, None], fwhm)[None], oversampling)
