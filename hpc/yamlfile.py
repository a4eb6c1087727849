"""YAML from files that anybody may have written: read within bounds, so that a small file cannot fill the memory.

An alias (``*name``) stands for a whole section, and sections of aliases multiply: a file of 400 bytes can stand for
gigabytes. A section within a section within … exhausts the interpreter's stack. Both are refused by a first pass over
the file's events, which costs no memory, before anything is built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from hpc.errors import InputError
from hpc.store.plain import read_plain

_DEEPEST: Final = 50
"""Sections within sections; a configuration has about five."""

_ROOM: Final = 1_000_000
"""Characters for which a file's aliases may stand beyond what is written out in it."""

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C reads a configuration ten times faster."""

_HALF_A_PAIR: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""How a path that is no UTF-8 is written; the loader in C refuses it."""


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises
    ------
    hpc.errors.InputError
        Saying in one line where the file is no YAML, or too large when its aliases are written out.
    OSError
        If it cannot be read, or is no plain file.
    """
    return parse_yaml(read_plain(path))


def require_bounded(path: Path) -> None:
    """Raise as `read_yaml` does for a file that another reader is about to load."""
    text = read_plain(path)
    try:
        _refuse_excess(text, _LOADER)
    except yaml.YAMLError as error:
        raise InputError(_told(error)) from error


def parse_yaml(text: str | bytes) -> Any:
    """Return the value of a YAML text.

    Raises
    ------
    hpc.errors.InputError
        Saying in one line where the text is no YAML, or too large when its aliases are written out.
    """
    written = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    loader = yaml.SafeLoader if _HALF_A_PAIR.search(written) else _LOADER
    try:
        _refuse_excess(text, loader)
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise InputError(_told(error)) from error
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError, AttributeError, TypeError, KeyError) as error:
        # PyYAML lets through what int(), a date or a merged section make of a value.
        msg = f"a value is none that YAML knows ({error})"
        raise InputError(msg) from error


def _refuse_excess(text: str | bytes, loader: Any) -> None:
    """Raise if the text is nested too deep, or too large with its aliases written out."""
    limit = _ROOM + len(text)
    total = 0
    sizes: dict[str, int] = {}
    open_sections: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                msg = f"*{event.anchor} in line {_line(event)} stands for nothing before it, or for itself"
                raise InputError(msg)
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
            total += size
            if event.anchor:
                sizes[event.anchor] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.anchor:
                sizes.pop(event.anchor, None)
            open_sections.append((event.anchor, total))
            total += 1
            if len(open_sections) > _DEEPEST:
                msg = f"line {_line(event)} lies more than {_DEEPEST} sections deep"
                raise InputError(msg)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_sections.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > limit:
            msg = f"its aliases (*name) stand for more than {_ROOM} characters; write out what is meant"
            raise InputError(msg)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


def _told(error: yaml.YAMLError) -> str:
    """Return what is wrong, and where, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} at byte {error.position}"
    said = [getattr(error, "context", None), getattr(error, "problem", None)]
    words = " ".join((", ".join(filter(None, said)) or str(error)).split())
    mark = getattr(error, "problem_mark", None)
    return f"{words} in line {mark.line + 1}" if mark is not None else words
