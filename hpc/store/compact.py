"""Segments into one results file, streaming: memory holds one segment, whatever the number of units.

A first pass reads only keys and shapes, from which the place of every unit in key order follows; a second pass
reads each segment once and puts its units where they belong, through a memory map of the file's (contiguous)
datasets: a hundred thousand small units cost a second, not a hundred thousand HDF5 calls.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpc.store.atomic import write_atomically
from hpc.store.guarded import LIBVER, new_hdf5
from hpc.store.segments import Column, read_columns, type_name

_Kind = tuple[str, str, int]


def compact(directory: Path, home: Mapping[str, str], path: Path) -> None:
    """Write the results of a finished map as one HDF5 file, units in key order.

    Parameters
    ----------
    directory
        The stage's folder.
    home
        Segment file by unit key.
    path
        The file to write. ``keys`` lists the units; for each array name the group ``columns/NAME`` holds ``data``
        (all units' values, flattened, one after the other), ``unit`` (index into ``keys``), ``start`` (offset into
        ``data``) and ``shape``. Units whose array of that name has another type or number of axes are in
        ``columns/NAME@TYPE,AXES``.

    Raises
    ------
    hpc.errors.CorruptFileError
        If a segment is damaged.
    """
    keys = sorted(home)
    members: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        members[home[key]].add(key)
    targets = _targets(directory, members)

    def write(temporary: Path) -> None:
        with new_hdf5(temporary, LIBVER) as file:
            file["keys"] = np.array([k.encode() for k in keys]) if keys else np.zeros(0, "S1")
            for target in targets.values():
                target.create(file, keys)
        with temporary.open(
            "r+b"
        ) as file:  # a full disk is an error here; in the mapped pages below it would be a death
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        maps = {kind: target.open(temporary) for kind, target in targets.items() if target.size}
        for name, wanted in sorted(members.items()):
            for column in read_columns(directory / name)[1]:
                kind = _kind(column)
                if kind in maps:
                    _copy(column, wanted, targets[kind].starts, np.asarray(maps[kind]))
        for data in maps.values():
            data.flush()

    write_atomically(path, write)


@dataclass
class _Target:
    """Where each unit's array of one name, type and number of axes will lie."""

    path: str
    dtype: np.dtype[Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    size: int = 0
    offset: int = 0

    def create(self, file: h5py.File, keys: Sequence[str]) -> None:
        """Create the datasets and note where each unit's values go."""
        order = [(i, k) for i, k in enumerate(keys) if k in self.shapes]
        for _, key in order:
            self.starts[key] = self.size
            self.size += math.prod(self.shapes[key])
        group = file.create_group(self.path)
        group["unit"] = np.array([i for i, _ in order], np.int64)
        group["start"] = np.array([self.starts[k] for _, k in order], np.int64)
        group["shape"] = np.array([self.shapes[k] for _, k in order], np.int64).reshape(len(order), -1)
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_obj_track_times(False)  # the same results are the same bytes, whenever they are written
        kind = h5py.h5t.py_create(self.dtype, logical=True)
        data = h5py.h5d.create(group.id, b"data", kind, h5py.h5s.create_simple((self.size,)), early)
        self.offset = data.get_offset() or 0

    def open(self, path: Path) -> np.memmap[Any, Any]:
        """Map the values in the closed file into memory."""
        return np.memmap(path, self.dtype, "r+", self.offset, (self.size,))


def _targets(directory: Path, members: Mapping[str, set[str]]) -> dict[_Kind, _Target]:
    targets: dict[_Kind, _Target] = {}
    names: set[str] = set()
    for file, wanted in sorted(members.items()):
        for column in read_columns(directory / file, values=False)[1]:
            kind = _kind(column)
            if kind not in targets:
                suffix = f"@{kind[1]},{kind[2]}" if column.name in names else ""
                names.add(column.name)
                targets[kind] = _Target(f"columns/{column.name}{suffix}", column.dtype)
            target = targets[kind]
            target.dtype = np.promote_types(target.dtype, column.dtype)  # texts of different lengths
            shapes = zip(column.keys, column.shapes.tolist(), strict=True)
            target.shapes.update({key: tuple(shape) for key, shape in shapes if key in wanted})
    return targets


def _kind(column: Column) -> _Kind:
    return column.name, "text" if column.dtype.kind == "S" else type_name(column.dtype), column.shapes.shape[1]


def _copy(column: Column, wanted: set[str], starts: Mapping[str, int], target: NDArray[Any]) -> None:
    for key, array in column.units():
        if key in wanted:
            flat = array.reshape(-1)
            values = np.char.encode(flat, "utf-8") if flat.dtype.kind == "U" else flat
            target[starts[key] : starts[key] + values.size] = values
