"""HDF5 datasets in chunks, read in pieces: room for the decoded chunks that a piece ends in, and filters that lack."""

from __future__ import annotations

import math
from typing import Final

import h5py
from h5py import h5d, h5p, h5z

REPACK: Final = "h5repack -f NONE -l CONTI OLD NEW"
"""The command of HDF5 that stores a file without filters and chunks."""

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


def missing_filter(data: h5py.Dataset) -> str | None:
    """Say which filter a dataset cannot be decoded without and what can be done; HDF5 would speak of folders.

    Returns
    -------
    str or None
        The end of a message that begins with the dataset's name; None if all filters are there.
    """
    created = data.id.get_create_plist()
    for code, _, _, name in (created.get_filter(k) for k in range(created.get_nfilters())):
        if not h5z.filter_avail(code):
            return (
                f"is compressed by filter {code} ({name.decode() or 'no name'}), which HDF5 does not have here; pip "
                "install hdf5plugin and set HDF5_PLUGIN_PATH to hdf5plugin.PLUGIN_PATH, or store the file without it: "
                f"{REPACK}"
            )
    return None
