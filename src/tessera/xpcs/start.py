"""What the data say before a fit: contrast and offset by quantiles, as homodyne estimates them, and the noise."""

from __future__ import annotations

from typing import Final

import numpy as np

from tessera.xpcs.dataset import C2Rows
from tessera.xpcs.physics import CONTRAST, OFFSET, Floats

_FEWEST: Final = 100
"""Values at short or long lags below which the middle of the bounds is taken."""

_ROWS: Final = 256
"""Rows of C₂ that are looked at, evenly spread: quantiles of more do not differ beyond their error."""


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


def noise_variances(c2: C2Rows) -> Floats:
    """Return the noise variance of each angle, shape (n_phi,), from second differences along the longest lags."""
    n = c2.n_t
    out = np.zeros(c2.n_phi)
    rows = range(min(n // 2, _NOISE_ROWS))
    for angle in range(c2.n_phi):
        values = np.stack([c2.rows(angle, row, row + 1)[0][n // 2 - row :] for row in rows]).astype(np.float64)
        second = values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]
        second = second[np.isfinite(second)]
        out[angle] = np.mean(second**2) / 6 if second.size else np.inf
    return out


_NOISE_ROWS: Final = 64
