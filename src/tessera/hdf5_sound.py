"""Datasets of HDF5 files that users hand in, looked at before they are trusted.

A file of 5 kB can declare a dataset of exabytes, and a link can lead to another file. What lies in another file
(external links, external storage, virtual datasets) is refused: its changes would not be noticed by a resume, which
knows the files that the job names, and where it is missing HDF5 fills in zeros without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import h5py

from tessera.input_files import explained

_LINKS: Final = 16
"""Soft links on the way to a dataset; more lead in a ring."""

_RATIO: Final = 100_000
"""How many times smaller than its datasets a file may be; gzip reaches 1,000 on zeros, zstd somewhat more."""

_SMALL: Final = 64 << 20
"""Bytes that may be declared whatever the size of the file."""

_CHUNK: Final = 2 << 30
"""Bytes of a chunk, which is decoded whole."""

_REMEDY: Final = "the file is damaged, or its copy is incomplete: copy it again from where it was written"


@contextmanager
def hdf5_explained(path: Path | str, wrong: type[ValueError], what: str = "") -> Iterator[None]:
    """Turn whatever h5py raises within into an error that names the file."""
    begin = f"{path}: {what}" if what else str(path)
    with explained(begin, _REMEDY, wrong):
        yield


def sound_dataset(file: h5py.File, name: str, wrong: type[ValueError]) -> h5py.Dataset:
    """Return a dataset of real numbers of a size that the file can hold, stored in this file.

    Parameters
    ----------
    file
        Open.
    name
        Path of the dataset in the file.
    wrong
        Error to raise.

    Raises
    ------
    ValueError
        Of the kind ``wrong``, naming file and dataset, the cause and the remedy.
    """
    with hdf5_explained(file.filename, wrong, name):
        complaint = _elsewhere(file, name, 0)
        data = None if complaint else file[name]
        if data is not None:
            complaint = _kind(data) or _stored_outside(data) or _size(file, data)
    if complaint:
        msg = f"{file.filename}: {name} {complaint}"
        raise wrong(msg)
    return data


def is_there(file: h5py.File, name: str) -> bool:
    """Say whether something lies under a name, a link perhaps; links are not followed out of the file."""
    path = ""
    for part in name.strip("/").split("/"):
        path = f"{path}/{part}"
        link = file.get(path, getlink=True)
        if not isinstance(link, h5py.HardLink):
            return link is not None
    return True


def sound_group(file: h5py.File, name: str, wrong: type[ValueError]) -> h5py.Group:
    """Return a group of this file; raises as `sound_dataset` does."""
    with hdf5_explained(file.filename, wrong, name):
        complaint = _elsewhere(file, name, 0)
        group = None if complaint else file[name]
        if not complaint and not isinstance(group, h5py.Group):
            complaint = "is no group of datasets; write the file again"
    if complaint:
        msg = f"{file.filename}: {name} {complaint}"
        raise wrong(msg)
    return group


def _elsewhere(file: h5py.File, name: str, links: int) -> str:
    """Say what is wrong with the links on the way to a dataset; none of them is followed out of the file."""
    path = ""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    for number, part in enumerate(parts):
        path = f"{path}/{part}"
        link = file.get(path, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            return (
                f"is a link to another file ({link.filename}), whose changes would not be noticed; bring the data into "
                "one file: h5copy -f ext -i OLD -o NEW -s / -d /all"
            )
        if isinstance(link, h5py.SoftLink):
            if links >= _LINKS:
                return f"is reached by more than {_LINKS} links, which lead in a ring; write the file again"
            base = "" if link.path.startswith("/") else path.rpartition("/")[0]
            return _elsewhere(file, "/".join([base, link.path, *parts[number + 1 :]]), links + 1)
        if link is None:
            return f"is a link to {path}, which is not there; write the file again"
    return ""


def _kind(data: object) -> str:
    if not isinstance(data, h5py.Dataset):
        return f"is a {type(data).__name__.lower()}, not a dataset; write the file again"
    if data.shape is None:
        return "is empty (it has no dataspace); write the file again"
    if data.dtype.kind not in "fiub":
        return f"is of type {data.dtype}; real numbers are needed"
    return ""


def _stored_outside(data: h5py.Dataset) -> str:
    if data.is_virtual:
        others = {source.file_name for source in data.virtual_sources()} - {".", data.file.filename}
        return f"is a view of other files ({', '.join(sorted(others)[:3])}); {_INTO_ONE}" if others else ""
    if data.external:
        return f"is stored in another file ({data.external[0][0]}); {_INTO_ONE}"
    return ""


_INTO_ONE: Final = (
    "changes of those would not be noticed, and what is missing would count as zero: store the values in the file "
    "itself (h5py: new[name] = old[name][()])"
)


def _size(file: h5py.File, data: h5py.Dataset) -> str:
    """Say whether a dataset declares more than its file can hold."""
    declared = math.prod(data.shape) * data.dtype.itemsize
    held = Path(file.filename).stat().st_size
    if declared > max(_SMALL, _RATIO * held):
        return f"declares {data.shape} values, {_bytes(declared)}, in a file of {_bytes(held)}; {_REMEDY}"
    chunk = math.prod(data.chunks) * data.dtype.itemsize if data.chunks else 0
    if chunk > _CHUNK:
        return f"is stored in chunks of {_bytes(chunk)}, which are decoded whole; make them smaller with h5repack -l"
    # What was declared and never written reads as zeros.
    if declared > 0 and not data.is_virtual and data.id.get_storage_size() == 0:
        return "was declared but never written; the file is incomplete: write it again"
    return ""


def _bytes(number: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number //= 1024
    return f"{number:.3g} EiB"
