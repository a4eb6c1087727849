"""Where a fit's data come from: fixed chunks of points, read one at a time and again in every pass."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.errors import DataError
from tessera.lsq.profile import phase

CHUNK_SIZE: Final = 100_000
"""Points per chunk unless told otherwise: some MB, so that reading is sequential and rounding errors stay pairwise."""

Piece: TypeAlias = tuple[Any, ...]
"""What a generator yields: ``(x, y)`` or ``(x, y, sigma)``, of any length."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive data points.

    Attributes
    ----------
    x
        Independent variables, shape (m,) or (k, m) as in `scipy.optimize.curve_fit`.
    y
        Measurements, shape (m,).
    sigma
        Standard errors of y, shape (m,); None: all one.
    mask
        Which points take part, shape (m,); None: all.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    sigma: NDArray[Any] | None = None
    mask: NDArray[np.bool_] | None = None


class ChunkSource(Protocol):
    """Data in chunks. Which points are in which chunk is fixed by the data and the chunk size, never by the ranks."""

    @property
    def n_points(self) -> int:
        """Points in all."""
        ...

    @property
    def chunk_size(self) -> int:
        """Points in each chunk but the last, which may have fewer."""
        ...

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        ...

    def read(self, index: int) -> Chunk:
        """Return chunk ``index``; called from one thread at a time, in any order, once in every pass."""
        ...


class ArraySource:
    """Arrays, memory maps, HDF5 datasets: anything that can be sliced.

    Parameters
    ----------
    x
        Shape (m,) or (k, m), or a sequence of k arrays of shape (m,).
    y
        Shape (m,).
    sigma
        Standard errors of y, shape (m,), or one for all.
    mask
        Which points take part (nonzero: they do), shape (m,).
    chunk_size
        Points per chunk.
    names
        What messages call x, y, sigma and mask.

    Raises
    ------
    DataError
        If lengths differ, there are no points, or an array holds no real numbers.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        sigma: Any = None,
        mask: Any = None,
        chunk_size: int = CHUNK_SIZE,
        names: Sequence[str] = ("x", "y", "sigma", "mask"),
    ) -> None:
        self._columns = [_sliceable(a) for a in x] if isinstance(x, list | tuple) and not _numbers(x) else None
        self._x = None if self._columns is not None else _sliceable(x)
        self._y, self._mask = _sliceable(y), None if mask is None else _sliceable(mask)
        self._sigma = None if sigma is None else _sliceable(sigma)
        self.chunk_size = chunk_size
        if self._y.ndim != 1:
            msg = f"{names[1]} has shape {self._y.shape}; it must be one-dimensional: flatten it (and x likewise)"
            raise DataError(msg)
        self.n_points = int(self._y.shape[0])
        if self.n_points == 0:
            msg = f"{names[1]} holds no points; there is nothing to fit"
            raise DataError(msg)
        self._check(names)

    @property
    def in_memory(self) -> bool:
        """Whether reading is nothing but slicing."""
        arrays = [*(self._columns or [self._x]), self._y, self._sigma, self._mask]
        return all(a is None or type(a) is np.ndarray for a in arrays)

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.n_points // self.chunk_size)

    def read(self, index: int) -> Chunk:
        """Return chunk ``index``."""
        where = slice(index * self.chunk_size, min((index + 1) * self.chunk_size, self.n_points))
        if self._columns is not None:
            x = np.stack([_real(c[where]) for c in self._columns])
        else:
            assert self._x is not None  # noqa: S101 - for the type checker
            x = _real(self._x[where] if self._x.ndim == 1 else self._x[:, where])
        mask = None if self._mask is None else np.asarray(self._mask[where]) != 0
        return Chunk(x, _real(self._y[where]), self._errors(where), mask)

    def _errors(self, where: slice) -> NDArray[Any] | None:
        if self._sigma is None:
            return None
        if self._sigma.ndim == 0:
            return np.full(where.stop - where.start, float(self._sigma[()]))
        return _real(self._sigma[where])

    def _check(self, names: Sequence[str]) -> None:
        x = self._columns if self._columns is not None else [self._x]
        arrays = [*((names[0], a) for a in x), (names[1], self._y), (names[2], self._sigma), (names[3], self._mask)]
        for name, array in arrays:
            if array is None:
                continue
            if array.dtype.kind not in "fiub":
                msg = f"{name} is of type {array.dtype}; a fit needs real numbers"
                raise DataError(msg)
            if name == names[2] and array.ndim == 0:
                continue
            if array.ndim not in ((1, 2) if name == names[0] else (1,)) or array.shape[-1] != self.n_points:
                turned = "; transpose it" if array.ndim == 2 and array.shape[0] == self.n_points else ""
                msg = f"{name} has shape {array.shape} but {names[1]} has {self.n_points} points{turned}"
                raise DataError(msg)


class GeneratorSource:
    """Pieces of data that a function makes anew for every pass, cut into chunks as they come.

    Parameters
    ----------
    factory
        Called at the start of every pass; yields ``(x, y)`` or ``(x, y, sigma)`` in pieces of any length, the same
        points in the same order each time.
    n_points
        How many points it yields; None: it is run once to count them.
    chunk_size
        Points per chunk.

    Raises
    ------
    DataError
        If it yields no points, pieces of unequal lengths, or, while the fit goes on, another number of points.
    """

    def __init__(
        self, factory: Callable[[], Iterable[Piece]], *, n_points: int | None = None, chunk_size: int = CHUNK_SIZE
    ) -> None:
        self._factory = factory
        self.chunk_size = chunk_size
        self.n_points = _count(factory) if n_points is None else n_points
        if self.n_points == 0:
            msg = "the generator yields no points; does it return the same exhausted iterator on every call?"
            raise DataError(msg)
        self._pieces: Iterator[Piece] = iter(())
        self._rest: Chunk | None = None
        self._next = self.n_chunks

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.n_points // self.chunk_size)

    def read(self, index: int) -> Chunk:
        """Return chunk ``index``; going back starts the generator anew."""
        if index < self._next:
            self._pieces, self._rest, self._next = iter(self._factory()), None, 0
        while self._next < index:
            self._take()
        return self._take()

    def _take(self) -> Chunk:
        first = self._next * self.chunk_size
        wanted = min(self.chunk_size, self.n_points - first)
        parts, have = [], 0
        while have < wanted:
            part = self._rest or self._piece(first + have)
            self._rest = None
            m, room = part.y.shape[0], wanted - have
            if m > room:
                part, self._rest = _cut(part, 0, room), _cut(part, room, m)
            parts.append(part)
            have += part.y.shape[0]
        self._next += 1
        if self._next == self.n_chunks:
            self._require_end()
        return parts[0] if len(parts) == 1 else _join(parts)

    def _piece(self, so_far: int) -> Chunk:
        for piece in self._pieces:
            if len(piece[1]):
                return _chunk_of(piece)
        self._next = self.n_chunks
        msg = (
            f"the generator yields {so_far} points in this pass but {self.n_points} in the first; it must yield the "
            "same points in every pass"
        )
        raise DataError(msg)

    def _require_end(self) -> None:
        more = 0 if self._rest is None else self._rest.y.shape[0]
        more += sum(len(piece[1]) for piece in self._pieces)
        if more:
            msg = (
                f"the generator yields {self.n_points + more} points in this pass but {self.n_points} in the first; "
                "it must yield the same points in every pass"
            )
            raise DataError(msg)


def as_source(data: Any, *, sigma: Any = None, mask: Any = None, chunk_size: int = CHUNK_SIZE) -> ChunkSource:
    """Return data as a chunk source.

    Parameters
    ----------
    data
        A chunk source, a tuple ``(x, y)`` of what `ArraySource` takes, or a generator function.
    sigma, mask
        Of ``(x, y)``; the others bring their own.
    chunk_size
        Points per chunk; a chunk source keeps its own.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if isinstance(data, tuple) and len(data) == 2:
        return ArraySource(*data, sigma=sigma, mask=mask, chunk_size=chunk_size)
    if sigma is not None or mask is not None:
        msg = "sigma and mask go with data given as (x, y); a chunk source or generator yields its own"
        raise DataError(msg)
    if callable(data):
        return GeneratorSource(data, chunk_size=chunk_size)
    if all(hasattr(data, name) for name in ("n_points", "chunk_size", "n_chunks", "read")):
        source: ChunkSource = data
        return source
    msg = f"data is a {type(data).__name__}; give (x, y), a chunk source, or a function that yields (x, y) pieces"
    raise DataError(msg)


def prefetched(source: ChunkSource, indices: Iterable[int]) -> Iterator[tuple[int, Chunk]]:
    """Yield ``(index, chunk)`` in order; one thread reads the next chunk while the caller computes with this one.

    The time the caller has to wait is the phase ``I/O`` of `tessera.lsq.profile`.
    """
    if isinstance(source, ArraySource) and source.in_memory:
        for index in indices:
            yield index, source.read(index)
        return
    with ThreadPoolExecutor(1, "chunks") as reader:
        ahead = None
        for index in indices:
            coming = (index, reader.submit(source.read, index))
            if ahead is not None:
                yield ahead[0], _awaited(ahead[1])
            ahead = coming
        if ahead is not None:
            yield ahead[0], _awaited(ahead[1])


def _awaited(future: Any) -> Chunk:
    with phase("I/O"):
        chunk: Chunk = future.result()
    return chunk


def _numbers(x: Sequence[Any]) -> bool:
    """Say whether a list is data itself and not a list of arrays."""
    return not x or (np.ndim(x[0]) == 0 and not hasattr(x[0], "shape"))


class _FileRows:
    """A memory map, read through its file: pages of a map that were touched would count as this process's memory."""

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self._path, self._offset = array.filename, int(array.offset)
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self._side_by_side = array.ndim == 2 and not array.flags.c_contiguous  # all of one point, then of the next

    def __getitem__(self, where: Any) -> NDArray[Any]:
        if self.ndim == 1:
            return self._read(where, 0)
        points = where[1]
        if self._side_by_side:
            k = self.shape[0]
            return self._read(slice(k * points.start, k * points.stop), 0).reshape(-1, k).T
        return np.stack([self._read(points, row * self.shape[1]) for row in range(self.shape[0])])

    def _read(self, where: slice, before: int) -> NDArray[Any]:
        first, count = before + where.start, where.stop - where.start
        assert self._path is not None  # noqa: S101 - for the type checker
        return np.fromfile(self._path, self.dtype, count, offset=self._offset + first * self.dtype.itemsize)


def _sliceable(array: Any) -> Any:
    if isinstance(array, np.memmap) and _whole(array) and array.mode != "c" and array.filename is not None:
        return _FileRows(array)
    return array if hasattr(array, "shape") and hasattr(array, "dtype") else np.asarray(array)


def _whole(array: np.memmap[Any, Any]) -> bool:
    """Say whether a map shows all of its file's array from its beginning, as it is or transposed."""
    base: Any = array.base
    if isinstance(base, np.memmap) and base.shape == array.shape[::-1] and base.ctypes.data == array.ctypes.data:
        array, base = base, base.base
    return isinstance(base, mmap.mmap) and array.flags.c_contiguous and array.ndim in (1, 2)


def _real(array: Any) -> NDArray[Any]:
    # A slice of a memory map is read when it is touched: that should be here, in the reading thread.
    values = np.array(array) if isinstance(array, np.memmap) else np.asarray(array)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _count(factory: Callable[[], Iterable[Piece]]) -> int:
    return sum(len(piece[1]) for piece in factory())


def _chunk_of(piece: Piece) -> Chunk:
    if not 2 <= len(piece) <= 3:
        msg = f"the generator yields tuples of {len(piece)}; it must yield (x, y) or (x, y, sigma)"
        raise DataError(msg)
    x, y = _real(piece[0]), _real(piece[1])
    sigma = None if len(piece) == 2 else np.broadcast_to(_real(piece[2]), y.shape)
    if y.ndim != 1 or x.shape[-1] != y.shape[0]:
        msg = f"the generator yields x of shape {x.shape} with y of shape {y.shape}; y has one value for each of x"
        raise DataError(msg)
    return Chunk(x, y, sigma)


def _cut(chunk: Chunk, first: int, end: int) -> Chunk:
    sigma = None if chunk.sigma is None else chunk.sigma[first:end]
    return Chunk(chunk.x[..., first:end], chunk.y[first:end], sigma)


def _join(parts: Sequence[Chunk]) -> Chunk:
    errors = [p.sigma for p in parts if p.sigma is not None]
    if len(errors) not in {0, len(parts)}:
        msg = "the generator yields some pieces with sigma and some without; yield it always or never"
        raise DataError(msg)
    return Chunk(
        np.concatenate([p.x for p in parts], axis=-1),
        np.concatenate([p.y for p in parts]),
        np.concatenate(errors) if errors else None,
    )
