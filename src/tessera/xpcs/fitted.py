"""The fitted model against the data, angle by angle: maps, chi², decays along the lag; by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.threads import one_blas_thread
from tessera.xpcs.dataset import Dataset
from tessera.xpcs.physics import Floats, g1_squared

_BLOCK: Final = 128
_PIXELS: Final = 180
"""Most pixels to a side of a picture."""


@dataclass(frozen=True)
class Fitted:
    """Data and the model that was fitted to them.

    Attributes
    ----------
    dataset
        The data.
    physical
        The physical parameters, in the order of the model.
    gap
        Between stator and rotor, Å; None without flow.
    contrast, offset
        Of each angle, shape (n_phi,).
    sigma
        Standard deviation of a value.
    """

    dataset: Dataset
    physical: Floats
    gap: float | None
    contrast: Floats
    offset: Floats
    sigma: float

    def g1_squared(self, angle: int, first: int, end: int) -> Floats:
        """Return g₁² of rows ``first … end-1``, all columns."""
        data = self.dataset
        phi = float(data.phi[angle])
        return g1_squared(self.physical, data.times, q=data.q, gap=self.gap, phi=phi, rows=slice(first, end))


@dataclass(frozen=True)
class AngleFit:
    """How well one angle is fitted. Sums are over pairs of two different frames, each counted once, that are finite.

    Attributes
    ----------
    count
        Number of pairs.
    chi2
        Σ ((c2 - fit)/σ)².
    contrast, offset
        That fit this angle best with the same g₁² (homodyne's ``per_angle_scaling``).
    lag_data, lag_fit
        Mean of data and fit at each lag, shape (n_t,); NaN at lag 0.
    data, fit, residual
        Means over blocks of pixels, shape (m, m), symmetric; residual in units of the noise of a mean over a block,
        NaN where there is none.
    step
        Frames to a pixel of these.
    """

    count: int
    chi2: float
    contrast: float
    offset: float
    lag_data: Floats
    lag_fit: Floats
    data: Floats
    fit: Floats
    residual: Floats
    step: int


def compare(fitted: Fitted, angle: int) -> AngleFit:
    """Compare one angle with its fit, holding a few rows at a time.

    Parameters
    ----------
    fitted
        Data and model.
    angle
        0 … n_phi-1.
    """
    n = fitted.dataset.rows.n_t
    step = -(-n // _PIXELS)
    m = -(-n // step)
    picture, by_lag, moments = np.zeros((3, m, m)), np.zeros((3, n)), np.zeros(6)
    scale, base = float(fitted.contrast[angle]), float(fitted.offset[angle])
    with one_blas_thread():
        for first, used, y, g in _blocks(fitted, angle, base, step * max(1, _BLOCK // step)):
            residual = y - scale * g
            moments += [used.sum(), np.vdot(residual, residual), g.sum(), np.vdot(g, g), y.sum(), np.vdot(g, y)]
            for k, part in enumerate((used, y, g)):
                _add_pixels(picture[k], part, first, step)
                for i, row in enumerate(part):
                    by_lag[k, : row.size - i] += row[i:]
    return _finished(moments, by_lag, picture, (scale, base, fitted.sigma), step)


def _blocks(fitted: Fitted, angle: int, base: float, rows: int) -> Iterator[tuple[int, Floats, Floats, Floats]]:
    """Yield blocks of rows from the diagonal on: first row, 1 where a pair counts, data above the offset, g₁².

    The arrays have shape (rows, n_t - first) and are zero where a pair does not count.
    """
    source = fitted.dataset.rows
    for first in range(0, source.n_t, rows):
        end = min(first + rows, source.n_t)
        data = np.asarray(source.rows(angle, first, end), np.float64)
        used = np.isfinite(data)
        used &= np.arange(source.n_t - first) > np.arange(end - first)[:, None]
        g = fitted.g1_squared(angle, first, end)[:, first:]
        yield first, used.astype(np.float64), np.where(used, data - base, 0.0), np.where(used, g, 0.0)


def _add_pixels(picture: Floats, part: Floats, first: int, step: int) -> None:
    """Add sums over blocks of pixels at their place in the picture; ``first`` is a multiple of ``step``."""
    if step > 1:
        part = np.add.reduceat(part, np.arange(0, part.shape[0], step), axis=0)
        part = np.add.reduceat(part, np.arange(0, part.shape[1], step), axis=1)
    top = first // step
    picture[top : top + part.shape[0], top : top + part.shape[1]] += part


def _finished(moments: Floats, by_lag: Floats, picture: Floats, law: tuple[float, float, float], step: int) -> AngleFit:
    scale, base, sigma = law
    count, squares, g, gg, y, gy = (float(v) for v in moments)
    spread = gg - g * g / count if count else 0.0
    contrast = (gy - g * y / count) / spread if spread > 0 else np.nan
    offset = base + (y - contrast * g) / count if count else np.nan
    number, data, model = picture + np.triu(picture, 1).transpose(0, 2, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = (data - scale * model) / (sigma * np.sqrt(number))
        data, model = base + data / number, base + scale * model / number
        lag_data, lag_fit = base + by_lag[1] / by_lag[0], base + scale * by_lag[2] / by_lag[0]
    return AngleFit(int(count), squares / sigma**2, contrast, offset, lag_data, lag_fit, data, model, residual, step)


_STACKED: Final = ("count", "chi2", "contrast", "offset", "lag_data", "lag_fit", "data", "fit", "residual")


def joined(angles: Sequence[AngleFit]) -> dict[str, NDArray[np.float64]]:
    """Return the records of all angles as arrays whose first axis is the angle."""
    arrays = {name: np.array([getattr(a, name) for a in angles], np.float64) for name in _STACKED}
    return {**arrays, "step": np.array(angles[0].step, np.float64)}


def parted(arrays: Mapping[str, NDArray[np.float64]]) -> tuple[AngleFit, ...]:
    """Return the records again."""
    return tuple(
        AngleFit(
            count=int(arrays["count"][a]),
            chi2=float(arrays["chi2"][a]),
            contrast=float(arrays["contrast"][a]),
            offset=float(arrays["offset"][a]),
            lag_data=arrays["lag_data"][a],
            lag_fit=arrays["lag_fit"][a],
            data=arrays["data"][a],
            fit=arrays["fit"][a],
            residual=arrays["residual"][a],
            step=int(arrays["step"]),
        )
        for a in range(len(arrays["count"]))
    )
