"""Segments: immutable batches of finished units, and the lazy mapping over all of them.

A map may have a hundred thousand small units; a dataset for each array of each unit would cost more than the
work. A segment therefore packs equal-named arrays of its units into one flat dataset each (a ragged column),
with the unit's number and shape beside it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpc.errors import CorruptFileError
from hpc.job import Arrays
from hpc.store.atomic import open_hdf5, read_array, write_hdf5

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


def write_segment(path: Path, stage: str, units: Sequence[Finished]) -> None:
    """Write finished units as one segment file; see `hpc.store.atomic.write_hdf5` for errors."""
    columns: dict[tuple[str, str, int], list[tuple[int, NDArray[Any]]]] = {}
    for number, unit in enumerate(units):
        for name, value in unit.arrays.items():
            array = np.asarray(value)
            columns.setdefault((name, array.dtype.str, array.ndim), []).append((number, array))
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.array([u.key for u in units]),
        "seconds": np.array([u.seconds for u in units]),
        "attempt": np.array([u.attempt for u in units], np.int32),
        "rank": np.array([u.rank for u in units], np.int32),
    }
    names = []
    for i, ((name, _, ndim), members) in enumerate(columns.items()):
        names.append(name)
        arrays[f"columns/{i:05d}/data"] = np.concatenate([a.reshape(-1) for _, a in members])
        arrays[f"columns/{i:05d}/unit"] = np.array([n for n, _ in members], np.int64)
        shapes = np.array([a.shape for _, a in members], np.int64)
        arrays[f"columns/{i:05d}/shape"] = shapes.reshape(len(members), ndim)
    write_hdf5(path, arrays, {"schema": SCHEMA, "kind": "segment", "stage": stage, "columns": names})


class Segment:
    """The content of one segment file, read and verified whole.

    Raises
    ------
    hpc.errors.CorruptFileError
        If any part of the file is damaged or of another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as (group, attributes):
            _check(path, attributes)
            self.keys = [str(k) for k in read_array(group["keys"])]
            self.seconds = read_array(group["seconds"])
            self.rank = read_array(group["rank"])
            self._numbers = {key: i for i, key in enumerate(self.keys)}
            self._units: list[dict[str, NDArray[Any]]] = [{} for _ in self.keys]
            self.nbytes = 0
            for i, name in enumerate(attributes["columns"]):
                self._unpack(name, *(read_array(group[f"columns/{i:05d}/{p}"]) for p in ("data", "unit", "shape")))

    def _unpack(self, name: str, data: NDArray[Any], unit: NDArray[Any], shape: NDArray[Any]) -> None:
        self.nbytes += data.nbytes
        ends = np.cumsum(np.prod(shape, axis=1, dtype=np.int64)).tolist()
        start = 0
        for number, dims, end in zip(unit.tolist(), shape.tolist(), ends, strict=True):
            self._units[number][name] = data[start:end].reshape(dims)
            start = end

    def __getitem__(self, key: str) -> dict[str, NDArray[Any]]:
        return dict(self._units[self._numbers[key]])


def _check(path: Path, attributes: Mapping[str, Any]) -> None:
    if attributes.get("kind") != "segment" or attributes.get("schema") != SCHEMA:
        msg = (
            f"{path}: is a {attributes.get('kind')} of schema {attributes.get('schema')}, not a segment of schema {SCHEMA}; "
            "it was written by another version of tessera"
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
        One explanation per unreadable segment; its units count as not done.
    """

    home: dict[str, str]
    seconds: dict[str, float]
    doubled: list[str]
    damaged: list[str]


def scan(directory: Path) -> Scan:
    """Read the keys of all segments of a stage."""
    found = Scan({}, {}, [], [])
    for path in sorted(directory.glob("seg-*.h5")):
        try:
            with open_hdf5(path) as (group, attributes):
                _check(path, attributes)
                keys = [str(k) for k in read_array(group["keys"])]
                seconds = read_array(group["seconds"]).tolist()
        except CorruptFileError as error:
            found.damaged.append(str(error))
            continue
        for key, took in zip(keys, seconds, strict=True):
            if key in found.home:
                found.doubled.append(key)
            else:
                found.home[key] = path.name
                found.seconds[key] = took
    return found


class StoredResults:
    """The results of a map as a lazy mapping in key order; segments are cached up to a number of bytes.

    Parameters
    ----------
    directory
        The stage's folder.
    home
        Segment file by unit key, as `scan` found it.
    """

    def __init__(self, directory: Path, home: Mapping[str, str]) -> None:
        self._directory = directory
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

    def _segment(self, name: str) -> Segment:
        if name not in self._cache:
            self._cache[name] = Segment(self._directory / name)
            while len(self._cache) > 1 and sum(s.nbytes for s in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]
