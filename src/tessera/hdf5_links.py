"""Which other files an HDF5 file takes its data from: external links, virtual datasets and external storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def with_linked(path: Path) -> list[Path]:
    """Return an HDF5 file and every file that it names, and these name in turn; a file that cannot be read ends there.

    HDF5 looks for a relative name beside the file that names it; files that are not there are left out.
    """
    found: dict[Path, None] = {}
    todo = [path]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found[file] = None
        todo += [place for name in _names(file) if (place := file.parent / os.fsdecode(name)).is_file()]
    return list(found)


def _names(path: Path) -> list[str]:
    """Return the names of the files that a file refers to; none if it cannot be read, which others say."""
    import h5py

    from hpc import input_hdf5

    names: list[str] = []

    def link(_: str, found: Any) -> None:
        if isinstance(found, h5py.ExternalLink):
            names.append(found.filename)

    def item(_: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            names.extend(_of_dataset(found))

    try:
        with input_hdf5(path) as file:
            file.visititems_links(link)
            file.visititems(item)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        pass
    return names


def _of_dataset(data: Any) -> Iterator[str]:
    if data.is_virtual:
        yield from (source.file_name for source in data.virtual_sources() if source.file_name != ".")
    yield from (name for name, _, _ in data.external or ())
