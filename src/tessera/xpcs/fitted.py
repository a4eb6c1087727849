"""The fitted model against the data, angle by angle: maps, chi², decays along the lag; by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
    picture = np.zeros((3, m, m))
    by_lag = np.zeros((3, n))
    moments = np.zeros(6)
    scale, base = fitted.contrast[angle], fitted.offset[angle]
    for first, data, g, used in _blocks(fitted, angle, step * max(1, _BLOCK // step)):
        fit = base + scale * g
        values, model = np.where(used, data, 0.0), np.where(used, fit, 0.0)
        moments += _moments(data[used] - base, g[used], fitted.sigma, scale)
        for k, part in enumerate((values, model, used)):
            picture[k] += _pixels(np.asarray(part, np.float64), first, step, m)
        lags = (np.arange(first, n)[None] - np.arange(first, first + len(data))[:, None])[used]
        for k, weights in enumerate((data[used], fit[used], None)):
            by_lag[k] += np.bincount(lags, weights, n)
    return _finished(moments, by_lag, picture, base, fitted.sigma, step)


def _blocks(fitted: Fitted, angle: int, rows: int) -> Iterator[tuple[int, Floats, Floats, NDArray[np.bool_]]]:
    """Yield first row, data, g₁² and which pairs count, from the diagonal on; all shapes (rows, n_t - first)."""
    source = fitted.dataset.rows
    for first in range(0, source.n_t, rows):
        end = min(first + rows, source.n_t)
        data = np.asarray(source.rows(angle, first, end), np.float64)
        above = np.arange(source.n_t - first) > np.arange(end - first)[:, None]
        yield first, data, fitted.g1_squared(angle, first, end)[:, first:], above & np.isfinite(data)


def _moments(y: Floats, g: Floats, sigma: float, scale: float) -> Floats:
    """Return count, chi², and the sums g, g², y, g y of data from which the fitted offset is subtracted."""
    residual = y - scale * g
    return np.array([y.size, residual @ residual / sigma**2, g.sum(), g @ g, y.sum(), g @ y])


def _pixels(part: Floats, first: int, step: int, m: int) -> Floats:
    """Return sums over blocks of pixels at their place in the picture; ``first`` is a multiple of ``step``."""
    rows = np.add.reduceat(part, np.arange(0, part.shape[0], step), axis=0)
    small = np.add.reduceat(rows, np.arange(0, part.shape[1], step), axis=1)
    out = np.zeros((m, m))
    top = first // step
    out[top : top + small.shape[0], top : top + small.shape[1]] = small
    return out


def _finished(moments: Floats, by_lag: Floats, picture: Floats, base: float, sigma: float, step: int) -> AngleFit:
    count, chi2, g, gg, y, gy = moments
    spread = gg - g * g / count if count else 0.0
    contrast = (gy - g * y / count) / spread if spread > 0 else np.nan
    offset = base + (y - contrast * g) / count if count else np.nan
    whole = picture + np.triu(picture, 1).transpose(0, 2, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        data, fit = whole[0] / whole[2], whole[1] / whole[2]
        residual = (whole[0] - whole[1]) / (sigma * np.sqrt(whole[2]))
        lag_data, lag_fit = by_lag[0] / by_lag[2], by_lag[1] / by_lag[2]
    return AngleFit(
        int(count), float(chi2), float(contrast), float(offset), lag_data, lag_fit, data, fit, residual, step
    )


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
