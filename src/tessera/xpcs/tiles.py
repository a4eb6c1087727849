"""How the upper triangle of C₂ is cut into strips, and the strips' data with each pair of times counted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs import native
from tessera.xpcs.dataset import ArrayC2, C2Rows
from tessera.xpcs.physics import Floats

ROWS: Final = 32
"""Rows of a strip: few, so that little of the square on the diagonal is computed in vain; as in ``native/lanes.h``."""

Empty: TypeAlias = Callable[[tuple[int, ...]], Floats]


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle of pairs of times, or the square on the diagonal whose upper half is meant.

    Attributes
    ----------
    first, rows
        Its rows.
    left, width
        Its columns; ``left == first`` on the diagonal.
    """

    first: int
    rows: int
    left: int
    width: int

    @property
    def diagonal(self) -> bool:
        """Whether only the pairs above the diagonal are meant."""
        return self.left == self.first

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.rows * (self.rows - 1) // 2 if self.diagonal else self.rows * self.width

    @property
    def stride(self) -> int:
        """Elements from row to row of its data: all squares have `ROWS`, other rows are a multiple of `native.PAD`."""
        return ROWS if self.diagonal else -(-self.width // native.PAD) * native.PAD


@dataclass(frozen=True)
class Filled:
    """A rectangle and its data.

    Attributes
    ----------
    place
        Where it lies.
    y
        g₂ - 1, times the weight; zero where there is no data, and in the padding; shape (n_phi, rows, stride). From
        g₂ = 1 nothing is lost by subtraction, and the sums of squares keep more digits.
    weight
        Same shape; None where all weights are the same and no value is missing.
    """

    place: Place
    y: Floats
    weight: Floats | None

    @cached_property
    def for_flow(self) -> native.Kept:
        """The same for the compiled sums."""
        place = self.place
        return native.block((place.first, place.rows, place.left, place.width), self.y, self.weight)


@dataclass(frozen=True)
class Strip:
    """The data of one strip, and the sums over it that no parameter changes.

    Attributes
    ----------
    square
        The square on the diagonal.
    rest
        All that is right of it; of the last strip nothing. Either both have weights or neither.
    fixed
        Per angle Σw, Σwy, Σwy², number of points, number of points left out, and Σwd² with d half the difference
        between a value and its mirror image; shape (n_phi, 6).
    """

    square: Filled
    rest: Filled
    fixed: Floats

    @cached_property
    def for_static(self) -> native.Kept:
        """The same for the compiled sums."""
        on_square, on_rest = self.square.weight, self.rest.weight
        weights = None if on_square is None or on_rest is None else (on_square, on_rest)
        place = (self.square.place.first, self.square.place.rows, self.rest.place.width)
        return native.strip(place, self.square.y, self.rest.y, weights)


def n_strips(n_t: int) -> int:
    """Return the number of strips of `ROWS` rows."""
    return -(-n_t // ROWS)


def n_chunks(n_t: int) -> int:
    """Return the number of chunks: a long strip at the top with a short one at the bottom makes all alike."""
    return -(-n_strips(n_t) // 2)


def strips_of(chunk: int, n_t: int) -> tuple[int, ...]:
    """Return the strips of a chunk: the chunk-th from the top and from the bottom."""
    other = n_strips(n_t) - 1 - chunk
    return (chunk,) if other == chunk else (chunk, other)


def places_of(strip: int, n_t: int) -> tuple[Place, Place]:
    """Return the square on the diagonal and the rectangle right of it, which may have no columns."""
    first, end = strip * ROWS, min((strip + 1) * ROWS, n_t)
    return Place(first, end - first, first, end - first), Place(first, end - first, end, n_t - end)


@cache
def upper(rows: int, columns: int) -> NDArray[np.bool_]:
    """Return where a square lies above the diagonal."""
    return np.asarray(np.arange(columns) > np.arange(rows)[:, None])


def read_strip(c2: C2Rows, weights: C2Rows | None, strip: int, empty: Empty = native.aligned) -> Strip:
    """Read one strip; NaN and infinite values get weight zero.

    The data are put where ``empty`` makes arrays of float64.
    """
    places = places_of(strip, c2.n_t)
    ys = [_padded(place, c2.n_phi, empty) for place in places]
    sums = _fill(c2, places, ys)
    if weights is None and np.isfinite(sums).all():
        count, none = np.full(c2.n_phi, float(sum(place.pairs for place in places))), np.zeros(c2.n_phi)
        fixed = np.stack([count, *sums.T[:2], count, none, sums[:, 2]], axis=1)
        return Strip(Filled(places[0], ys[0], None), Filled(places[1], ys[1], None), fixed)
    parts = [_weighted(c2, weights, place, y) for place, y in zip(places, ys, strict=True)]
    return Strip(parts[0][0], parts[1][0], parts[0][1] + parts[1][1])


def _padded(place: Place, n_phi: int, empty: Empty) -> Floats:
    y = empty((n_phi, place.rows, place.stride))
    y[..., 0 if place.diagonal else place.width :] = 0.0
    return y


def _fill(c2: C2Rows, places: Sequence[Place], ys: Sequence[Floats]) -> Floats:
    """Fill in g₂ - 1, and return per angle Σy, Σy², Σd² with d half the difference of the halves; (n_phi, 3)."""
    sums = np.zeros((c2.n_phi, 3))
    first, rows = places[0].first, places[0].rows
    if isinstance(c2, ArrayC2):
        for place, y in zip(places, ys, strict=True):
            sums[:, 2] += native.read_mean(c2.array, (first, rows, place.left, place.width), y)
    else:
        for angle in range(c2.n_phi):
            values = c2.rows(angle, first, first + rows)
            for place, y in zip(places, ys, strict=True):
                columns = slice(place.left - first, place.left - first + place.width)
                part = np.subtract(values[:, columns], 1.0, out=y[angle, :, : place.width], dtype=np.float64)
                if place.diagonal:
                    part[~upper(*part.shape)] = 0.0
    for y in ys:
        sums[:, :2] += native.sum_squares(y)
    return sums


def _weighted(c2: C2Rows, weights: C2Rows | None, place: Place, y: Floats) -> tuple[Filled, Floats]:
    """Return a rectangle with weights, and its part of `Strip.fixed`."""
    n_phi, rows, width = c2.n_phi, place.rows, place.width
    inside = y[..., :width]
    weight = np.zeros_like(y)
    if weights is None:
        weight[..., :width] = 1.0
    else:
        columns = slice(place.left - place.first, place.left - place.first + width)
        for angle in range(n_phi):
            weight[angle, :, :width] = weights.rows(angle, place.first, place.first + rows)[:, columns]
    meant = weight[..., :width]
    missing = ~(np.isfinite(inside) & np.isfinite(meant))
    inside[missing] = 0.0
    meant[missing] = 0.0
    if place.diagonal:
        meant *= upper(rows, width)
    count = np.count_nonzero(meant, axis=(1, 2))
    unlike = np.zeros(n_phi)
    if isinstance(c2, ArrayC2):
        above, below = c2.halves(place.first, place.first + rows, place.left, place.left + width)
        half = 0.5 * np.subtract(above, below, dtype=np.float64)
        half[missing] = 0.0
        unlike = (half**2 * meant).sum((1, 2))
    weighted = weight * y
    sums = (weight.sum((1, 2)), weighted.sum((1, 2)), (weighted * y).sum((1, 2)))
    fixed = np.stack([*sums, count, place.pairs - count, unlike], axis=1).astype(np.float64)
    y[:] = weighted
    return Filled(place, y, weight), fixed
