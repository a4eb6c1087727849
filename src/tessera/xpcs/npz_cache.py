"""homodyne's NPZ cache of two-time correlations: read angle by angle without unpacking it whole, and written."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from hpc.store.plain import parse_json
from tessera.input_files import explained, require_file
from tessera.xpcs.errors import XpcsFileError
from tessera.xpcs.memory import require_memory

_REQUIRED: Final = ("wavevector_q_list", "phi_angles_list", "t1", "t2", "c2_exp")
_METADATA: Final = "cache_metadata_json"
_LONGEST: Final = 1 << 20
"""Bytes of the metadata."""


@dataclass(frozen=True)
class Cache:
    """What a cache holds, but for the correlations.

    Attributes
    ----------
    path
        The file.
    q, phi
        Of each matrix, 1/Å and deg, shape (n,).
    times
        s, shape (n_t,).
    shape, dtype
        Of ``c2_exp``.
    metadata
        Of ``cache_metadata_json``; empty if there is none.
    """

    path: Path
    q: NDArray[np.float64]
    phi: NDArray[np.float64]
    times: NDArray[np.float64]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    metadata: dict[str, Any]


def read_cache(path: Path) -> Cache:
    """Read everything but the correlations.

    Raises
    ------
    XpcsFileError
        If the file is missing, damaged, lacks an array, holds Python objects, or its shapes do not agree.
    """
    require_file(path, "", "correct job.experimental_data.file_path", XpcsFileError)
    with _opened(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        missing = [name for name in _REQUIRED if name not in names]
        if missing:
            msg = f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(names)) or 'nothing'}"
            raise XpcsFileError(msg)
        shape, dtype = _header(archive, "c2_exp", path)
        _require_room(archive, shape, path)
        q, phi, t1, t2 = (_small(archive, name, path) for name in _REQUIRED[:4])
        if t1.ndim == 2 and t2.ndim == 2 and t2.size:
            t1, t2 = t1[:, 0], t2[0]  # meshgrids of homodyne's caches before version 2
        metadata = _metadata(archive, path) if _METADATA in names else {}
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] != t1.size or shape[0] != phi.size or t1.shape != t2.shape:
        msg = (
            f"{path}: c2_exp has shape {shape}, with {phi.size} angles and {t1.size} and {t2.size} times; it must be "
            "(angles, times, times)"
        )
        raise XpcsFileError(msg)
    if q.size not in (1, phi.size):
        msg = f"{path}: wavevector_q_list has {q.size} entries for {phi.size} angles; it needs one, or one per angle"
        raise XpcsFileError(msg)
    for name, values in (("wavevector_q_list", q), ("phi_angles_list", phi), ("t1", t1), ("t2", t2)):
        if not np.isfinite(values).all():
            msg = f"{path}: {name} holds values that are no numbers; delete the cache and make it again"
            raise XpcsFileError(msg)
    return Cache(path, np.broadcast_to(q.ravel(), phi.shape), phi, t1, shape[:3], dtype, metadata)


def fill_from_cache(cache: Cache, angles: NDArray[np.intp], first: int, end: int, out: NDArray[Any]) -> None:
    """Read the correlations of some angles and frames, holding one angle at a time.

    Parameters
    ----------
    cache
        From `read_cache`.
    angles
        Which, increasing, shape (k,).
    first, end
        Frames, 0-based, the end excluded.
    out
        Shape (k, end - first, end - first); filled.

    Raises
    ------
    XpcsFileError
        If the file is damaged, or there is no memory for the correlations.
    """
    places = {int(angle): k for k, angle in enumerate(angles)}
    n = cache.shape[1]
    nbytes = n * n * cache.dtype.itemsize
    require_memory(out.nbytes, str(cache.path), "fit the HDF5 file that the cache was made from")
    with _opened(cache.path) as archive, archive.open("c2_exp.npy") as stream:
        _read_header(stream, cache.path)
        for angle in range(int(angles[-1]) + 1):
            matrix = np.frombuffer(_exactly(stream, nbytes, cache.path), cache.dtype).reshape(n, n)
            if angle in places:
                out[places[angle]] = matrix[first:end, first:end]


def write_cache(
    path: Path,
    c2: NDArray[Any],
    phi: NDArray[Any],
    times: NDArray[Any],
    q: float,
    start_frame: int = 1,
    *,
    compression: bool = True,
) -> None:
    """Write correlations as homodyne's cache, version 2.0.

    Parameters
    ----------
    path
        ``….npz``.
    c2
        Shape (n_phi, n_t, n_t).
    phi, times
        deg, shape (n_phi,), and s, shape (n_t,).
    q
        1/Å.
    start_frame
        Number of the first frame, 1-based.
    compression
        Whether to compress (homodyne's ``cache_compression``).
    """
    metadata = {
        "config_wavevector_q": q,
        "actual_wavevector_q": q,
        "q_variance": 0.0,
        "q_count": len(phi),
        "start_frame": start_frame,
        "end_frame": start_frame + len(times) - 1,
        "phi_count": len(phi),
        "cache_version": "2.0",
        "selective_q_caching": True,
    }
    save = np.savez_compressed if compression else np.savez
    save(
        path,
        wavevector_q_list=np.full(len(phi), q),
        phi_angles_list=np.asarray(phi, np.float64),
        t1=np.asarray(times, np.float64),
        t2=np.asarray(times, np.float64),
        c2_exp=c2,
        cache_metadata_json=np.asarray(json.dumps(metadata)),
    )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    remedy = "it is damaged, encrypted or no NPZ file: delete it and make it again"
    with explained(str(path), remedy, XpcsFileError), zipfile.ZipFile(path) as archive:
        yield archive


def _small(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[np.float64]:
    with archive.open(f"{name}.npy") as stream:
        shape, dtype = _read_header(stream, path)
        values = np.frombuffer(_exactly(stream, math.prod(shape) * dtype.itemsize, path), dtype)
    return np.asarray(values.reshape(shape), np.float64)


def _require_room(archive: zipfile.ZipFile, c2: tuple[int, ...], path: Path) -> None:
    """See by their heads whether the arrays belong together, before any is read: four MB may stand for four GB.

    Raises
    ------
    XpcsFileError
        If one is larger than the correlations are long, or than what the archive says of it.
    """
    longest = max([1, *c2])
    for name in _REQUIRED:
        shape, dtype = _header(archive, name, path)
        size = math.prod(shape)
        square = name in {"t1", "t2"} and len(shape) == 2
        if name != "c2_exp" and size > (longest * longest if square else longest):
            msg = f"{path}: c2_exp has shape {c2} and {name} {shape}; they belong together, so make the cache again"
            raise XpcsFileError(msg)
        if size * dtype.itemsize > archive.getinfo(f"{name}.npy").file_size:
            msg = f"{path} ends too early: {name} is to have shape {shape}; copy it again from where it was written"
            raise XpcsFileError(msg)


def _metadata(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    with archive.open(f"{_METADATA}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind != "U" or math.prod(shape) != 1 or size > _LONGEST:
            msg = f"{path}: {_METADATA} is no text; delete the cache and make it again"
            raise XpcsFileError(msg)
        text = np.frombuffer(_exactly(stream, size, path), dtype)
    try:
        value = parse_json(str(text.item()))
    except ValueError as error:
        msg = f"{path}: {_METADATA} is no JSON ({error}); delete the cache and make it again"
        raise XpcsFileError(msg) from error
    return value if isinstance(value, dict) else {}


def _header(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(f"{name}.npy") as stream:
        return _read_header(stream, path)


def _read_header(stream: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the head of an NPY file and leave the stream at its data."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # the head is a Python expression: its parser has errors of its own
        msg = f"{path} holds an array that cannot be read ({error}); delete it and make it again"
        raise XpcsFileError(msg) from error
    if dtype.hasobject or fortran:
        what = (
            "Python objects, which are not loaded because they could run code" if dtype.hasobject else "columns first"
        )
        msg = f"{path} holds {what}; make it again with a current homodyne or with tessera.xpcs.npz_cache.write_cache"
        raise XpcsFileError(msg)
    if dtype.kind not in "fiu" or min(shape, default=0) < 0:
        msg = f"{path} holds an array of type {dtype} and shape {shape}; numbers are needed, so make it again"
        raise XpcsFileError(msg)
    return tuple(int(n) for n in shape), np.dtype(dtype)


def _exactly(stream: IO[bytes], nbytes: int, path: Path) -> bytes:
    data = stream.read(nbytes)
    if len(data) != nbytes:
        msg = f"{path} ends too early; copy it again from where it was written"
        raise XpcsFileError(msg)
    return data
