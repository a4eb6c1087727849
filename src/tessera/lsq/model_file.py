"""The user's model by name: a function of an importable module or of a Python file. Code never comes from data."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hpc.code import package_of
from tessera.lsq.errors import ModelError


def load_function(where: str | Path) -> Callable[..., Any]:
    """Return a function by ``package.module:function`` or ``path/to/file.py:function``.

    Raises
    ------
    ModelError
        If there is no such file, module or function (the message lists the functions there are), or importing it fails.
    """
    text = str(where)
    place, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        msg = f"model {text!r} names no function; write package.module:function or path/to/file.py:function"
        raise ModelError(msg)
    # A path has been made absolute where the command was typed; a module's name has no folder.
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(Path(place).name)
    function = getattr(module, name, None)
    if not callable(function):
        there = sorted(
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        )
        msg = f"{place} has no function {name!r}; it has: {', '.join(there) or 'none'}"
        raise ModelError(msg)
    found: Callable[..., Any] = function
    return found


def code_of_function(where: str | Path) -> list[Path]:
    """Return where the code of a function named as for `load_function` lies: its file, or the folder of its package."""
    place = str(where).rpartition(":")[0]
    return [Path(place)] if place.endswith(".py") else package_of(Path(place).name)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        msg = f"model file {path} does not exist; {path.parent} has: {', '.join(near) or 'no Python files'}"
        raise ModelError(msg)
    name = f"tessera_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"model file {path} cannot be imported; is it a Python file?"
        raise ModelError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own file raises
        del sys.modules[name]
        msg = f"model file {path} fails when imported: {type(error).__name__}: {error}"
        raise ModelError(msg) from error
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = (
            f"module {name} cannot be imported ({error}); install it, set PYTHONPATH, or give path/to/file.py:function"
        )
        raise ModelError(msg) from error
