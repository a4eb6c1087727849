"""The compiled sums of the XPCS fit: a C library that the installation builds, and its functions as Python calls.

Each function exists for several generations of processors; the widest vectors that this one has are used, in a run
those that all its nodes have (`hpc.kernels`). Results are the same bits on processors of one generation; between
generations they differ by rounding.
"""

from __future__ import annotations

import ctypes
import math
import os
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpc import cpu
from hpc.kernels import LEVEL
from tessera.lsq.losses import LOSSES, Loss
from tessera.xpcs.errors import KernelError
from tessera.xpcs.native import plain
from tessera.xpcs.physics import Floats

PAD: Final = 8
"""Rows of padded arrays are a multiple of so many elements long, a line of the cache; vectors over times have at least
so many more than the grid."""

FLOW_FUNCTIONS: Final = 8
STATIC_FUNCTIONS: Final = 4
EXTRA_SUMS: Final = 3

SUMS: Final = "TESSERA_XPCS_SUMS"
"""Environment variable: ``numpy`` leaves the compiled sums alone."""

PLAIN: Final = "numpy"
"""The level of an installation without compiled sums."""

_LIBRARY: Final = Path(__file__).with_name("kernels.so")
_REMEDY: Final = (
    "install Tessera again on this machine: pip install -e . in the checkout, or with the wheel pip install "
    "--force-reinstall --no-deps"
)
_NO_MEMORY: Final = "no memory for the buffers of a pass"
_AFTER: Final = 17  # doubles of the C struct `after`
_SUFFIXES: Final = {"x86-64-v4": "v4", "x86-64-v3": "v3", "x86-64-v2": "v1", "x86-64": "v1"}


class _Robust(ctypes.Structure):
    _fields_ = (
        ("loss", ctypes.c_ssize_t),
        ("scores", ctypes.c_ssize_t),
        ("inverse", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("scale", "contrast", "offset")),
    )


class _FlowPass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("decay", "phase", "slopes", "sine", "cosine")),
        *((name, ctypes.c_void_p) for name in ("across", "share", "flat", "robust")),
        ("n_phi", ctypes.c_ssize_t),
        ("pitch", ctypes.c_ssize_t),
        ("smoothing", ctypes.c_double),
    )  # fmt: skip


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("first", "rows", "left", "width", "stride")),
        ("y", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
    )


class _StaticPass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("decay", "slopes", "faded", "seen", "robust")),
        *((name, ctypes.c_ssize_t) for name in ("n_t", "pitch", "n_phi")),
    )


class _Strip(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("first", "rows", "width", "stride")),
        *((name, ctypes.c_void_p) for name in ("square", "square_weight", "rest", "rest_weight")),
    )


def level() -> str:
    """Return the suffix of the functions for this processor, or for the lesser one that the run is pinned to."""
    if os.environ.get(SUMS) == PLAIN or not _LIBRARY.exists():
        return PLAIN
    return _level(os.environ.get(LEVEL, ""))


def complaint() -> str:
    """Say that the sums are not compiled; empty if they are."""
    if level() != PLAIN:
        return ""
    why = f"{SUMS}={PLAIN} asks for that" if os.environ.get(SUMS) == PLAIN else f"{_LIBRARY.name} was not built"
    return (
        f"the sums of the XPCS fit run in NumPy, several times slower than compiled, and round differently: {why}; "
        f"with a C compiler (Debian, Ubuntu: apt install gcc; clusters: module load gcc) {_REMEDY}"
    )


@cache
def _level(pinned: str) -> str:
    found = _SUFFIXES.get(cpu.level(), "any")
    return min(found, _SUFFIXES.get(pinned, found))


@cache
def functions(suffix: str) -> dict[str, Callable[..., Any]]:
    """Return the library's functions of one level.

    Raises
    ------
    KernelError
        If the library is missing, cannot be loaded, or was built from other sources than those beside it.
    """
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        msg = f"the compiled kernels {_LIBRARY} cannot be loaded ({error}); {_REMEDY}"
        raise KernelError(msg) from error
    built = getattr(library, f"sources_{suffix}", None)
    if built is None or ctypes.c_uint(built()).value != _checksum():
        msg = f"the compiled kernels {_LIBRARY} were built from another version of the sources; {_REMEDY}"
        raise KernelError(msg)
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    kinds: dict[str, tuple[Any, list[Any]]] = {
        "flow_square": (ctypes.c_int, [pointer, pointer, pointer]),
        "flow_rectangle": (ctypes.c_int, [pointer, pointer, pointer]),
        "static_after": (None, [pointer, pointer, size, pointer]),
        "static_sums": (ctypes.c_int, [pointer, pointer, size, pointer, pointer]),
        "read_mean": (None, [pointer, ctypes.c_int, *[size] * 8, pointer, pointer]),
        "sum_squares": (None, [pointer, size, size, pointer]),
        "to_nodes": (None, [pointer, *[size] * 3, pointer, size, pointer]),
    }
    found: dict[str, Callable[..., Any]] = {}
    for name, (result, arguments) in kinds.items():
        function = getattr(library, f"{name}_{suffix}")
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return found


def _checksum() -> int:
    """Return a number that tells one version of the C sources from another; ``hatch_build.py`` computes the same."""
    folder, total = _LIBRARY.parent, 0
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")], key=lambda p: p.name):
        total = zlib.crc32(path.read_bytes(), total)
    return total


def aligned(shape: tuple[int, ...]) -> Floats:
    """Return an array, not initialised, that begins with a line of the cache: no vector of its rows crosses one."""
    size = math.prod(shape)
    whole = np.empty(size + PAD)
    first = -whole.ctypes.data // whole.itemsize % PAD
    return whole[first : first + size].reshape(shape)


def padded(vectors: Floats) -> Floats:
    """Return vectors over the times, shape (..., n), followed by zeros that C may read; shape (..., pitch)."""
    n = vectors.shape[-1]
    out = aligned((*vectors.shape[:-1], (n // PAD + 2) * PAD))
    out[..., :n] = vectors
    out[..., n:] = 0.0
    return out


class Kept:
    """A C struct and the arrays that it points to; ``at`` is its address. ``struct`` and ``arrays`` are for NumPy."""

    def __init__(self, struct: ctypes.Structure, *arrays: np.ndarray[Any, Any] | Kept | None) -> None:
        self.struct, self.arrays = struct, arrays
        self.at = ctypes.addressof(struct)


def _address(array: np.ndarray[Any, Any] | None) -> int | None:
    if array is None:
        return None
    if not array.flags.c_contiguous:
        msg = "arrays that C works on must be contiguous"
        raise ValueError(msg)
    return array.ctypes.data


def robust(loss: Loss, loss_scale: float, scaling: tuple[Floats, Floats, Floats], *, scores: bool) -> Kept:
    """Return what weights that depend on the residuals are made with, see ``robust.h``.

    Parameters
    ----------
    loss, loss_scale
        The loss, and the residual, in standard errors, from which on it is not quadratic.
    scaling
        1/σ², contrast and offset less one of each angle, shape (n_phi,) each.
    scores
        Whether to weigh for the middle of the sandwich covariance.
    """
    arrays = tuple(np.ascontiguousarray(a, np.float64) for a in scaling)
    # ``enum loss`` has the order of `LOSSES`.
    return Kept(_Robust(LOSSES.index(loss), scores, loss_scale**-2, *(_address(a) for a in arrays)), *arrays)


def flow_pass(
    vectors: Sequence[Floats],
    across: Floats,
    flat: np.ndarray[Any, np.dtype[np.bool_]],
    share: Floats | None,
    smoothing: float,
    weights: Kept | None = None,
) -> Kept:
    """Return the parameters' part of `flow_sums`: decay, phase, slopes, sine and cosine, each `padded`."""
    arrays = (*vectors, across, share, flat)
    at = None if weights is None else weights.at
    struct = _FlowPass(*(_address(a) for a in arrays), at, across.size, vectors[0].size, smoothing)
    return Kept(struct, *arrays, weights)


def block(place: tuple[int, int, int, int], y: Floats, weight: Floats | None) -> Kept:
    """Return the data's part of `flow_sums`: first row, rows, first column, columns; y is (n_phi, rows, stride)."""
    return Kept(_Block(*place, y.shape[-1], _address(y), _address(weight)), y, weight)


def flow_sums(at: Kept, data: Kept, out: Floats, *, diagonal: bool) -> None:
    """Add the sums over a block to ``out``, shape (n_phi, 83): as `tessera.xpcs.kernel.combined` takes them.

    On the diagonal, only pairs above it are summed.
    """
    if level() == PLAIN:
        plain.flow_sums(at, data, out, diagonal=diagonal)
        return
    function = functions(level())["flow_square" if diagonal else "flow_rectangle"]
    if function(at.at, data.at, out.ctypes.data):
        raise MemoryError(_NO_MEMORY)


def static_pass(arrays: tuple[Floats, Floats, Floats, Floats], n_t: int, n_phi: int, weights: Kept | None) -> Kept:
    """Return the parameters' part of `static_sums`: decay and slopes, `padded`; faded, (views, 4, pitch); seen."""
    at = None if weights is None else weights.at
    return Kept(_StaticPass(*(_address(a) for a in arrays), at, n_t, arrays[0].size, n_phi), *arrays, weights)


def strip(place: tuple[int, int, int], square: Floats, rest: Floats, weights: tuple[Floats, Floats] | None) -> Kept:
    """Return the data's part of `static_sums`: first row, rows, columns right of the square."""
    on_square, on_rest = weights or (None, None)
    arrays = (square, on_square, rest, on_rest)
    return Kept(_Strip(*place, rest.shape[-1], *(_address(a) for a in arrays)), *arrays)


def static_after(at: Kept, views: np.ndarray[Any, np.dtype[np.intp]]) -> Floats:
    """Return the sums over the times after each strip that involve no data, shape (n_strips, …)."""
    out = np.zeros((views.size, _AFTER))
    if level() == PLAIN:  # sums pair by pair need nothing beforehand
        return out
    functions(level())["static_after"](at.at, views.ctypes.data, views.size, out.ctypes.data)
    return out


def static_sums(at: Kept, data: Kept, view: int, after: Floats, out: Floats) -> None:
    """Add the sums over a strip to ``out``, shape (n_phi, 27): as `tessera.xpcs.kernel.combined` takes them."""
    if level() == PLAIN:
        plain.static_sums(at, data, out)
        return
    if functions(level())["static_sums"](at.at, data.at, view, after.ctypes.data, out.ctypes.data):
        raise MemoryError(_NO_MEMORY)


def read_mean(c2: np.ndarray[Any, Any], place: tuple[int, int, int, int], y: Floats) -> Floats:
    """Fill a block with the mean of both halves of C₂ less one.

    Parameters
    ----------
    c2
        Shape (n_phi, n_t, n_t), float32 or float64, elements of a row side by side.
    place
        First row, rows, first column, columns.
    y
        Shape (n_phi, rows, stride); only its columns are written, on the diagonal what lies above it.

    Returns
    -------
    numpy.ndarray
        Σd² of each angle, d half the difference of the halves; shape (n_phi,).
    """
    if level() == PLAIN:
        return plain.read_mean(c2, place, y)
    unlike = np.empty(len(c2))
    turn, pitch = (step // c2.itemsize for step in c2.strides[:2])
    function = functions(level())["read_mean"]
    function(
        c2.ctypes.data,
        c2.dtype == np.float32,
        len(c2),
        turn,
        pitch,
        *place,
        y.shape[2],
        y.ctypes.data,
        unlike.ctypes.data,
    )
    return unlike


def sum_squares(y: Floats) -> Floats:
    """Return Σy and Σy² of each angle of a padded block, (n_phi, rows, stride); shape (n_phi, 2)."""
    if level() == PLAIN:
        return plain.sum_squares(y)
    out = np.empty((len(y), 2))
    functions(level())["sum_squares"](y.ctypes.data, len(y), y[0].size, out.ctypes.data)
    return out


def to_nodes(spread: Floats, y: Floats, width: int, out: Floats) -> None:
    """Carry a rectangle to nodes, see `tessera.xpcs.coarse`.

    Parameters
    ----------
    spread
        Lᵀ, shape (8, 32).
    y
        Shape (n_phi, 32, stride), of which ``width`` columns count.
    out
        Shape (n_phi, 8, stride of its own), zero.
    """
    if level() == PLAIN:
        plain.to_nodes(spread, y, width, out)
        return
    function = functions(level())["to_nodes"]
    function(spread.ctypes.data, len(y), width, y.shape[2], y.ctypes.data, out.shape[2], out.ctypes.data)
