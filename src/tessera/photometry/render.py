"""Pictures of sources and their derivatives, drawn in Fourier space.

``picture = PSF * profile * shift`` is a product in Fourier space, exact for any sub-pixel position. The PSF's
spectrum is kept up to a whole multiple of the sampling frequency and folded back, so that a PSF that
is sharper than its pixels is drawn as pixels see it. Derivatives with respect to position and shape are
analytic: one more product each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from tessera.photometry.profiles import covariance, transform
from tessera.photometry.psf import PsfField
from tessera.photometry.sources import DEV, EXP, STAR, Kind

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Complexes = NDArray[np.complex64]

_DROPPED_POWER: Final = 1e-8
"""Largest share of the PSF's power that may be left out at high frequencies: errors of 1e-4 of the picture."""
_EXTENT: Final = {EXP: 6.0, DEV: 8.0}
"""Half-side of a galaxy's picture in half-light radii: 0.05 % of an exponential's light is outside."""
_MAX_HALF_SIDE: Final = 128
_SIZE_RATIO: Final = 1.25


@dataclass(frozen=True)
class Stamp:
    """A source of unit flux on the pixels of a patch.

    Attributes
    ----------
    rows, cols
        The pixels of the patch it covers.
    maps
        Shape (B, k, h, w): the picture, its derivatives with respect to x and y and, for galaxies whose shape
        is fitted, with respect to ``ln r, eta1, eta2`` (see `profiles.shape_parameters`).
    half
        How many pixels it reaches to each side of its central one, where the patch does not end before.
    """

    rows: slice
    cols: slice
    maps: Singles
    half: int

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Return the index of the stamp's pixels in an array of shape (B, h, w)."""
        return slice(None), self.rows, self.cols


class Renderer:
    """Draws sources at their own PSF, which is that at the position where the fit starts.

    Parameters
    ----------
    psfs
        One field a band.
    x, y
        Shape (n,), frame pixels, where the PSF of each source is taken.
    x0, y0
        Frame pixel of the patch's first pixel.
    shape
        Rows and columns of the patch.
    """

    def __init__(
        self, psfs: Sequence[PsfField], x: Floats, y: Floats, x0: int, y0: int, shape: tuple[int, int]
    ) -> None:
        self._origin = (x0, y0)
        self._shape = shape
        self._stamps: list[Singles] = []
        self._weights: list[Singles] = []
        self._fold = 1
        for psf in psfs:
            weights = psf.basis.weights(x, y)
            # Only the few nodes around a patch have a say in it; the others are not transformed.
            used = np.any(weights != 0, axis=0)
            self._weights.append(weights[:, used].astype(np.float32))
            stamps = psf.stamps[used].astype(np.float32)
            self._stamps.append(stamps)
            self._fold = max(self._fold, _needed_fold(stamps, psf.oversampling))
        self._oversampling = [psf.oversampling for psf in psfs]
        self._half: int = max((psf.stamps.shape[-1] - 1) // 2 // psf.oversampling for psf in psfs)
        self._size = _fft_size(self._half)
        self._spectra = [
            _spectra(stamps, psf.oversampling, self._size, self._fold)
            for stamps, psf in zip(self._stamps, psfs, strict=True)
        ]
        self._psf_of: dict[tuple[int, int], Complexes] = {}

    def draw(
        self, source: int, kind: int, x: float, y: float, shape: Floats, with_shape: bool, least: int = 0
    ) -> Stamp:
        """Draw one source.

        Parameters
        ----------
        source
            Its index among the positions given at the start.
        kind
            A `Kind`.
        x, y
            Its position, frame pixels.
        shape
            Shape (3,), ``ln r, eta1, eta2``; not used for a star.
        with_shape
            Also return the derivatives with respect to ``shape``.
        least
            Smallest `Stamp.half`. A fit passes that of its last picture: a box that shrinks and grows again as a
            radius settles would be a step in chi² that no step gets over.

        Returns
        -------
        Stamp
            Of no pixel if the source is too far from the patch.
        """
        half = max(self.half_side(kind, shape), least)
        left, bottom = round(x) - half, round(y) - half
        x0, y0 = self._origin
        cols, inner_cols = _clip(left - x0, 2 * half + 1, self._shape[1])
        rows, inner_rows = _clip(bottom - y0, 2 * half + 1, self._shape[0])
        size = _fft_size(half)
        fields = _fields(size, self._fold, x - left, y - bottom, kind, shape, with_shape)
        spectrum = _folded(self._psf(source, size)[:, None] * fields, size, self._fold)
        lines = scipy.fft.ifft(spectrum, axis=-2, overwrite_x=True)[..., inner_rows, :]
        maps = scipy.fft.irfft(lines, n=size, axis=-1, overwrite_x=True)[..., inner_cols]
        return Stamp(rows, cols, np.ascontiguousarray(maps), half)

    def half_side(self, kind: int, shape: Floats) -> int:
        """Return how many pixels a picture reaches to each side of its central one."""
        if kind == STAR:
            return self._half
        wanted = min(_EXTENT[Kind(kind)] * math.exp(shape[0] + math.hypot(shape[1], shape[2]) / 2), _MAX_HALF_SIDE)
        # Few sizes, so that few transforms of the PSF serve all galaxies.
        steps = max(0, math.ceil(math.log(wanted / self._half) / math.log(_SIZE_RATIO)))
        return math.ceil(self._half * _SIZE_RATIO**steps)

    def effective_area(self) -> float:
        """Return the largest noise-equivalent area of the bands' PSFs, ``1 / sum(P²)``, pixel²."""
        areas = []
        for stamps, oversampling in zip(self._stamps, self._oversampling, strict=True):
            power = np.sum(np.mean(stamps, axis=0, dtype=np.float64) ** 2) / oversampling**2
            areas.append(1.0 / float(power))
        return max(areas)

    def _psf(self, source: int, size: int) -> Complexes:
        """Return the spectra of a source's PSF, shape (B, size * fold, size * fold / 2 + 1)."""
        key = (source, size)
        if key not in self._psf_of:
            if size > self._size:
                spectra = _enlarged(self._psf(source, self._size), size * self._fold)
            else:
                bands = zip(self._weights, self._spectra, strict=True)
                spectra = np.stack([_combine(weights[source], spectra) for weights, spectra in bands])
            self._psf_of[key] = spectra
        return self._psf_of[key]


def _fft_size(half: int) -> int:
    """Return an even length, quick to transform, of at least ``2 half + 2`` pixels."""
    size = int(scipy.fft.next_fast_len(half + 1, real=True))
    return 2 * size


def _combine(weights: Singles, spectra: Complexes) -> Complexes:
    total = np.zeros(spectra.shape[1:], np.complex64)
    for m in np.flatnonzero(weights):
        total += weights[m] * spectra[m]
    return total


def _clip(start: int, length: int, end: int) -> tuple[slice, slice]:
    """Return which of ``[start, start + length)`` lies in ``[0, end)``, in both counts."""
    low, high = min(max(start, 0), end), max(min(start + length, end), 0)
    high = max(low, high)
    return slice(low, high), slice(low - start, high - start)


def _needed_fold(stamps: Singles, oversampling: int) -> int:
    """Return up to how many sampling frequencies the PSF's spectrum has to be kept.

    By Parseval's theorem the power beyond a frequency along x needs transforms along x only.
    """
    if oversampling == 1 or len(stamps) == 0:
        return 1
    stamp = np.asarray(stamps.mean(axis=0))
    size = oversampling * int(scipy.fft.next_fast_len(2 + (len(stamp) - 1) // oversampling))
    for fold in range(1, oversampling):
        first = fold * size // (2 * oversampling)
        lost = 0.0
        for lines in (stamp, stamp.T):
            spectrum = scipy.fft.rfft(lines, n=size, axis=1)
            power = np.asarray(np.sum(np.abs(spectrum) ** 2, axis=0, dtype=np.float64))
            lost += float(power[first:].sum() / power.sum())
        if lost < _DROPPED_POWER:
            return fold
    return oversampling


def _spectra(stamps: Singles, oversampling: int, size: int, fold: int) -> Complexes:
    """Return the stamps' Fourier transforms, unit flux at zero frequency, on the grid of `_frequencies`."""
    full = size * oversampling
    kept = size * min(fold, oversampling)
    columns = scipy.fft.rfft(stamps, n=full, axis=2)[..., : kept // 2 + 1]
    both = scipy.fft.fft(columns, n=full, axis=1)
    fy, fx = _frequencies(size, min(fold, oversampling))
    index = np.concatenate([np.arange(kept // 2), np.arange(full - kept // 2, full)])
    centre = (stamps.shape[-1] - 1) / 2 / oversampling
    to_origin = np.exp(2j * np.pi * centre * fy)[:, None] * np.exp(2j * np.pi * centre * fx)
    spectra = both[:, index] * (to_origin / oversampling**2).astype(np.complex64)
    return _padded(spectra, kept, size * fold)


def _padded(spectra: Complexes, kept: int, wanted: int) -> Complexes:
    """Return the spectra with zeros at the frequencies between ``kept / 2`` and ``wanted / 2``."""
    if kept == wanted:
        return spectra
    half = kept // 2
    out = np.zeros((len(spectra), wanted, wanted // 2 + 1), np.complex64)
    out[:, :half, : half + 1] = spectra[:, :half]
    out[:, wanted - half :, : half + 1] = spectra[:, half:]
    # On the wider grid the two signs of the highest frequency are two entries that share its power.
    out[:, half] = out[:, wanted - half] / 2
    out[:, wanted - half] /= 2
    out[:, :, half] /= 2
    return out


def _enlarged(spectra: Complexes, wanted: int) -> Complexes:
    """Return the spectra on a finer grid of frequencies: those of the same picture with zeros around it."""
    size = spectra.shape[1]
    picture = scipy.fft.fftshift(scipy.fft.irfft2(spectra, s=(size, size)), axes=(1, 2))
    before = wanted // 2 - size // 2
    around = (before, wanted - size - before)
    padded = np.pad(picture, ((0, 0), around, around))
    return np.asarray(scipy.fft.rfft2(scipy.fft.ifftshift(padded, axes=(1, 2))))


@lru_cache(maxsize=64)
def _frequencies(size: int, fold: int) -> tuple[Floats, Floats]:
    """Return the frequencies along y and x, cycles per pixel, up to ``fold`` times the pixel's Nyquist."""
    return scipy.fft.fftfreq(size * fold, 1 / fold), scipy.fft.rfftfreq(size * fold, 1 / fold)


def _shifts(frequencies: Floats, shift: float) -> tuple[Complexes, Complexes]:
    """Return the phases of a shift and their derivatives with respect to it."""
    turn = 2 * np.pi * frequencies
    phase = np.exp(-1j * turn * shift)
    slope = -1j * turn * phase
    highest = int(np.argmax(np.abs(frequencies)))
    # The highest frequency of an even grid stands for both signs, so that only the real part survives.
    phase[highest] = phase[highest].real
    slope[highest] = slope[highest].real
    return phase.astype(np.complex64), slope.astype(np.complex64)


def _fields(
    size: int,
    fold: int,
    x: float,
    y: float,
    kind: int,
    shape: Floats,
    with_shape: bool,
) -> Complexes:
    """Return what the PSF's spectrum is multiplied with, shape (k, size * fold, size * fold / 2 + 1)."""
    fy, fx = _frequencies(size, fold)
    px, dx = _shifts(fx, x)
    py, dy = _shifts(fy, y)
    fields = np.stack([py[:, None] * px, py[:, None] * dx, dy[:, None] * px])
    if kind == STAR:
        return fields
    c, slopes = covariance(shape)
    terms = _quadratics(size, fold)
    profile, slope = transform(kind, _weighted(c, terms))
    galaxy = (fields * profile).astype(np.complex64, copy=False)
    if not with_shape:
        return galaxy
    bent = fields[0] * slope
    bends = np.stack([bent * _weighted(row, terms) for row in slopes])
    return np.concatenate([galaxy, bends]).astype(np.complex64, copy=False)


def _weighted(c: Floats, terms: Singles) -> Singles:
    a = c.astype(np.float32)
    return np.asarray(a[0] * terms[0] + a[1] * terms[1] + a[2] * terms[2])


@lru_cache(maxsize=16)
def _quadratics(size: int, fold: int) -> Singles:
    """Return ``(2 pi)² (kx², 2 kx ky, ky²)``."""
    fy, fx = _frequencies(size, fold)
    kx, ky = np.meshgrid(2 * np.pi * fx, 2 * np.pi * fy)
    return np.stack([kx * kx, 2 * kx * ky, ky * ky]).astype(np.float32)


def _folded(spectra: Complexes, size: int, fold: int) -> Complexes:
    """Return the spectra on the pixel grid, shape (…, size, size / 2 + 1): the sum over all aliases."""
    if fold == 1:
        return spectra
    rows = spectra[..., :size, :].copy()
    for alias in range(1, fold):
        rows += spectra[..., alias * size : (alias + 1) * size, :]
    half = size // 2 + 1
    out = rows[..., :half].copy()
    for alias in range(1, fold):
        if alias <= (fold - 1) / 2:
            out += rows[..., alias * size : alias * size + half]
            continue
        # Beyond the half plane that is stored, the spectrum of a real picture is F(-k) = conj F(k).
        last = (fold - alias) * size
        mirrored = rows[..., last - half + 1 : last + 1][..., ::-1].conj()
        out[..., 0, :] += mirrored[..., 0, :]
        out[..., 1:, :] += mirrored[..., :0:-1, :]
    return out
