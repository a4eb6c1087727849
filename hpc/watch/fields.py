"""Frozen dataclasses from JSON that may be damaged: a flipped bit makes a word of a number, or a year of 1e99."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")

LARGEST: Final = 1e15
"""Of any count, number of seconds or epoch: what is larger was not written by a run, and overflows clocks."""

_NAMES: Final = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def record(cls: type[T], values: object, where: str = "") -> T:
    """Build a record from the keys that it knows; a newer version may have written more.

    Parameters
    ----------
    cls
        A dataclass of ``int``, ``float``, ``str``, ``bool``, mappings of these, other dataclasses, tuples of them, and
        each of these or None.
    values
        As read from JSON.
    where
        The key they stood under, for messages.

    Raises
    ------
    ValueError
        Naming the key that is missing, of another type, or out of all bounds.
    """
    mapping = _mapping(values, where)
    made = {}
    for name, (hint, needed) in _plan(cls).items():  # type: ignore[arg-type]
        if name in mapping:
            made[name] = _value(hint, mapping[name], f"{where}.{name}" if where else name)
        elif needed:
            msg = f"{where}.{name} is missing" if where else f"{name} is missing"
            raise ValueError(msg)
    return cls(**made)


@functools.cache
def _plan(cls: type) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(cls) if f.init
    }


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arms:
            return None
        kinds = [arm for arm in arms if arm is not type(None)]
        return _value(next((a for a in kinds if type(value) is a), kinds[0]), value, where)
    if is_dataclass(hint):
        return record(typing.cast("type", hint), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            _refuse(where, "a list", value)
        return tuple(_value(arms[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        return {k: _value(arms[1], v, f"{where}.{k}") for k, v in _mapping(value, where).items()}
    return value if hint is Any else _scalar(hint, value, where)


def _scalar(hint: type, value: object, where: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < LARGEST or not math.isfinite(value):
            _refuse(where, f"a number below {LARGEST:g}", value)
        return float(value)
    if type(value) is not hint:
        _refuse(where, _NAMES.get(hint, str(hint)), value)
    if isinstance(value, int) and not abs(value) < LARGEST:
        _refuse(where, f"a number below {LARGEST:g}", value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair can be written to no terminal
    return value


def _mapping(values: object, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        _refuse(where, "a section of keys", values)
    return values


def _refuse(where: str, wanted: str, value: object) -> typing.NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    msg = f"{where or 'it'} must be {wanted}, not {shown}"
    raise ValueError(msg)
