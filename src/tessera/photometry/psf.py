"""A point-spread function that varies over the frame, as a linear combination of stamps.

``PSF(x, y) = sum_m weights_m(x, y) * stamps[m]`` covers a constant PSF (one stamp), a grid of ePSFs
(bilinear weights) and PSFEx models (polynomial weights) alike, and stays linear under the Fourier
transform, so that each stamp is transformed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Basis(Protocol):
    """The weights of the stamps at a position."""

    def weights(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return weights of shape (n_positions, n_stamps) at 0-based frame pixel positions."""
        ...


@dataclass(frozen=True)
class Constant:
    """One stamp for the whole frame."""

    def weights(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return ones of shape (n_positions, 1)."""
        return np.ones((np.broadcast(np.atleast_1d(x), np.atleast_1d(y)).size, 1))


@dataclass(frozen=True)
class PsfField:
    """A (spatially varying) effective PSF: the response of a pixel to a point source, pixel included.

    Attributes
    ----------
    stamps
        Shape (M, n, n) with n odd, centred on sample ``[(n - 1) / 2, (n - 1) / 2]``. A value is the fraction
        of the source's flux that falls in a native pixel at that offset, so a stamp that contains all the
        flux sums to ``oversampling**2``.
    oversampling
        Samples per native pixel along each axis.
    basis
        The weights of the stamps at a position of the frame.
    """

    stamps: Floats
    oversampling: int = 1
    basis: Basis = Constant()

    def __post_init__(self) -> None:
        if self.stamps.ndim != 3 or self.stamps.shape[1] != self.stamps.shape[2] or self.stamps.shape[1] % 2 == 0:
            msg = f"PSF stamps have shape {self.stamps.shape}; expected (M, n, n) with n odd"
            raise ValueError(msg)

    def at(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return the PSF stamps, shape (n_positions, n, n), at 0-based frame pixel positions."""
        return np.tensordot(self.basis.weights(x, y), self.stamps, axes=1)
