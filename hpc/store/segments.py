"""Segments: immutable batches of finished units, and the lazy mapping over all of them.

A map may have a hundred thousand small units; a dataset for each array of each unit would cost more than the
work. A segment therefore packs equal-named arrays of its units into one flat dataset each (a ragged column),
with the unit's number and shape beside it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from hpc.errors import CorruptFileError
from hpc.job import Arrays
from hpc.store.atomic import open_hdf5, read_array, write_hdf5
from hpc.store.patience import Reading, at_once
from hpc.store.reading import names_in

SCHEMA: Final = 1
_CACHE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished unit on its way to disk."""

    key: str
    arrays: Arrays
    seconds: float
    attempt: int
    rank: int

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(np.asarray(a).nbytes for a in self.arrays.values())


def type_name(dtype: np.dtype[Any]) -> str:
    """Return a name that tells types apart: structured ones of one size are all ``|V12`` to numpy."""
    if dtype.fields is None:
        return dtype.str
    return f"{dtype.str}-{hashlib.sha256(repr(dtype).encode()).hexdigest()[:8]}"


def write_segment(
    path: Path,
    stage: str,
    units: Sequence[Finished],
    check: Callable[[], None] = lambda: None,
    config_hash: str = "",
) -> None:
    """Write finished units as one segment file; see `hpc.store.atomic.write_hdf5` for ``check`` and errors."""
    columns: dict[tuple[str, str, int], list[tuple[int, NDArray[Any]]]] = {}
    for number, unit in enumerate(units):
        for name, value in unit.arrays.items():
            array = np.asarray(value)
            columns.setdefault((name, type_name(array.dtype), array.ndim), []).append((number, array))
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.array([u.key for u in units]),
        "seconds": np.array([u.seconds for u in units]),
        "attempt": np.array([u.attempt for u in units], np.int32),
        "rank": np.array([u.rank for u in units], np.int32),
    }
    names = []
    for i, ((name, _, ndim), members) in enumerate(columns.items()):
        names.append(name)
        arrays[f"columns/{i:05d}/data"] = np.concatenate([a for _, a in members], axis=None)
        arrays[f"columns/{i:05d}/unit"] = np.array([n for n, _ in members], np.int64)
        shapes = np.array([a.shape for _, a in members], np.int64)
        arrays[f"columns/{i:05d}/shape"] = shapes.reshape(len(members), ndim)
    facts = {"schema": SCHEMA, "kind": "segment", "stage": stage, "columns": names, "config_hash": config_hash}
    write_hdf5(path, arrays, facts, check)


@dataclass(frozen=True, slots=True)
class Column:
    """The arrays of one name, type and number of axes in one segment.

    Attributes
    ----------
    name
        Of the arrays.
    keys
        The units that have one.
    shapes
        Shape (units, axes).
    dtype
        As stored: text is UTF-8 bytes.
    data
        All values, flattened, one unit after the other; empty in an `outline`.
    """

    name: str
    keys: list[str]
    shapes: NDArray[np.int64]
    dtype: np.dtype[Any]
    data: NDArray[Any]

    @property
    def ends(self) -> list[int]:
        """Where each unit's values end in ``data``."""
        ends: list[int] = np.cumsum(np.prod(self.shapes, axis=1, dtype=np.int64)).tolist()
        return ends

    def units(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield each unit's key and array, as a view."""
        start = 0
        for key, dims, end in zip(self.keys, self.shapes.tolist(), self.ends, strict=True):
            yield key, self.data[start:end].reshape(dims)
            start = end


def read_columns(path: Path, *, values: bool = True) -> tuple[list[str], list[Column]]:
    """Read a segment's unit keys and columns; without ``values`` only names, units, shapes and types.

    Raises
    ------
    hpc.errors.CorruptFileError
        If any part that is read is damaged, or of another schema.
    """
    columns = []
    with open_hdf5(path) as (group, attributes):
        _check(path, attributes)
        keys = [str(k) for k in read_array(group["keys"])]
        for i, name in enumerate(attributes["columns"]):
            part = group[f"columns/{i:05d}"]
            units = [keys[n] for n in read_array(part["unit"])]
            data = read_array(part["data"]) if values else np.zeros(0)
            columns.append(Column(name, units, read_array(part["shape"]), part["data"].dtype, data))
    return keys, columns


class Segment:
    """The content of one segment file, read and verified whole.

    Raises
    ------
    hpc.errors.CorruptFileError
        If any part of the file is damaged or of another schema.
    """

    def __init__(self, path: Path) -> None:
        self.keys, columns = read_columns(path)
        self.nbytes = sum(c.data.nbytes for c in columns)
        self._units: dict[str, dict[str, NDArray[Any]]] = {key: {} for key in self.keys}
        for column in columns:
            for key, array in column.units():
                self._units[key][column.name] = array

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, key: str) -> dict[str, NDArray[Any]]:
        return dict(self._units[key])


def _check(path: Path, attributes: Mapping[str, Any]) -> None:
    if attributes.get("kind") != "segment" or attributes.get("schema") != SCHEMA:
        msg = (
            f"{path}: is a {attributes.get('kind')} of schema {attributes.get('schema')}, "
            f"not a segment of schema {SCHEMA}; it was written by another version of tessera"
        )
        raise CorruptFileError(msg)


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies in a stage's folder.

    Attributes
    ----------
    home
        Which segment file holds each unit; the first in name order, should a unit be in two.
    seconds
        Seconds each unit took.
    doubled
        Keys found in more than one segment.
    damaged
        Why each unreadable segment cannot be read, by file name; its units count as not done.
    origins
        A file name by the hash of the configuration it was computed with; "" for older ones, which do not say.
    """

    home: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """The keys of one segment, the seconds each unit took and the configuration's hash, or why it cannot be read."""

    name: str
    keys: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    damage: str = ""
    config_hash: str = ""


def segment_names(directory: Path) -> list[str]:
    """Return the names of a stage's segments, in order; see `hpc.store.reading.names_in` for errors."""
    return names_in(directory, "seg-*.h5")


def list_segment(path: Path, *, whole: bool = False) -> Listing:
    """Read the keys of a segment; see `scan` for ``whole``.

    Raises
    ------
    OSError
        If it cannot be read now.
    """
    try:
        with open_hdf5(path) as (group, attributes):
            _check(path, attributes)
            keys = [str(k) for k in read_array(group["keys"])]
            seconds = read_array(group["seconds"]).tolist()
            if whole:
                _read_all(group)
    except CorruptFileError as error:
        return Listing(path.name, damage=str(error))
    return Listing(path.name, keys, seconds, config_hash=str(attributes.get("config_hash", "")))


def united(listings: Iterable[Listing]) -> Scan:
    """Put the listings of a stage's segments together."""
    found = Scan()
    for listing in sorted(listings, key=lambda each: each.name):
        if listing.damage:
            found.damaged[listing.name] = listing.damage
        else:
            found.origins.setdefault(listing.config_hash, listing.name)
        for key, took in zip(listing.keys, listing.seconds, strict=True):
            if key in found.home:
                found.doubled.append(key)
            else:
                found.home[key] = listing.name
                found.seconds[key] = took
    return found


def scan(directory: Path, *, whole: bool = False) -> Scan:
    """Read the keys of all segments of a stage.

    Parameters
    ----------
    directory
        The stage's folder.
    whole
        Read every array too and so verify its checksums: what a resume does before it trusts another attempt's files.
    """
    return united(list_segment(directory / name, whole=whole) for name in segment_names(directory))


def set_aside(directory: Path, name: str) -> None:
    """Rename a damaged segment, so that it is not scanned again; only the holder of the run's lock may call this."""
    with suppress(FileNotFoundError):
        (directory / name).rename(directory / f"damaged-{name}")


def read_whole(path: Path) -> tuple[list[str], int]:
    """Read a segment's every byte and return its unit keys and the bytes of its arrays.

    Raises
    ------
    hpc.errors.CorruptFileError
        If any part is damaged, or of another schema.
    """
    with open_hdf5(path) as (group, attributes):
        _check(path, attributes)
        return [str(k) for k in read_array(group["keys"])], _read_all(group)


def _read_all(group: h5py.Group) -> int:
    """Let HDF5 compare every checksum; return the bytes that were read."""
    sizes: list[int] = []

    def visit(_: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            sizes.append(node[()].nbytes)

    group.visititems(visit)
    return sum(sizes)


class StoredResults:
    """The results of a map as a lazy mapping in key order; segments are cached up to a number of bytes.

    Parameters
    ----------
    directory
        The stage's folder.
    home
        Segment file by unit key, as `scan` found it.
    reading
        How a segment is read.
    """

    def __init__(self, directory: Path, home: Mapping[str, str], reading: Reading = at_once) -> None:
        self._directory = directory
        self._reading = reading
        self._home = dict(sorted(home.items()))
        self._cache: OrderedDict[str, Segment] = OrderedDict()

    def __len__(self) -> int:
        return len(self._home)

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __contains__(self, key: object, /) -> bool:
        return key in self._home

    def __getitem__(self, key: str, /) -> dict[str, NDArray[Any]]:
        return self._segment(self._home[key])[key]

    def items(self) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
        """Yield ``(key, arrays)`` in key order."""
        for key in self._home:
            yield key, self[key]

    def save(self, path: Path) -> None:
        """Write all results into one HDF5 file; see `hpc.store.compact.compact`."""
        from hpc.store.compact import compact  # which reads segments itself

        compact(self._directory, self._home, path)

    def _segment(self, name: str) -> Segment:
        if name not in self._cache:
            self._cache[name] = self._reading(lambda: Segment(self._directory / name))
            while len(self._cache) > 1 and sum(s.nbytes for s in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]
