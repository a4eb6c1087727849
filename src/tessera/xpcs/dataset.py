"""Two-time correlations as the fit wants them: rows of the upper triangle on demand, from memory or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs.errors import DataQualityError, XpcsInputError

Matrix = NDArray[np.floating[Any]]


class C2Rows(Protocol):
    """A symmetric C2(t1, t2) for each of some angles, read in blocks of rows. Safe to call from several threads."""

    @property
    def n_phi(self) -> int:
        """Number of angles."""
        ...

    @property
    def n_t(self) -> int:
        """Number of frames along each side."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values: float32 or float64."""
        ...

    def rows(self, angle: int, first: int, end: int) -> Matrix:
        """Return rows ``first … end-1``, columns ``first … n_t-1`` of the symmetric matrix of one angle.

        Parameters
        ----------
        angle
            0 … n_phi-1.
        first, end
            0 <= first < end <= n_t.

        Returns
        -------
        numpy.ndarray
            Shape (end - first, n_t - first). Its element [i, j] belongs to frames first+i and first+j. Not to be
            written to.
        """
        ...


class ArrayC2:
    """`C2Rows` of an array in memory; a matrix that is not exactly symmetric is averaged with its transpose.

    Attributes
    ----------
    array
        Float32 or float64, the elements of a row side by side.

    Parameters
    ----------
    c2
        Shape (n_phi, n_t, n_t); other types than float32 and float64 are converted to float64.

    Raises
    ------
    XpcsInputError
        If the shape is another.
    """

    def __init__(self, c2: NDArray[Any]) -> None:
        array = np.asarray(c2)
        if array.ndim != 3 or array.shape[1] != array.shape[2]:
            msg = f"c2 has shape {array.shape}; it must be (n_phi, n_t, n_t), one square matrix per angle"
            raise XpcsInputError(msg)
        if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            array = array.astype(np.float64)
        # Rows are read by C, which wants their elements side by side.
        if array.strides[2] != array.itemsize or array.strides[1] % array.itemsize or not array.flags.aligned:
            array = np.ascontiguousarray(array)
        self.array = array

    @property
    def n_phi(self) -> int:
        """Number of angles."""
        return int(self.array.shape[0])

    @property
    def n_t(self) -> int:
        """Number of frames."""
        return int(self.array.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.array.dtype

    def rows(self, angle: int, first: int, end: int) -> Matrix:
        """Return the mean of a block of rows and the same block of columns."""
        upper = self.array[angle, first:end, first:]
        lower = self.array[angle, first:, first:end].T
        return np.asarray(0.5 * (upper + lower))

    def halves(self, first: int, end: int, left: int, right: int) -> tuple[Matrix, Matrix]:
        """Return a block of rows and columns of all angles, and its mirror image, each (n_phi, rows, columns)."""
        return self.array[:, first:end, left:right], self.array[:, left:right, first:end].transpose(0, 2, 1)


@dataclass(frozen=True)
class Dataset:
    """Two-time correlations of one wavevector, ready to be fitted.

    Attributes
    ----------
    rows
        The correlations, after the selection of angles and frames.
    phi
        Angle of each matrix, deg, shape (n_phi,).
    times
        Time of each frame, s, shape (n_t,), evenly spaced.
    q
        Wavevector, 1/Å.
    frames
        First and last frame, 1-based in the file.
    layout
        ``aps_old``, ``aps_u``, ``npz`` or ``array``.
    source
        The file's name, for messages.
    notes
        What the reader of the results should know of the selection.
    """

    rows: C2Rows
    phi: NDArray[np.float64]
    times: NDArray[np.float64]
    q: float
    frames: tuple[int, int]
    layout: str
    source: str
    notes: tuple[str, ...] = ()

    @property
    def dt(self) -> float:
        """Time between frames, s."""
        return float(self.times[1] - self.times[0])

    @property
    def n_points(self) -> int:
        """Number of independent values: pairs of two different frames, counted once, of all angles."""
        return self.rows.n_phi * self.rows.n_t * (self.rows.n_t - 1) // 2

    def matrix(self, angle: int) -> NDArray[np.float64]:
        """Return the whole matrix of one angle, shape (n_t, n_t), its diagonal as it was measured."""
        n = self.rows.n_t
        full = np.empty((n, n))
        for first in range(0, n, _BLOCK):
            end = min(first + _BLOCK, n)
            block = self.rows.rows(angle, first, end)
            full[first:end, first:] = block
            full[first:, first:end] = block.T
        return full


_BLOCK = 256


def even_times(times: NDArray[Any], source: str) -> NDArray[np.float64]:
    """Return times as float64 if they are evenly spaced.

    Raises
    ------
    DataQualityError
        If they are not: the integrals over time assume one step.
    """
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or t.size < 2:
        msg = f"{source}: times have shape {t.shape}; a list of at least two times is needed"
        raise DataQualityError(msg)
    steps = np.diff(t)
    if not (np.isfinite(t).all() and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0)):
        worst = int(np.argmax(np.abs(steps - steps[0])))
        msg = (
            f"{source}: times are not evenly spaced: the step is {steps[0]:g} s at first and {steps[worst]:g} s after "
            f"entry {worst}; cut the data into evenly sampled parts and fit each"
        )
        raise DataQualityError(msg)
    return t
