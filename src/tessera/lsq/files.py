"""Chunk sources over files: HDF5 datasets and NPY memory maps are streamed, CSV tables are read whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.input_files import explained, read_number, require_file
from tessera.lsq.errors import DataError, FitInputError
from tessera.lsq.sources import CHUNK_SIZE, ArraySource, Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Columns:
    """Which datasets, arrays or columns of a file are what.

    Attributes
    ----------
    x
        Independent variables: one name each, or one dataset of shape (k, m) or (m, k).
    y
        Measurements.
    sigma
        Standard errors of y; None: there are none.
    mask
        Nonzero where a point takes part; None: all do.
    """

    x: tuple[str, ...]
    y: str
    sigma: str | None = None
    mask: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All that are asked for."""
        return (*self.x, self.y, *(n for n in (self.sigma, self.mask) if n is not None))


class Hdf5Source:
    """Datasets of an HDF5 file, opened when the first chunk is read and kept open.

    Parameters
    ----------
    path
        The file.
    columns
        Names of the datasets.
    chunk_size
        Points per chunk.

    Raises
    ------
    DataError
        If the file is missing, damaged or truncated, a dataset is not there (the message lists what is) or cannot be
        decoded, or shapes do not fit each other.
    """

    def __init__(self, path: Path, columns: Columns, *, chunk_size: int = CHUNK_SIZE) -> None:
        self.path = Path(path)
        self._columns = columns
        self.chunk_size = chunk_size
        self._file: h5py.File | None = None
        self._arrays = self._open()
        self.n_points = self._arrays.n_points

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return self._arrays.n_chunks

    def read(self, index: int) -> Chunk:
        """Return chunk ``index``.

        Raises
        ------
        DataError
            If the file cannot be read there; the message names the chunk.
        """
        with _explained(self.path, f"chunk {index}"):
            return self._arrays.read(index)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> ArraySource:

        from hpc import input_hdf5

        _require_file(self.path)
        with _explained(self.path, "its header"):
            self._file = input_hdf5(self.path)
            return self._columns_of(self._file)

    def _columns_of(self, file: h5py.File) -> ArraySource:
        columns = self._columns
        from tessera.hdf5_sound import is_there, sound_dataset

        missing = [n for n in columns.names if not is_there(file, n)]
        if missing:
            raise DataError(_lacks(self.path, missing, _datasets(file)))
        for name in columns.names:
            sound_dataset(file, name, DataError)
        m = int(file[columns.y].shape[0]) if file[columns.y].ndim else 0
        x: Any = [_opened(file, n, m) for n in columns.x]
        if len(x) == 1:
            turned = x[0].ndim == 2 and x[0].shape[0] == m != x[0].shape[1]
            x = _Turned(x[0]) if turned else x[0]
        return ArraySource(
            x,
            _opened(file, columns.y, m),
            sigma=None if columns.sigma is None else _opened(file, columns.sigma, m),
            mask=None if columns.mask is None else _opened(file, columns.mask, m),
            chunk_size=self.chunk_size,
            names=_labels(self.path, columns),
        )


def _opened(file: h5py.File, name: str, m: int) -> h5py.Dataset:
    """Open a dataset of m points, with room for the chunks at which one read ends and the next begins."""
    from tessera.hdf5_chunks import missing_filter, opened_with_room

    data = file[name]
    if data.chunks is None:
        return data
    lack = missing_filter(data)
    if lack:
        msg = f"{file.filename}: {name} {lack}"
        raise DataError(msg)
    along = data.ndim - 1 if data.shape[-1] == m else 0
    across = [-(-n // c) for axis, (n, c) in enumerate(zip(data.shape, data.chunks, strict=True)) if axis != along]
    del data
    return opened_with_room(file, name, 2 * math.prod(across))


class _Turned:
    """A dataset of shape (m, k), seen as (k, m); only what is asked for is read."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape[::-1]
        self.dtype = dataset.dtype
        self.ndim = 2

    def __getitem__(self, where: tuple[slice, slice]) -> Any:
        return np.ascontiguousarray(np.asarray(self._dataset[where[1], where[0]]).T)


def npy_source(folder: Path, columns: Columns, *, chunk_size: int = CHUNK_SIZE) -> ArraySource:
    """Return a source over ``NAME.npy`` files in a folder, memory-mapped.

    Raises
    ------
    DataError
        If a file is missing (the message lists what is there) or holds no plain array.
    """
    there = {f.stem: f for f in sorted(folder.glob("*.npy"))} if folder.is_dir() else {}
    missing = [n for n in columns.names if n not in there]
    if missing:
        raise DataError(_lacks(folder, missing, dict.fromkeys(there, "")))
    arrays: dict[str, Any] = {}
    for name in columns.names:
        try:
            arrays[name] = np.load(there[name], mmap_mode="r", allow_pickle=False)
        except Exception as error:  # the head is a Python expression: its parser has errors of its own
            msg = f"{there[name]} cannot be read as an array ({error}); write it with numpy.save"
            raise DataError(msg) from error
    return _in_arrays(arrays, folder, columns, chunk_size)


def csv_source(path: Path, columns: Columns, *, chunk_size: int = CHUNK_SIZE) -> ArraySource:
    """Return a source over the columns of a CSV file with a header line; it is read whole.

    Raises
    ------
    DataError
        If the file or a column is missing (the message lists the columns), or a row is not made of numbers (the
        message names the row). Empty fields are NaN.
    """
    _require_file(path)
    with explained(str(path), "give a CSV file with a header line", DataError):
        return _csv_source(path, columns, chunk_size)


def _csv_source(path: Path, columns: Columns, chunk_size: int) -> ArraySource:
    with path.open(encoding="utf-8-sig") as lines:
        head = [name.strip().strip('"') for name in lines.readline().lstrip("#").split(",")]
        missing = [n for n in columns.names if n not in head]
        if missing:
            raise DataError(_lacks(path, missing, dict.fromkeys(head, "")))
        wanted = [head.index(n) for n in columns.names]
        begin = lines.tell()
        if not any(line.strip() for line in lines):
            msg = f"{path} holds no points, only the names of its columns; there is nothing to fit"
            raise DataError(msg)
        lines.seek(begin)
        try:
            table = np.loadtxt(lines, delimiter=",", usecols=wanted, ndmin=2, unpack=True, converters=_field)
        except ValueError as error:
            msg = f"{path} holds a row that is not made of numbers ({error}); rows are counted after the header"
            raise DataError(msg) from error
    return _in_arrays(dict(zip(columns.names, table, strict=True)), path, columns, chunk_size)


def is_text(path: Path) -> bool:
    """Say whether a file is taken for a table."""
    return path.suffix.lower() in {".csv", ".txt"}


def open_source(path: Path, columns: Columns, *, chunk_size: int = CHUNK_SIZE) -> Hdf5Source | ArraySource:
    """Return the source for a file by what it is: HDF5, CSV (``.csv``, ``.txt``), or a folder of NPY files.

    Raises
    ------
    DataError
        If it is none of these, or as said there.
    """
    if path.is_dir():
        return npy_source(path, columns, chunk_size=chunk_size)
    if is_text(path):
        return csv_source(path, columns, chunk_size=chunk_size)
    if path.suffix.lower() in {".h5", ".hdf5", ".hdf", ".nxs"} or not path.exists():
        return Hdf5Source(path, columns, chunk_size=chunk_size)
    msg = (
        f"{path} is of no known kind; give an HDF5 file (.h5, .hdf5, .hdf, .nxs), .csv, .txt, or a folder of .npy files"
    )
    raise DataError(msg)


def _in_arrays(arrays: Mapping[str, Any], path: Path, columns: Columns, chunk_size: int) -> ArraySource:
    x: Any = [arrays[n] for n in columns.x]
    return ArraySource(
        x[0] if len(x) == 1 else x,
        arrays[columns.y],
        sigma=None if columns.sigma is None else arrays[columns.sigma],
        mask=None if columns.mask is None else arrays[columns.mask],
        chunk_size=chunk_size,
        names=_labels(path, columns),
    )


def _labels(path: Path, columns: Columns) -> Sequence[str]:
    return [f"{path}: {n}" for n in (", ".join(columns.x), columns.y, columns.sigma or "", columns.mask or "")]


def _field(text: str) -> float:
    return read_number(text) if text.strip() else float("nan")


def _require_file(path: Path) -> None:
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir())[:_SHOWN] if path.parent.is_dir() else []
        msg = f"{path} does not exist; {path.parent} holds: {', '.join(near) or 'nothing'}"
        raise DataError(msg)
    require_file(path, "", "give a file", DataError)


def _datasets(file: h5py.File) -> dict[str, str]:
    import h5py

    found: dict[str, str] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = f" {item.shape}"

    try:
        file.visititems(note)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        found[f"and what cannot be listed ({error})"] = ""
    return found


def _lacks(path: Path, missing: Sequence[str], there: Mapping[str, str]) -> str:
    listed = [f"{name}{shape}" for name, shape in there.items()]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{path} has no {', '.join(missing)}; it holds: {', '.join(listed[:_SHOWN]) or 'nothing'}{more}"


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """Turn HDF5's errors into what the user has to know."""
    try:
        yield
    except FitInputError:
        raise
    except Exception as error:  # HDF5 tells damage with whatever h5py makes of it
        words = str(error)
        if "truncated" in words:
            sizes = words.rsplit("truncated file: ", maxsplit=1)[-1].rstrip(")")
            cause = f"the file is truncated ({sizes}); copy it again"
        elif "signature not found" in words:
            cause = "it is no HDF5 file, or its copy was cut short; look at its size and copy it again"
        else:
            cause = f"HDF5 says: {words}; the file may be damaged or its copy incomplete"
        msg = f"{path} cannot be read at {what}: {cause}"
        raise DataError(msg) from error
