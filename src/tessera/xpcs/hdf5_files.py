"""Two-time HDF5 files of the Advanced Photon Source, in the layouts of before and after its upgrade.

Both hold the upper half of each symmetric matrix. Where it is stored without chunks, blocks of rows are read when they
are needed, so that data larger than memory can be fitted. boost_corr, which writes the files of APS-U, compresses each
matrix as one chunk: a block of rows would cost decoding all of it, so chunks are decoded once. The layouts are those
that homodyne's ``xpcs_loader`` reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
from h5py import h5f, h5p
from numpy.typing import NDArray

from tessera.hdf5_chunks import REPACK, missing_filter, opened_with_room
from tessera.hdf5_sound import hdf5_explained, is_there, sound_dataset, sound_group
from tessera.input_files import require_file
from tessera.xpcs.dataset import Matrix
from tessera.xpcs.errors import XpcsFileError
from tessera.xpcs.memory import require_memory
from tessera.xpcs.packed import mirror, pack

Half = Literal["upper", "lower", "both"]

_OLD: Final = ("xpcs/dqlist", "xpcs/dphilist", "exchange/C2T_all")
_NEW: Final = (
    "xpcs/qmap/dynamic_v_list_dim0",
    "xpcs/qmap/dynamic_v_list_dim1",
    "xpcs/twotime/processed_bins",
    "xpcs/twotime/correlation_map",
)
_LISTED: Final = 20
_MAPPING: Final = "xpcs/qmap/dynamic_index_mapping"
_LOOKED_AT: Final = 256
"""Values of the first row and column that say which half is stored."""
_SIEVE: Final = 4096
"""Bytes that HDF5 reads at once where it is asked for less; its 64 KiB are four times what a block of rows needs."""


@dataclass(frozen=True)
class Matrices:
    """What a file holds: one matrix per pair of wavevector and angle.

    Attributes
    ----------
    layout
        ``aps_old`` or ``aps_u``.
    q, phi
        Of each matrix, 1/Å and deg, shape (n,).
    names
        Path of each matrix in the file.
    n_frames
        Side of the matrices.
    """

    layout: Literal["aps_old", "aps_u"]
    q: NDArray[np.float64]
    phi: NDArray[np.float64]
    names: tuple[str, ...]
    n_frames: int


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    XpcsFileError
        If it is missing, cut off, or no HDF5 file.
    """
    require_file(path, "", "correct job.experimental_data.file_path", XpcsFileError)
    try:
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        access.set_file_locking(False, False)
        access.set_sieve_buf_size(_SIEVE)
        return h5py.File(h5f.open(bytes(path), h5f.ACC_RDONLY, access))
    except OSError as error:
        if "truncated" in str(error):
            msg = f"{path} is cut off ({error}); copy it again from where it was written"
        else:
            msg = f"{path} is not a readable HDF5 file ({error})"
        raise XpcsFileError(msg) from error


def list_matrices(file: h5py.File, path: Path, exchange_key: str = "exchange") -> Matrices:
    """Say which matrices an open file holds.

    Parameters
    ----------
    file
        The file.
    path
        Its name, for messages.
    exchange_key
        Group of the old layout's matrices.

    Raises
    ------
    XpcsFileError
        If the file has neither layout, a dataset is missing, or lists and matrices do not agree.
    """
    old = (*_OLD[:2], f"{exchange_key}/C2T_all")
    with hdf5_explained(path, XpcsFileError):
        if is_there(file, old[2]) or is_there(file, _OLD[0]):
            _require(file, path, old, "old APS")
            return _list_old(file, path, old)
        if is_there(file, _NEW[3]) or is_there(file, _NEW[0]):
            _require(file, path, _NEW, "APS-U")
            return _list_new(file, path)
    msg = (
        f"{path} has neither the old APS layout ({', '.join(old)}) nor that of APS-U ({', '.join(_NEW)}); it holds "
        f"{_contents(file)}"
    )
    raise XpcsFileError(msg)


def _require(file: h5py.File, path: Path, names: Sequence[str], layout: str) -> None:
    missing = [name for name in names if not is_there(file, name)]
    if missing:
        msg = (
            f"{path} looks like the {layout} layout but lacks {', '.join(missing)}; it holds {_contents(file)}. "
            "Export the two-time correlations again, with their q and phi lists"
        )
        raise XpcsFileError(msg)


def _contents(file: h5py.File) -> str:
    """List the datasets of a file with their shapes, a few of them."""
    found: list[str] = []

    def visit(name: str, node: object) -> str | None:
        if isinstance(node, h5py.Dataset):
            found.append(f"{name} {node.shape}")
        return "enough" if len(found) > _LISTED else None

    try:
        file.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        return f"what cannot be listed ({error})"
    more = ", …" if len(found) > _LISTED else ""
    return (", ".join(found[:_LISTED]) or "no datasets") + more


def _list_old(file: h5py.File, path: Path, names: Sequence[str]) -> Matrices:
    q, phi = (np.asarray(_values(file, name), np.float64).ravel() for name in names[:2])
    keys = _members(file, names[2])
    if not (q.size == phi.size == len(keys)):
        msg = (
            f"{path}: {names[0]} has {q.size} entries, {names[1]} {phi.size} and {names[2]} {len(keys)} matrices; "
            "they belong together one to one, so the file is damaged or was written incompletely"
        )
        raise XpcsFileError(msg)
    paths = tuple(f"{names[2]}/{key}" for key in keys)
    return Matrices("aps_old", q, phi, paths, _side(file, path, paths))


def _list_new(file: h5py.File, path: Path) -> Matrices:
    q_values, phi_values, bins = (np.asarray(_values(file, name)).ravel() for name in _NEW[:3])
    keys = _members(file, _NEW[3])
    if bins.size != len(keys):
        msg = (
            f"{path}: {_NEW[2]} lists {bins.size} bins and {_NEW[3]} holds {len(keys)} matrices; they belong together "
            "one to one, so the file is damaged or was written incompletely"
        )
        raise XpcsFileError(msg)
    number = _places(file, path, bins.astype(np.int64) - 1, q_values.size * phi_values.size)
    q = np.asarray(q_values[number // phi_values.size], np.float64)
    phi = np.asarray(phi_values[number % phi_values.size], np.float64)
    paths = tuple(f"{_NEW[3]}/{key}" for key in keys)
    return Matrices("aps_u", q, phi, paths, _side(file, path, paths))


def _places(file: h5py.File, path: Path, bins: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return where bins lie in the grid of wavevectors and angles; all are counted from 0.

    Only bins with pixels are numbered (a beam stop or a mask may empty some), and the file says which those are.
    homodyne does not look there, and so gives the bins after an empty one the angles of their neighbours.
    """
    mapped = is_there(file, _MAPPING)
    named = _values(file, _MAPPING).ravel().astype(np.int64) if mapped else np.arange(size)
    outside = (bins < 0) | (bins >= named.size)
    if outside.any():
        what = f"{_MAPPING} has {named.size} entries" if mapped else f"the lists of both make {size} bins"
        msg = f"{path}: {_NEW[2]} holds bin {int(bins[outside][0]) + 1}, and {what}; the file is damaged"
        raise XpcsFileError(msg)
    places = named[bins]
    wrong = (places < 0) | (places >= size)
    if wrong.any():
        msg = (
            f"{path}: {_MAPPING} puts bin {int(bins[wrong][0]) + 1} at {int(places[wrong][0])}, and the lists of "
            f"wavevectors and angles make places 0 … {size - 1}; the file is damaged"
        )
        raise XpcsFileError(msg)
    return places


def _values(file: h5py.File, name: str) -> NDArray[Any]:
    """Return a list of numbers."""
    return np.asarray(sound_dataset(file, name, XpcsFileError)[()])


def _members(file: h5py.File, name: str) -> list[str]:
    """Return the names of the matrices in a group, sorted."""
    return sorted(sound_group(file, name, XpcsFileError))


def _side(file: h5py.File, path: Path, names: Sequence[str]) -> int:
    """Return the side of the matrices, which is the same for all."""
    if not names:
        msg = f"{path} holds no matrices; the two-time analysis that wrote it found nothing to correlate"
        raise XpcsFileError(msg)
    shapes = {sound_dataset(file, name, XpcsFileError).shape for name in names}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 2 or shape[0] != shape[1]:
        msg = f"{path}: the matrices have shapes {sorted(shapes)}; they must be square and alike"
        raise XpcsFileError(msg)
    return int(shape[0])


class HalfMatrixRows:
    """`tessera.xpcs.dataset.C2Rows` of matrices in an HDF5 file of which one half is stored.

    A file that holds both halves is averaged with its transpose. (homodyne adds both halves up, whatever they are.)

    Parameters
    ----------
    file
        Open for reading; it stays open as long as this lives.
    names
        Path of the matrix of each angle.
    first, end
        Frames, 0-based, the end excluded.

    Raises
    ------
    XpcsFileError
        If a matrix holds nothing but zeros.
    """

    def __init__(self, file: h5py.File, names: Sequence[str], first: int, end: int) -> None:
        self._file = file  # which closes when nobody holds it
        self._first, self._n = first, end - first
        self._lock = threading.Lock()
        with hdf5_explained(file.filename, XpcsFileError):
            self._data = [_opened(file, name) for name in names]
            self._halves = [_stored_half(data) for data in self._data]
            self._dtype = dtype_of(file, names)

    @property
    def n_phi(self) -> int:
        """Number of angles."""
        return len(self._data)

    @property
    def n_t(self) -> int:
        """Number of frames."""
        return self._n

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 if the file holds that, else float64."""
        return self._dtype

    def rows(self, angle: int, first: int, end: int) -> Matrix:
        """Read a block of rows, from its diagonal to the last column."""
        data, half = self._data[angle], self._halves[angle]
        start, stop, last = self._first + first, self._first + end, self._first + self._n
        with self._lock, _explained(data, f"rows {start + 1} … {stop}"):
            upper = data[start:stop, start:last] if half != "lower" else None
            lower = data[start:last, start:stop] if half != "upper" else None
        if upper is None or lower is None:
            block = np.asarray(upper if lower is None else lower.T, self._dtype)
            mirror(block)
            return block
        return np.asarray(0.5 * (upper + lower.T), self._dtype)


def in_chunks(file: h5py.File, names: Sequence[str]) -> bool:
    """Say whether matrices are stored in chunks, compressed or not."""
    return any(file[name].chunks is not None for name in names)


def require_filters(file: h5py.File, names: Sequence[str]) -> None:
    """See whether matrices can be decoded here.

    Raises
    ------
    XpcsFileError
        If one is compressed by a filter that is not installed.
    """
    for name in names:
        lack = missing_filter(file[name])
        if lack:
            msg = f"{file.filename}: {name} {lack}"
            raise XpcsFileError(msg)


def dtype_of(file: h5py.File, names: Sequence[str]) -> np.dtype[Any]:
    """Return float32 if all matrices are that, else float64."""
    return np.dtype(np.float32 if all(file[name].dtype == np.float32 for name in names) else np.float64)


def unpack(file: h5py.File, names: Sequence[str], frames: range, out: NDArray[Any], share: range) -> None:
    """Decode some of the matrices, each chunk once, one matrix after the other.

    Parameters
    ----------
    file, names
        As for `HalfMatrixRows`.
    frames
        0-based.
    out
        Upper triangles of all matrices, shape (n_phi, packed_size); those of ``share`` are written.
    share
        Which matrices.

    Raises
    ------
    XpcsFileError
        If a matrix holds nothing but zeros or cannot be read, or there is not enough memory for all of them.
    """
    if share.start == 0:
        require_memory(out.nbytes, str(file.filename), f"store it to be read piece by piece: {REPACK}")
    for angle in share:
        pack(HalfMatrixRows(file, [names[angle]], frames.start, frames.stop), 0, out[angle])


def _opened(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset, with room for the chunks that a block of rows, and one of columns, lies in."""
    data = file[name]
    if data.chunks is None:
        return data
    down, across = (-(-side // chunk) for side, chunk in zip(data.shape, data.chunks, strict=True))
    del data
    return opened_with_room(file, name, min(2 * (down + across), down * across))  # blocks lie across edges of chunks


@contextmanager
def _explained(data: h5py.Dataset, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, XpcsFileError):
            raise
        msg = (
            f"{data.file.filename}: {what} of {data.name} cannot be read ({error}); the file is damaged: copy it again "
            "from where it was written"
        )
        raise XpcsFileError(msg) from error


def _stored_half(data: h5py.Dataset) -> Half:
    """Say which half is stored, from the first row and column: the other one holds zeros.

    A column is a piece of every row, so a sample has to do, unless it leaves open whether there is anything.
    """
    for step in (max(1, data.shape[0] // _LOOKED_AT), 1):
        with _explained(data, "the first row"):
            above, below = np.any(data[0, 1::step] != 0), np.any(data[1::step, 0] != 0)
        if above or below:
            return "both" if above and below else "upper" if above else "lower"
    msg = (
        f"{data.file.filename}: {data.name} is empty (its first row and column are zero); leave its angle out by "
        "phi_filtering"
    )
    raise XpcsFileError(msg)
