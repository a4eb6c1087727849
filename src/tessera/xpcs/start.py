"""What the data say before a fit: contrast and offset by quantiles, as homodyne estimates them, and the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.objective import Sum
from tessera.xpcs.dataset import C2Rows
from tessera.xpcs.physics import CONTRAST, OFFSET, Floats

_FEWEST: Final = 100
"""Values at short or long lags below which the middle of the bounds is taken."""

_ROWS: Final = 256
"""Rows of C₂ that are looked at, evenly spread: quantiles of more do not differ beyond their error."""

_NOISE_BLOCKS: Final = 8
_NOISE_ROWS: Final = 8
_LAG_BINS: Final = 16
_NOISIEST: Final = 2.0

_FEWEST_DIFFERENCES: Final = 10


def quantile_scaling(c2: C2Rows) -> Floats:
    """Return contrast and offset of each angle, shape (n_phi, 2).

    The offset is the 10th percentile of the values in the longest fifth of all lags, the contrast the 90th percentile
    in the shortest fifth minus the offset; both are kept within their bounds.
    """
    n = c2.n_t
    shortest, longest = n * (1 - np.sqrt(0.8)), n * (1 - np.sqrt(0.2))
    rows = np.unique(np.linspace(0, n - 2, min(n - 1, _ROWS)).astype(int)) if n > 1 else np.zeros(0, int)
    out = np.empty((c2.n_phi, 2))
    for angle in range(c2.n_phi):
        near, far = [], []
        for row in rows:
            values = c2.rows(angle, int(row), int(row) + 1)[0]
            near.append(values[1 : max(2, int(shortest) + 1)])
            far.append(values[int(np.ceil(longest)) :])
        out[angle] = _estimate(np.concatenate(near), np.concatenate(far))
    return out


def _estimate(near: Floats, far: Floats) -> Floats:
    near, far = near[np.isfinite(near)], far[np.isfinite(far)]
    if min(near.size, far.size) < _FEWEST:
        return 0.5 * np.array([CONTRAST.lower + CONTRAST.upper, OFFSET.lower + OFFSET.upper])
    offset = float(np.percentile(far, 10))
    contrast = float(np.percentile(near, 90)) - offset
    return np.array([np.clip(contrast, CONTRAST.lower, CONTRAST.upper), np.clip(offset, OFFSET.lower, OFFSET.upper)])


def noise_variances(c2: C2Rows, add: Sum) -> Floats:
    """Return the noise variance of each angle, averaged over all pairs of times, shape (n_phi,). Collective.

    It is judged by second differences along rows, which a smooth decay hardly touches. Noise grows with C₂ itself where
    it comes from counting, so short lags matter; a decay within a few frames would look like noise there, hence
    nowhere more than `_NOISIEST` times what is seen at the longest lags is believed.

    Parameters
    ----------
    c2
        The correlations.
    add
        How the contributions of blocks of rows are added up over the ranks.
    """
    blocks = _blocks(c2.n_t)
    sums = add(len(blocks), lambda mine: (_differences(c2, blocks[k]) for k in mine))
    out = np.full(c2.n_phi, np.inf)
    for angle in range(c2.n_phi):
        seen, number = sums["squares"][angle], sums["counts"][angle]
        if not number.any():
            continue
        long = slice(_LAG_BINS // 2, None) if number[_LAG_BINS // 2 :].any() else slice(None)
        limit = _NOISIEST * seen[long].sum() / number[long].sum()
        out[angle] = np.minimum(seen, limit * number).sum() / number.sum()
    return out


def _differences(c2: C2Rows, first: int) -> dict[str, Floats]:
    """Return Σ (second difference)²/6 and the number of differences by lag in a block of rows, (n_phi, bins) each."""
    n, end = c2.n_t, min(first + _NOISE_ROWS, c2.n_t)
    lags = np.arange(n - first - 2) - np.arange(1, end - first + 1)[:, None]
    bins = np.where(lags >= 0, lags * _LAG_BINS // n, _LAG_BINS).ravel()
    squares, counts = np.empty((c2.n_phi, _LAG_BINS)), np.empty((c2.n_phi, _LAG_BINS))
    for angle in range(c2.n_phi):
        values = c2.rows(angle, first, end).astype(np.float64, copy=False)
        second = (values[:, 2:] - 2.0 * values[:, 1:-1] + values[:, :-2]).ravel() ** 2 / 6
        known = np.isfinite(second)
        second[~known] = 0.0
        counts[angle] = np.bincount(bins, known, _LAG_BINS + 1)[:_LAG_BINS]
        squares[angle] = np.bincount(bins, second, _LAG_BINS + 1)[:_LAG_BINS]
    return {"squares": squares, "counts": counts}


def typical_noise(c2: C2Rows) -> float:
    """Return the noise of a value by `noise_behind` second differences along some rows; the median over angles."""
    n = c2.n_t
    found = []
    for angle in range(c2.n_phi):
        rows = [row for first in _blocks(n) for row in enumerate(c2.rows(angle, first, min(first + _NOISE_ROWS, n)))]
        found.append(noise_behind([np.diff(values[k + 1 :].astype(np.float64), 2) for k, values in rows]))
    return float(np.median(found))


def noise_behind(differences: Sequence[NDArray[Any]]) -> float:
    """Return the noise behind second differences by their median, which outliers do not move.

    Their variance is 1 + 4 + 1 times that of a value. NaN if there are too few of them.
    """
    values = np.concatenate(differences) if differences else np.empty(0)
    values = values[np.isfinite(values)]
    if values.size < _FEWEST_DIFFERENCES:
        return np.nan
    return float(1.4826 * np.median(np.abs(values)) / np.sqrt(6.0))


def _blocks(n_t: int) -> list[int]:
    """Return the first rows of the blocks that tell the noise: neighbouring rows share lines of the cache."""
    return sorted({int(first) for first in np.linspace(0, max(n_t - 4 - _NOISE_ROWS, 0), _NOISE_BLOCKS)})
