"""The white stack: all bands averaged with the inverse of their sky variance, in chunks of rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.frames import FrameSet

Float32 = NDArray[np.float32]


def row_chunks(height: int) -> list[tuple[int, int]]:
    """Cut ``height`` rows into chunks ``(first, end)`` of an eighth of the frame, 64 to 1024 rows each."""
    size = max(64, min(1024, -(-height // 8)))
    return [(first, min(first + size, height)) for first in range(0, height, size)]


def white_rows(frames: FrameSet, first: int, end: int, workers: int = 1) -> tuple[Float32, Float32]:
    """Stack some rows.

    Parameters
    ----------
    frames
        The planes.
    first, end
        Rows ``first`` … ``end - 1``.
    workers
        Threads; the result does not depend on them.

    Returns
    -------
    white, sigma
        Shape (end - first, W): ``sum(image / variance) / sum(1 / variance)`` and ``sum(1 / variance)^-1/2`` in
        reference counts; NaN and inf where no band has a good pixel.
    """
    white = np.empty((end - first, frames.shape[1]), np.float32)
    sigma = np.empty_like(white)
    parts = [(end - first) * k // workers for k in range(workers + 1)]

    def stack(part: int) -> None:
        rows = slice(parts[part], parts[part + 1])
        white[rows], sigma[rows] = _stack(frames, slice(first + rows.start, first + rows.stop))

    if workers == 1:
        stack(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(stack, range(workers)))
    return white, sigma


def _stack(frames: FrameSet, rows: slice) -> tuple[Float32, Float32]:
    shape = frames.image[0, rows].shape
    total, weights = np.zeros(shape), np.zeros(shape)
    for image, variance in zip(frames.image, frames.sky_variance, strict=True):
        weight = 1.0 / variance[rows].astype(np.float64)
        total += weight * image[rows]
        weights += weight
    seen = weights > 0
    white = np.full(shape, np.nan)
    sigma = np.full(shape, np.inf)
    white[seen] = total[seen] / weights[seen]
    sigma[seen] = weights[seen] ** -0.5
    return white.astype(np.float32), sigma.astype(np.float32)
