"""Which arrays can be stored and come back as they were: asked while it is still clear whose they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_PLAIN: Final = "biufcSU"
"""Kinds of numpy's types that HDF5 has, too: booleans, numbers, bytes and text."""

_CODES: Final = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"
"""How numpy keeps text."""

_SURROGATES: Final = (0xD800, 0xDFFF)
"""Halves of characters, which no encoding stores: ``os.fsdecode`` makes them of odd file names."""


def storable(arrays: object) -> dict[str, NDArray[Any]]:
    """Return named arrays as they will be stored, in this machine's byte order.

    Parameters
    ----------
    arrays
        What a unit returned, or the state of a loop.

    Raises
    ------
    TypeError, ValueError
        Naming the array that cannot be stored, why, and what to return instead.
    """
    if not isinstance(arrays, Mapping):
        msg = f"{type(arrays).__name__} instead of named arrays; return a dict such as {{'flux': array}}"
        raise TypeError(msg)
    _check_names(tuple(arrays))
    return {name: _stored(name, value) for name, value in arrays.items()}


@lru_cache(256)  # the units of a stage return arrays of the same names
def _check_names(names: tuple[Any, ...]) -> None:
    for name in names:
        if not isinstance(name, str):
            msg = f"an array is called {name!r}; names of arrays are texts"
            raise TypeError(msg)
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name or not _is_unicode(name):
            msg = f"an array is called {name!r}; a name is not empty, and each part between its slashes is a word"
            raise ValueError(msg)
    for name in names:
        parts = name.split("/")
        for upper in ("/".join(parts[:n]) for n in range(1, len(parts))):
            if upper in names:
                msg = f"{name!r} would lie inside the array {upper!r}; give one of the two another name"
                raise ValueError(msg)


def _is_unicode(text: str) -> bool:
    return not any(_SURROGATES[0] <= ord(letter) <= _SURROGATES[1] for letter in text)


def _stored(name: str, value: object) -> NDArray[Any]:
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        msg = f"{name!r} is a masked array, whose mask would be lost; return filled values, and the mask by its side"
        raise TypeError(msg)
    array = np.asarray(value)
    dtype = array.dtype
    if dtype.kind in "biufc" and dtype.isnative:
        return array
    if dtype.hasobject:
        msg = f"{name!r} holds Python objects; return numbers or text arrays"
        raise TypeError(msg)
    _check_type(name, dtype)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    if dtype.kind == "U" and _has_surrogates(array):
        msg = f"{name!r} holds text with half characters (surrogates), which cannot be stored; encode it to bytes"
        raise ValueError(msg)
    return array


def _check_type(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.fields is not None:
        for field, (inner, *_) in dtype.fields.items():
            if inner.base.kind == "U":
                msg = f"{name!r} holds text in its field {field!r}; return the texts as an array of their own"
                raise TypeError(msg)
            _check_type(f"{name}.{field}", inner.base)
        if dtype.fields:
            return
    if dtype.kind in "mM":
        msg = f"{name!r} holds dates or times ({dtype}), which HDF5 has not; return seconds as numbers"
        raise TypeError(msg)
    if dtype.kind not in _PLAIN:
        msg = f"{name!r} is of type {dtype}, which cannot be stored; return numbers or text arrays"
        raise TypeError(msg)


def _has_surrogates(array: NDArray[Any]) -> bool:
    try:
        array.tobytes().decode(_CODES)
    except UnicodeDecodeError:
        return True
    return False
