"""Files that are either whole or absent, and HDF5 files that tell when they are damaged.

The protocol is the same for every file: write under a temporary name in the same directory, close, fsync,
rename, fsync the directory. A reader therefore never sees a half-written file, and a temporary file left by a
killed process is never read. No pickle anywhere: arrays are HDF5 datasets, everything else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hpc.errors import CorruptFileError
from hpc.store.faults import reached
from hpc.store.newfile import create, replace, temporary_name
from hpc.store.reading import is_refusal

if TYPE_CHECKING:  # a rank takes its lock and reads records before numpy may be loaded, see hpc/kernels.py
    import h5py
    from numpy.typing import NDArray

    from hpc.job import Arrays

_CHUNK_BYTES: Final = 1 << 20
_SLICE_CHUNKS: Final = 8
"""Chunks written at a time: h5py holds one lock for all files, and a reader in another thread waits for it."""


def _allowed() -> None:
    """Object to nothing."""


def write_atomically(path: Path, write: Callable[[Path], None], check: Callable[[], None] = _allowed) -> None:
    """Let ``write`` fill a temporary file and put it in the place of ``path`` durably.

    Parameters
    ----------
    path
        Final name; its directory exists.
    write
        Called with the temporary name.
    check
        Called when all that is left is the renaming; what it raises prevents that.

    Raises
    ------
    OSError
        As raised by the file system; the old content of ``path`` is then untouched.
    """
    temporary = temporary_name(path)
    try:
        reached("begin", path)
        write(temporary)
        reached("written", path)
        _fsync(temporary)
        reached("synced", path)
        check()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    reached("renamed", path)
    _fsync(path.parent)
    reached("durable", path)


def write_bytes(path: Path, content: bytes, check: Callable[[], None] = _allowed, mode: int = 0o666) -> None:
    """Write a small file atomically and durably; see `write_atomically` for ``check``, `create` for ``mode``."""

    def write(temporary: Path) -> None:
        create(temporary, content, mode)

    write_atomically(path, write, check)


def write_json(path: Path, value: object, check: Callable[[], None] = _allowed) -> None:
    """Write a JSON file atomically and durably; see `write_atomically` for ``check``."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), check)


def replace_json(path: Path, value: object) -> None:
    """Replace a JSON file atomically but without fsync: for figures that are rewritten every second."""
    replace(path, json.dumps(value).encode(), temporary_name(path))


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_hdf5(
    path: Path, arrays: Arrays, attributes: Mapping[str, object], check: Callable[[], None] = _allowed
) -> None:
    """Write named arrays and JSON attributes as one atomic HDF5 file, every dataset under a checksum.

    Parameters
    ----------
    path
        Final name; its directory exists.
    arrays
        Names may hold ``/`` for groups. Any shape; numbers, booleans, complex numbers and text.
    attributes
        JSON-serialisable values, stored as one JSON text in a checksummed dataset.
    check
        See `write_atomically`.

    Raises
    ------
    TypeError
        If an array holds Python objects.
    OSError
        If the file system does; nothing is left behind.
    """
    import numpy as np

    from hpc.store.guarded import LIBVER, new_hdf5

    def write(temporary: Path) -> None:
        with new_hdf5(temporary, LIBVER) as file:
            text = np.frombuffer(json.dumps(dict(attributes), sort_keys=True).encode(), np.uint8)
            _put(file, "attributes.json", text, path)
            for name, array in arrays.items():
                _put(file, f"arrays/{name}", np.asarray(array), path)

    write_atomically(path, write, check)


@contextmanager
def open_hdf5(path: Path) -> Iterator[tuple[h5py.Group, dict[str, Any]]]:
    """Open a file of `write_hdf5`; yields its group of arrays and its attributes.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the file is missing, truncated, or its checksums do not match.
    OSError
        If the file system does not give it out now, which says nothing of its content.
    """
    from hpc.store.guarded import existing_hdf5

    try:
        with existing_hdf5(path) as file:
            attributes = json.loads(file["attributes.json"][()].tobytes())
            yield file.get("arrays", {}), attributes
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if is_refusal(error):
            raise
        msg = f"{path}: cannot be read as a checkpoint file ({error}); it is damaged or was not written by tessera"
        raise CorruptFileError(msg) from error


def read_array(dataset: h5py.Dataset) -> NDArray[Any]:
    """Return one dataset of `write_hdf5` as it was given, shape and text type included."""
    import numpy as np

    array = dataset[()]
    if "text" in dataset.attrs:
        array = np.char.decode(array, "utf-8")
    shape = tuple(int(n) for n in dataset.attrs["shape"])
    return np.asarray(array).reshape(shape)


def read_hdf5(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return all arrays and the attributes of a file of `write_hdf5`.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the file is missing, truncated, or its checksums do not match.
    OSError
        If the file system does not give it out now.
    """
    import h5py

    arrays: dict[str, NDArray[Any]] = {}
    with open_hdf5(path) as (group, attributes):
        if group:

            def visit(name: str, node: object) -> None:
                if isinstance(node, h5py.Dataset):
                    arrays[name] = read_array(node)

            group.visititems(visit)
    return arrays, attributes


def _put(file: h5py.File, name: str, array: NDArray[Any], path: Path) -> None:
    import numpy as np

    if array.dtype.hasobject:
        msg = f"array {name!r} holds Python objects; only numbers and text can be saved"
        raise TypeError(msg)
    text = array.dtype.kind == "U"
    flat = np.char.encode(array, "utf-8").reshape(-1) if text else array.reshape(-1)
    if flat.dtype.itemsize == 0:  # a text array of empty strings
        flat = flat.astype("S1")
    chunk = max(1, min(flat.size, _CHUNK_BYTES // flat.dtype.itemsize))
    dataset = file.create_dataset(
        name, flat.shape, flat.dtype, chunks=(chunk,), maxshape=(None,), fletcher32=True, track_order=False
    )
    dataset.attrs["shape"] = np.asarray(array.shape, np.int64)
    if text:
        dataset.attrs["text"] = True
    for start in range(0, flat.size, chunk * _SLICE_CHUNKS):
        dataset[start : start + chunk * _SLICE_CHUNKS] = flat[start : start + chunk * _SLICE_CHUNKS]
        reached("slice", path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
