"""The diagonal of C2, where each frame meets itself and shot noise adds up: what stands there for pictures and files.

The fit leaves the diagonal out. For display and for ``c2_exp`` of the output it is replaced from its neighbours, with
the methods of homodyne's ``core/diagonal_correction.py``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Method: TypeAlias = Literal["basic", "statistical", "interpolation"]
Floats = NDArray[np.float64]


def corrected(matrix: NDArray[np.floating], method: Method = "basic", window: int = 3) -> Floats:
    """Return a copy of a symmetric matrix with its diagonal replaced.

    Parameters
    ----------
    matrix
        Shape (n, n), n >= 2.
    method
        ``basic``: mean of the two nearest values (at the ends: the one) of the side band, the diagonal beside the main
        one, as pyXPCSViewer does; ``statistical``: median of the values up to ``window`` frames away along row and
        column, against outliers; ``interpolation``: linear between the two neighbours, which on a symmetric matrix is
        ``basic``.
    window
        Frames on each side, for ``statistical``.

    Returns
    -------
    numpy.ndarray
        float64, shape (n, n).
    """
    out = np.array(matrix, np.float64)
    n = out.shape[0]
    if method == "statistical":
        np.fill_diagonal(out, _medians(out, min(window, n - 1)))
        return out
    side = 0.5 * (np.diagonal(out, 1) + np.diagonal(out, -1))
    np.fill_diagonal(out, np.concatenate([side[:1], 0.5 * (side[:-1] + side[1:]), side[-1:]]))
    return out


def _medians(matrix: Floats, window: int) -> Floats:
    """Return the median of the 4 (near the ends fewer) x ``window`` values beside each element of the diagonal."""
    n = matrix.shape[0]
    beside = np.full((4 * window, n), np.nan)
    for offset in range(1, window + 1):
        upper, lower = np.diagonal(matrix, offset), np.diagonal(matrix, -offset)
        for row, band in ((0, upper), (1, lower)):
            beside[4 * offset - 4 + row, : n - offset] = band
            beside[4 * offset - 2 + row, offset:] = band
    return np.asarray(np.nanmedian(beside, axis=0))
