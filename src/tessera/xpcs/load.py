"""From a file to the correlations that are fitted: layout, wavevector, frames, angles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs.dataset import ArrayC2, C2Rows, Dataset, even_times
from tessera.xpcs.errors import SelectionError, XpcsFileError
from tessera.xpcs.npz_cache import Cache, fill_from_cache, read_cache
from tessera.xpcs.select import AngleRange, Indices, choose_angles, choose_frames, choose_wavevector

if TYPE_CHECKING:
    import h5py

Floats = NDArray[np.float64]
Fill: TypeAlias = Callable[[NDArray[Any], int, int], None]
"""``fill(array, part, parts)`` writes the part-th of so many shares of an array."""
Hold: TypeAlias = Callable[[tuple[int, ...], "np.dtype[Any]", Fill], NDArray[Any]]
"""``hold(shape, dtype, fill)`` returns an array that ``fill`` has written: a way to keep one for a whole node."""

OLD_Q_TOLERANCE: Final = 0.1
"""homodyne's: in the old layout each matrix has a wavevector of its own, of which all within 10 % are one ring."""
_LAST_FRAME: Final = 2**31
_SAME_DT: Final = 1e-6
_SAME_Q: Final = 1e-10
_WIDE_Q: Final = 0.01


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a file is fitted.

    Attributes
    ----------
    q
        Wavevector, 1/Å; the nearest in the file is taken. None will do where the file has only one.
    dt
        Time between frames, s. A cache brings its own; HDF5 files do not.
    start_frame, end_frame
        1-based, both included; -1 is the last.
    ranges
        Angles that are used; None: all.
    fallback
        Whether all angles are used if none lies in the ranges.
    q_tolerance
        Relative distance up to which wavevectors are taken as one; None is homodyne's rule: 10 % in the old layout, 0
        otherwise.
    """

    q: float | None = None
    dt: float | None = None
    start_frame: int = 1
    end_frame: int = -1
    ranges: Sequence[AngleRange] | None = None
    fallback: bool = False
    q_tolerance: float | None = None


def load(path: Path, selection: Selection, *, exchange_key: str = "exchange", hold: Hold | None = None) -> Dataset:
    """Open a file and select what is fitted; correlations in HDF5 without chunks stay there until they are asked for.

    The first of the selected frames, whose time is 0, is left out, as in homodyne: D(t) may be infinite there.

    Parameters
    ----------
    path
        ``.npz``: homodyne's cache; everything else: HDF5 of APS (old) or APS-U.
    selection
        Wavevector, frames and angles.
    exchange_key
        Group of the matrices in the old layout.
    hold
        Where a cache, or HDF5 in chunks, is unpacked to; None: the memory of this process.

    Returns
    -------
    Dataset
        With ``times = dt, 2 dt, …`` from the first selected frame.

    Raises
    ------
    XpcsFileError
        If the file is missing, damaged, of no known layout, or lacks a dataset.
    SelectionError
        If wavevector, frames or angles are not in the file.
    DataQualityError
        If the times of a cache are not evenly spaced.
    """
    if path.suffix == ".npz":
        return _load_cache(path, selection, hold or _in_this_process)
    return _load_hdf5(path, selection, exchange_key, hold or _in_this_process)


def _load_cache(path: Path, selection: Selection, hold: Hold) -> Dataset:
    cache, name = read_cache(path), path.name
    chosen, notes = _choose(cache.q, cache.phi, selection, selection.q_tolerance or 0.0, name)
    first, end = choose_frames(selection.start_frame, selection.end_frame, cache.shape[1], name)
    times = even_times(_cache_times(cache, selection.dt, first, end, name), name)
    first += times.size < end - first
    offset = cache.metadata.get("start_frame", 1)
    if type(offset) is not int or not 1 <= offset <= _LAST_FRAME:
        msg = f"{name}: its metadata say start_frame={offset!r}, which is no frame; delete the cache and make it again"
        raise XpcsFileError(msg)
    frames = (first + offset, end + offset - 1)
    q = _mean_q(cache.q[chosen], notes)
    rows = ArrayC2(_unpack(cache, chosen, first, end, hold))
    return Dataset(rows, cache.phi[chosen], times, q, frames, "npz", name, tuple(notes))


def _load_hdf5(path: Path, selection: Selection, exchange_key: str, hold: Hold) -> Dataset:
    from tessera.xpcs.hdf5_files import list_matrices, open_file

    name = path.name
    file = open_file(path)
    listed = list_matrices(file, path, exchange_key)
    tolerance = selection.q_tolerance
    if tolerance is None:
        tolerance = OLD_Q_TOLERANCE if listed.layout == "aps_old" else 0.0
    chosen, notes = _choose(listed.q, listed.phi, selection, tolerance, name)
    first, end = choose_frames(selection.start_frame, selection.end_frame, listed.n_frames, name)
    if selection.dt is None:
        msg = (
            f"{name}: the {listed.layout} layout does not hold the time between frames; give "
            "job.analyzer_parameters.dt in s"
        )
        raise SelectionError(msg)
    rows = _rows_of(file, [listed.names[k] for k in chosen], range(first + 1, end), hold)
    times = selection.dt * np.arange(1, end - first, dtype=np.float64)
    q = _mean_q(listed.q[chosen], notes)
    return Dataset(rows, listed.phi[chosen], times, q, (first + 2, end), listed.layout, name, tuple(notes))


def _rows_of(file: h5py.File, names: Sequence[str], frames: range, hold: Hold) -> C2Rows:
    """Return the rows of matrices: from the file where they can be read by rows, else unpacked."""
    from tessera.xpcs.hdf5_files import HalfMatrixRows, dtype_of, in_chunks, require_filters, unpack
    from tessera.xpcs.packed import PackedRows, packed_size

    if not in_chunks(file, names):
        return HalfMatrixRows(file, names, frames.start, frames.stop)
    require_filters(file, names)

    def fill(out: NDArray[Any], part: int, parts: int) -> None:
        unpack(file, names, frames, out, range(part, len(names), parts))

    shape = (len(names), packed_size(len(frames)))
    return PackedRows(hold(shape, dtype_of(file, names), fill), len(frames))


def _choose(
    q_list: Floats, phi: Floats, selection: Selection, tolerance: float, source: str
) -> tuple[Indices, list[str]]:
    """Return which matrices are taken, and what is to be said about it."""
    if q_list.size == 0 or not (np.isfinite(q_list).all() and np.isfinite(phi).all() and (q_list > 0).all()):
        msg = f"{source}: the lists of wavevectors and angles are empty, not finite, or not above zero"
        raise XpcsFileError(msg)
    q = selection.q
    if q is None:
        if np.ptp(q_list) > tolerance * q_list[0]:
            msg = (
                f"{source} holds wavevectors from {q_list.min():g} to {q_list.max():g} 1/Å; say which one with "
                "job.analyzer_parameters.scattering.wavevector_q"
            )
            raise SelectionError(msg)
        q = float(q_list[0])
    ring = choose_wavevector(q_list, q, tolerance, source)
    if selection.ranges is None:
        return ring, []
    among, note = choose_angles(phi[ring], selection.ranges, source, fallback=selection.fallback)
    return ring[among], [note]


def _mean_q(chosen: Floats, notes: list[str]) -> float:
    """Return the mean wavevector; note it if some are far from it."""
    if np.ptp(chosen) <= _SAME_Q:
        return float(chosen[0])
    q = float(np.mean(chosen))
    spread = float(np.max(np.abs(chosen / q - 1)))
    if spread > _WIDE_Q:
        notes.append(
            f"the wavevectors of the {chosen.size} matrices differ by up to {100 * spread:.1f} % from their mean "
            f"{q:g} 1/Å, which the fit uses; narrow job.experimental_data.q_tolerance if that is "
            "too much (D scales as 1/q²)"
        )
    return q


def _cache_times(cache: Cache, dt: float | None, first: int, end: int, source: str) -> Floats:
    """Return the times of the selected frames, from the start of the selection, without t=0."""
    times = cache.times[first:end]
    step = float(times[1] - times[0])
    if dt is not None and abs(step / dt - 1) > _SAME_DT:
        msg = (
            f"{source}: its times are {step:g} s apart, and job.analyzer_parameters.dt is {dt:g} s; correct dt, or set "
            "it to null to use the file's"
        )
        raise SelectionError(msg)
    if first > 0:
        times = times - times[0]
    return times[1:] if times[0] == 0 else times


def _unpack(cache: Cache, chosen: Indices, first: int, end: int, hold: Hold) -> NDArray[Any]:
    def fill(out: NDArray[Any], part: int, _parts: int) -> None:
        if part == 0:  # one compressed stream
            fill_from_cache(cache, chosen, first, end, out)

    return hold((chosen.size, end - first, end - first), cache.dtype, fill)


def _in_this_process(shape: tuple[int, ...], dtype: np.dtype[Any], fill: Fill) -> NDArray[Any]:
    out = np.empty(shape, dtype)
    fill(out, 0, 1)
    return out
