"""Chunks as the accumulation may trust them: finite, with positive errors, and of the same length in every pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.errors import DataError
from tessera.lsq.sources import Chunk, ChunkSource

NanPolicy: TypeAlias = Literal["raise", "mask", "skip"]
"""Not-finite data are an error, left out point by point, or left out with the whole chunk they are in."""

_F32: Final = np.finfo(np.float32)


@dataclass
class Guarded:
    """A chunk source that checks what another one reads.

    Attributes
    ----------
    source
        What is read.
    policy
        What happens to data that are not finite.
    left_out
        Points left out so far, by chunk, with the reason.
    single
        Whether all points read so far can be told apart in float32.
    """

    source: ChunkSource
    policy: NanPolicy = "raise"
    left_out: dict[int, tuple[int, str]] = field(default_factory=dict)
    single: bool = True
    _lengths: dict[int, int] = field(default_factory=dict)

    @property
    def n_points(self) -> int:
        """Points in all."""
        return self.source.n_points

    @property
    def chunk_size(self) -> int:
        """Points in each chunk but the last."""
        return self.source.chunk_size

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return self.source.n_chunks

    def read(self, index: int) -> Chunk:
        """Return chunk ``index``; every value in it is finite and every error positive, masked points included.

        Raises
        ------
        DataError
            Naming the chunk and the points, if data are not finite under the policy ``raise``, an error is not
            positive, or the chunk has another length than in an earlier pass.
        """
        chunk = self.source.read(index)
        self._check_length(index, chunk)
        first_time = index not in self._lengths
        self._lengths[index] = int(chunk.y.shape[0])
        if first_time:
            self.single = self.single and _tell_apart(chunk)
        self._check_errors(index, chunk)
        good = _finite(chunk)
        wanted = good if chunk.mask is None else good | ~chunk.mask
        if wanted.all() and good.all():
            return chunk
        return self._without(index, chunk, good, wanted)

    def _check_length(self, index: int, chunk: Chunk) -> None:
        n = int(chunk.y.shape[0])
        planned = min(self.chunk_size, self.n_points - index * self.chunk_size)
        before = self._lengths.get(index, planned)
        if n != before:
            when = "in an earlier pass" if index in self._lengths else "by its source's size"
            msg = f"chunk {index} has {n} points but {before} {when}; the data must not change while a fit runs"
            raise DataError(msg)
        for name, array in (("x", chunk.x), ("sigma", chunk.sigma), ("mask", chunk.mask)):
            if array is not None and array.shape[-1] != n:
                msg = f"chunk {index} has {n} points but its {name} has shape {array.shape}; give one value per point"
                raise DataError(msg)

    def _check_errors(self, index: int, chunk: Chunk) -> None:
        if chunk.sigma is None:
            return
        bad = chunk.sigma <= 0 if chunk.mask is None else (chunk.sigma <= 0) & chunk.mask
        if bad.any():
            first = int(np.argmax(bad))
            msg = (
                f"sigma is {float(chunk.sigma[first])!r} at point {self._number(index, first)} (chunk {index}, "
                f"{np.count_nonzero(bad)} such points in it); standard errors are > 0: mask points without one"
            )
            raise DataError(msg)

    def _without(self, index: int, chunk: Chunk, good: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> Chunk:
        bad = int(np.count_nonzero(~wanted))
        if bad and self.policy == "raise":
            raise DataError(self._complaint(index, chunk, wanted))
        use = good if chunk.mask is None else good & chunk.mask
        if bad and self.policy == "skip":
            use = np.zeros_like(good)
            bad = int(np.count_nonzero(np.ones_like(good) if chunk.mask is None else chunk.mask))
        if bad:
            self.left_out[index] = (bad, _culprit(chunk, wanted))
        return _filled(replace(chunk, mask=use), good)

    def _complaint(self, index: int, chunk: Chunk, wanted: NDArray[np.bool_]) -> str:
        first = int(np.argmax(~wanted))
        culprit = _culprit(chunk, wanted)
        array: Any = getattr(chunk, culprit)
        narrow = (
            " (float32 holds numbers up to 3.4e38: store larger ones as float64)" if array.dtype == np.float32 else ""
        )
        return (
            f"chunk {index} holds {np.count_nonzero(~wanted)} points that are not finite, the first in {culprit} at "
            f"point {self._number(index, first)}{narrow}; nan_policy=mask leaves out the points, skip the whole chunk"
        )

    def _number(self, index: int, offset: int) -> int:
        return index * self.chunk_size + offset


def _finite(chunk: Chunk) -> NDArray[np.bool_]:
    good = np.isfinite(chunk.y)
    good &= np.isfinite(chunk.x) if chunk.x.ndim == 1 else np.isfinite(chunk.x).all(axis=0)
    if chunk.sigma is not None:
        good &= np.isfinite(chunk.sigma) & (chunk.sigma > 0)
    return np.asarray(good)


def _culprit(chunk: Chunk, wanted: NDArray[np.bool_]) -> str:
    """Return which array the first bad point is bad in."""
    first = int(np.argmax(~wanted))
    if not np.isfinite(chunk.y[first]):
        return "y"
    return "x" if not np.isfinite(chunk.x[..., first]).all() else "sigma"


def _filled(chunk: Chunk, good: NDArray[np.bool_]) -> Chunk:
    """Replace bad points by a good one of the chunk: a derivative at NaN is NaN even when weighted with zero."""
    if not good.any():
        one = np.ones_like(chunk.y)
        return replace(chunk, x=np.ones_like(chunk.x), y=one, sigma=None if chunk.sigma is None else one)
    model = int(np.argmax(good))
    x = np.where(good, chunk.x, chunk.x[..., model : model + 1])
    y = np.where(good, chunk.y, chunk.y[model])
    sigma = None if chunk.sigma is None else np.where(good, chunk.sigma, chunk.sigma[model])
    return replace(chunk, x=x, y=y, sigma=sigma)


def _tell_apart(chunk: Chunk) -> bool:
    """Say whether float32 keeps the points of a chunk apart: rounding far below the spread, nothing out of range."""
    rows = np.atleast_2d(chunk.x)
    return all(_survives(row) for row in (*rows, chunk.y, *(() if chunk.sigma is None else (chunk.sigma,))))


def _survives(values: NDArray[Any]) -> bool:
    if values.dtype != np.float64:
        return True
    known = values[np.isfinite(values)]
    if not known.size:
        return True
    low, high = float(known.min()), float(known.max())
    largest = max(abs(low), abs(high))
    if largest > float(_F32.max) or 0 < largest < float(_F32.tiny):
        return False
    # Equal values lose nothing that matters; others must differ by much more than a rounding of the largest.
    return high == low or (high - low) > 1e3 * float(_F32.eps) * largest
