"""Upper triangles in memory, row after row: for files whose matrices have to be decoded whole."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs.dataset import C2Rows, Matrix

_BLOCK: Final = 128


class PackedRows:
    """`tessera.xpcs.dataset.C2Rows` of packed upper triangles.

    Parameters
    ----------
    packed
        Shape (n_phi, `packed_size` (n_t)): of each angle rows from the diagonal on, one after the other.
    n_t
        Number of frames.
    """

    def __init__(self, packed: NDArray[Any], n_t: int) -> None:
        self._packed, self._n_t = packed, n_t

    @property
    def n_phi(self) -> int:
        """Number of angles."""
        return int(self._packed.shape[0])

    @property
    def n_t(self) -> int:
        """Number of frames."""
        return self._n_t

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the packed values."""
        return self._packed.dtype

    def rows(self, angle: int, first: int, end: int) -> Matrix:
        """Return a block of rows, from its diagonal to the last column."""
        width = self._n_t - first
        block = np.empty((end - first, width), self.dtype)
        values, at = self._packed[angle], packed_size(self._n_t) - packed_size(width)
        for i, row in enumerate(block):
            row[i:] = values[at : at + width - i]
            at += width - i
        mirror(block)
        return block


def packed_size(n_t: int) -> int:
    """Return the number of values of an upper triangle with its diagonal."""
    return n_t * (n_t + 1) // 2


def pack(source: C2Rows, angle: int, out: NDArray[Any]) -> None:
    """Write the upper triangle of one angle, shape (packed_size,); blocks of rows are read in order."""
    at = 0
    for first in range(0, source.n_t, _BLOCK):
        for i, row in enumerate(source.rows(angle, first, min(first + _BLOCK, source.n_t))):
            out[at : at + row.size - i] = row[i:]
            at += row.size - i


def mirror(block: Matrix) -> None:
    """Fill what lies below the diagonal of a block of rows from what lies above."""
    square = block[:, : block.shape[0]]
    below = _below(block.shape[0])
    square[below] = square.T[below]


@cache
def _below(size: int) -> tuple[NDArray[np.intp], ...]:
    return np.tril_indices(size, -1)
