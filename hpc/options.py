"""Frozen dataclasses from plain mappings, with every wrong key, type and range named.

The configuration reaches the ranks as plain YAML. A workload declares its options as a (nested) frozen
dataclass; `build` turns the mapping into it and collects *all* complaints into one `ConfigError`, so that
a job is fixed in one go. Ranges are declared beside the type: ``Annotated[float, Range(gt=0)]``.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from hpc.errors import ConfigError, nearest

T = TypeVar("T")

_MISSING_PATH = "???"  # how OmegaConf writes a value the user has to give


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number: ``gt < x``, ``ge <= x``, ``x < lt``, ``x <= le``; None means unbounded."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def complaint(self, value: float) -> str | None:
        """Return what is wrong with ``value``, or None."""
        if not math.isfinite(value):
            return "must be finite"
        bad = [
            f"{sign} {bound:g}"
            for sign, bound, ok in (
                (">", self.gt, self.gt is None or value > self.gt),
                (">=", self.ge, self.ge is None or value >= self.ge),
                ("<", self.lt, self.lt is None or value < self.lt),
                ("<=", self.le, self.le is None or value <= self.le),
            )
            if not ok and bound is not None
        ]
        return f"must be {' and '.join(bad)}" if bad else None


class _WrongValueError(Exception):
    """One complaint about one value; caught within this module."""


def build(cls: type[T], values: Mapping[str, Any], where: str = "job") -> T:
    """Build a (nested) frozen dataclass from a mapping, checking names, types and ranges.

    Parameters
    ----------
    cls
        The dataclass. Supported fields: bool, int, float, str, ``Path``, ``Literal``, ``tuple[T, ...]``,
        ``tuple[A, B]``, ``dict[str, T]``, ``T | None``, nested dataclasses, unions of these told apart by a
        ``Literal`` field of one word, and ``Annotated[T, Range(…)]``.
    values
        Plain mapping, as read from YAML. Missing keys take the dataclass's default.
    where
        Prefix of the key names in messages.

    Returns
    -------
    T
        The checked options.

    Raises
    ------
    hpc.errors.ConfigError
        Listing every unknown key (with the nearest valid ones), wrong type and value out of range.
    """
    complaints: list[str] = []
    result = _build(cls, values, where, complaints)
    if complaints:
        raise ConfigError("\n".join(complaints))
    return typing.cast("T", result)


def plain(options: Any) -> Any:
    """Return built options as plain YAML values, defaults included: the inverse of `build`."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {f.name: plain(getattr(options, f.name)) for f in dataclasses.fields(options) if f.init}
    if isinstance(options, Mapping):
        return {key: plain(value) for key, value in options.items()}
    if isinstance(options, list | tuple):
        return [plain(value) for value in options]
    return str(options) if isinstance(options, Path) else options


def absolute_paths(cls: type, values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return ``values`` with every relative path of a ``Path`` field made absolute below ``base``.

    Done once where the command is typed, so that ranks on other nodes with another working directory
    read the same files.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    return {k: _absolute(hints.get(k, Any), v, base) for k, v in values.items()}


def _absolute(hint: Any, value: Any, base: Path) -> Any:
    hint = _strip(hint)[0]
    if value is None or value == _MISSING_PATH:
        return value
    if get_origin(hint) in (typing.Union, types.UnionType):
        arms = get_args(hint)
        if any(value in get_args(a) for a in arms if get_origin(a) is Literal):
            return value  # a word such as "auto", not a path
        try:
            section = _section(arms, value)
        except _WrongValueError:  # `build` says so
            return value
        for arm in arms if section is None else (section,):
            value = _absolute(arm, value, base)
        return value
    if hint is Path and isinstance(value, str):
        return str(base / Path(value).expanduser())
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return absolute_paths(typing.cast("type", hint), value, base)
    if get_origin(hint) is dict and isinstance(value, Mapping):
        return {k: _absolute(get_args(hint)[1], v, base) for k, v in value.items()}
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return [_absolute(get_args(hint)[0], v, base) for v in value]
    return value


def _strip(hint: Any) -> tuple[Any, Range | None]:
    if get_origin(hint) is typing.Annotated:
        inner, *extras = get_args(hint)
        return inner, next((e for e in extras if isinstance(e, Range)), None)
    return hint, None


def _build(cls: type, values: Any, where: str, complaints: list[str]) -> Any:
    if not isinstance(values, Mapping):
        complaints.append(f"{where}: must be a section of keys, not {values!r}")
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {f.name: f for f in dataclasses.fields(cls) if f.init}
    complaints.extend(f"{where}.{key}: unknown key; {nearest(str(key), names)}" for key in values if key not in names)
    arguments = {}
    before = len(complaints)
    for name, field in names.items():
        if name not in values:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                complaints.append(f"{where}.{name}: missing; give it a value")
            continue
        try:
            arguments[name] = _convert(hints[name], values[name], f"{where}.{name}", complaints)
        except _WrongValueError as wrong:
            complaints.append(f"{where}.{name}: {wrong}")
    if len(complaints) > before:
        return None
    try:
        return cls(**arguments)
    except ValueError as error:  # a __post_init__ that checks fields against each other
        complaints.append(f"{where}: {error}")
        return None


def _convert(hint: Any, value: Any, where: str, complaints: list[str]) -> Any:
    hint, bounds = _strip(hint)
    origin = get_origin(hint)
    if value == _MISSING_PATH:
        raise _WrongValueError(f"is required; give it on the command line as {where}=…")  # noqa: EM102
    if origin in (typing.Union, types.UnionType):
        return _convert_union(get_args(hint), value, where, complaints, bounds)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type", hint), value, where, complaints)
    if origin is Literal:
        return _convert_literal(get_args(hint), value)
    if origin is tuple:
        return _convert_tuple(get_args(hint), value, where, complaints)
    if origin is dict:
        if value is None:  # the way to write an empty section that the command line may fill
            return {}
        if not isinstance(value, Mapping):
            raise _WrongValueError(f"must be a section of keys, not {value!r}")  # noqa: EM102
        inner = get_args(hint)[1]
        return {str(k): _convert(inner, v, f"{where}.{k}", complaints) for k, v in value.items()}
    result = _convert_scalar(hint, value)
    if bounds is not None and (complaint := bounds.complaint(result)):
        raise _WrongValueError(f"{complaint}, not {value!r}")  # noqa: EM102
    return result


def _convert_union(
    arms: tuple[Any, ...],
    value: Any,
    where: str,
    complaints: list[str],
    bounds: Range | None,
) -> Any:
    if value is None and type(None) in arms:
        return None
    section = _section(arms, value)
    if section is not None:
        return _build(section, value, where, complaints)
    wrongs = []
    for arm in arms:
        if arm is type(None):
            continue
        hint = typing.Annotated[arm, bounds] if bounds is not None and get_origin(arm) is not Literal else arm
        try:
            return _convert(hint, value, where, complaints)
        except _WrongValueError as wrong:
            wrongs.append(str(wrong))
    raise _WrongValueError("; or ".join(wrongs) + ("; or null" if type(None) in arms else ""))


def _section(arms: tuple[Any, ...], value: Any) -> Any:
    """Return the section of a union of sections that a mapping is meant to be; None if that is not the question.

    Sections are told apart by a ``Literal`` field with a single word, such as ``launcher: slurm``.
    """
    sections = [arm for arm in arms if dataclasses.is_dataclass(arm)]
    if not sections or not isinstance(value, Mapping):
        return None
    words: dict[str, list[str]] = {}
    for section in sections:
        hints = typing.get_type_hints(section)
        marks = {k: get_args(h)[0] for k, h in hints.items() if get_origin(h) is Literal and len(get_args(h)) == 1}
        if all(value.get(key, word) == word for key, word in marks.items()):
            return section
        for key, word in marks.items():
            words.setdefault(key, []).append(word)
    wrong = "; ".join(f"{key}: there is no {value[key]!r}; {nearest(str(value[key]), w)}" for key, w in words.items())
    raise _WrongValueError(wrong)


def _convert_literal(valid: tuple[Any, ...], value: Any) -> Any:
    for candidate in valid:
        if value == candidate and isinstance(value, bool) == isinstance(candidate, bool):
            return candidate
    raise _WrongValueError(f"{value!r} is not a valid choice; {nearest(str(value), [str(v) for v in valid])}")  # noqa: EM102


def _convert_tuple(arms: tuple[Any, ...], value: Any, where: str, complaints: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        raise _WrongValueError(f"must be a list, not {value!r}")  # noqa: EM102
    if len(arms) == 2 and arms[1] is Ellipsis:
        arms = (arms[0],) * len(value)
    if len(arms) != len(value):
        raise _WrongValueError(f"must be a list of {len(arms)} values, not {value!r}")  # noqa: EM102
    return tuple(_convert(a, v, f"{where}[{i}]", complaints) for i, (a, v) in enumerate(zip(arms, value, strict=True)))


def _convert_scalar(hint: Any, value: Any) -> Any:
    if hint is Any:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)  # YAML reads a band called 500 as a number
    if hint is Path and isinstance(value, str):
        return Path(value)
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    raise _WrongValueError(f"must be {kinds.get(hint, hint)}, not {value!r}")  # noqa: EM102
