"""How the upper triangle of C₂ is cut into tiles, and the tiles' data with each pair of times counted once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs.dataset import ArrayC2, C2Rows
from tessera.xpcs.physics import Floats

ROWS = 32
"""Rows of a strip: few, so that little of the square on the diagonal is computed in vain."""

COLUMNS = 512
"""Most columns of a tile: enough for numpy's calls to be long, few enough for the second-level cache."""


Empty: TypeAlias = Callable[[tuple[int, ...]], Floats]

_BLOCK: Final = 2**14
"""Elements that are transposed at a time."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of pairs of times, or the square on the diagonal whose upper half is meant.

    Attributes
    ----------
    first, end
        Its rows.
    left, right
        Its columns; ``left == first`` on the diagonal.
    """

    first: int
    end: int
    left: int
    right: int

    @property
    def diagonal(self) -> bool:
        """Whether only the pairs above the diagonal are meant."""
        return self.left == self.first


@dataclass(frozen=True, slots=True)
class Filled:
    """A tile and its data.

    Attributes
    ----------
    tile
        Where it lies.
    y
        g₂ - 1, times the weight; zero where there is no data; shape (n_phi, rows, columns). From g₂ = 1 nothing is
        lost by subtraction, and the sums of squares keep more digits.
    weight
        Same shape; None where all weights are the same and no value is missing.
    """

    tile: Tile
    y: Floats
    weight: Floats | None


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


def tiles_of(strip: int, n_t: int, columns: int = COLUMNS) -> Iterator[Tile]:
    """Cut a strip into the square on the diagonal and tiles of nearly equal width to its right."""
    first, end = strip * ROWS, min((strip + 1) * ROWS, n_t)
    yield Tile(first, end, first, end)
    segments = n_strips(n_t) - strip - 1
    parts = -(-segments * ROWS // columns)
    edges = [min(end + segments * k // parts * ROWS, n_t) for k in range(parts + 1)] if parts else []
    yield from (Tile(first, end, left, right) for left, right in itertools.pairwise(edges))


def upper(rows: int, columns: int) -> NDArray[np.bool_]:
    """Return where a square tile lies above the diagonal."""
    return np.asarray(np.arange(columns) > np.arange(rows)[:, None])


@cache
def below(rows: int) -> tuple[NDArray[np.intp], ...]:
    """Return the indices of a square tile's elements on and below the diagonal."""
    return np.tril_indices(rows)


@dataclass(frozen=True, slots=True)
class Strip:
    """The data of one strip, and the sums over it that no parameter changes.

    Attributes
    ----------
    filled
        Its tiles.
    fixed
        Per angle Σw, Σwy, Σwy², number of points, number of points left out, and Σwd² with d half the difference
        between a value and its mirror image; shape (n_phi, 6).
    """

    filled: tuple[Filled, ...]
    fixed: Floats


def read_strip(
    c2: C2Rows, weights: C2Rows | None, strip: int, columns: int = COLUMNS, empty: Empty = np.empty
) -> Strip:
    """Read one strip in tiles of at most so many columns; NaN and infinite values get weight zero.

    The data are put where ``empty`` makes arrays of float64.
    """
    first, end = strip * ROWS, min((strip + 1) * ROWS, c2.n_t)
    tiles = list(tiles_of(strip, c2.n_t, columns))
    if weights is None:
        parts = [_fill(tile, y, None, unlike) for tile, (y, unlike) in zip(tiles, _cut(c2, tiles, empty), strict=True)]
    else:
        rows = np.stack([weights.rows(angle, first, end) for angle in range(c2.n_phi)])
        each = [rows[:, :, tile.left - first : tile.right - first].astype(np.float64) for tile in tiles]
        cut = _cut(c2, tiles, empty, each)
        parts = [_fill(tile, y, weight, unlike) for tile, weight, (y, unlike) in zip(tiles, each, cut, strict=True)]
    return Strip(tuple(filled for filled, _ in parts), np.sum([fixed for _, fixed in parts], axis=0))


def _cut(
    c2: C2Rows, tiles: Sequence[Tile], empty: Empty, weights: Sequence[Floats] | None = None
) -> Iterator[tuple[Floats, Floats]]:
    """Yield g₂ - 1 of each tile of a strip, and per angle Σwd² with d half the difference of the halves of C₂."""
    if isinstance(c2, ArrayC2):
        for k, tile in enumerate(tiles):
            yield _mean_of_halves(c2, tile, empty, None if weights is None else weights[k])
        return
    first, end = tiles[0].first, tiles[0].end
    rows = [c2.rows(angle, first, end) for angle in range(c2.n_phi)]
    for tile in tiles:
        y = empty((c2.n_phi, end - first, tile.right - tile.left))
        for angle, values in enumerate(rows):
            np.subtract(values[:, tile.left - first : tile.right - first], 1.0, out=y[angle])
        yield y, np.zeros(c2.n_phi)


def _mean_of_halves(c2: ArrayC2, tile: Tile, empty: Empty, weight: Floats | None) -> tuple[Floats, Floats]:
    above, below = c2.halves(tile.first, tile.end, tile.left, tile.right)
    y = np.subtract(above, 1.0, out=empty(above.shape), dtype=np.float64)
    apart = _squares(y)
    for columns in _blocks(y.shape):
        mirrored = np.subtract(below[..., columns], 1.0, dtype=np.float64, order="C")
        apart += _squares(mirrored)
        y[..., columns] += mirrored
    y *= 0.5
    if weight is None and np.isfinite(apart).all():
        unlike = np.maximum(0.5 * apart - _squares(y), 0.0)
    else:
        half = 0.5 * np.subtract(above, below, dtype=np.float64)
        half[~np.isfinite(half)] = 0.0
        unlike = (half**2 * (1.0 if weight is None else np.where(np.isfinite(weight), weight, 0.0))).sum((1, 2))
    # Of a square on the diagonal both halves were summed.
    return y, np.asarray(unlike * (0.5 if tile.diagonal else 1.0))


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut columns so that a block is transposed within the cache."""
    width = max(1, _BLOCK // (shape[0] * shape[1]))
    yield from (slice(left, left + width) for left in range(0, shape[2], width))


def _squares(values: Floats) -> Floats:
    flat = values.reshape(len(values), -1)
    return np.asarray(np.vecdot(flat, flat))


def _fill(tile: Tile, y: Floats, weight: Floats | None, unlike: Floats) -> tuple[Filled, Floats]:
    """Return a tile with its data, and its part of `Strip.fixed`."""
    if tile.diagonal:
        y *= upper(*y.shape[1:])
    squares = _squares(y)
    size = y.shape[1] * y.shape[2] if not tile.diagonal else y.shape[1] * (y.shape[1] - 1) // 2
    if weight is None and np.isfinite(squares).all():
        count, none = np.full(len(y), float(size)), np.zeros(len(y))
        return Filled(tile, y, None), np.stack([count, y.sum((1, 2)), squares, count, none, unlike], axis=1)
    return _fill_weighted(tile, y, weight, size, unlike)


def _fill_weighted(tile: Tile, y: Floats, weight: Floats | None, size: int, unlike: Floats) -> tuple[Filled, Floats]:
    weight = np.ones_like(y) if weight is None else weight
    missing = ~(np.isfinite(y) & np.isfinite(weight))
    y[missing] = 0.0
    weight[missing] = 0.0
    if tile.diagonal:
        weight *= upper(*y.shape[1:])
    weighted = weight * y
    count = np.count_nonzero(weight, axis=(1, 2))
    sums = (weight.sum((1, 2)), weighted.sum((1, 2)), (weighted * y).sum((1, 2)))
    fixed = [*sums, count, size - count, unlike]
    return Filled(tile, weighted, weight), np.stack(fixed, axis=1).astype(np.float64)
