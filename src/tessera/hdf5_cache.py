"""HDF5 datasets that are read in pieces, with room for the decoded chunks that a piece ends in."""

from __future__ import annotations

import math
from typing import Final

import h5py
from h5py import h5d, h5p

_SLOTS: Final = 100
"""Places in HDF5's table of decoded chunks for each of them, as it advises, so that few fall on the same."""


def opened_with_room(file: h5py.File, name: str, chunks: int) -> h5py.Dataset:
    """Open a dataset with a cache for at least so many of its chunks; it must not be open yet.

    Without it HDF5 decodes chunks that are larger than its cache again for every piece that is read.
    """
    data = file[name]
    nbytes = math.prod(data.chunks) * data.dtype.itemsize
    del data  # a dataset that is open keeps the cache it has
    access = h5p.create(h5p.DATASET_ACCESS)
    slots, room, preemption = access.get_chunk_cache()
    access.set_chunk_cache(max(slots, _SLOTS * chunks), max(room, chunks * nbytes), preemption)
    return h5py.Dataset(h5d.open(file.id, name.encode(), access))
