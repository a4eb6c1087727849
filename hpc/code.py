"""Which code makes a run's results: a digest of every source file, and for people the commit.

Read are all Python and compiled files of the engine and of the job's package, however they were installed, and the
Python files that the job runs for its user, with what these import from their own folder or from ``PYTHONPATH``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import hpc

_SOURCES: Final = (".py", ".so")
_FOREIGN: Final = ("site-packages", "dist-packages")
"""Folders of installed packages, whose versions the provenance lists."""


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a run.

    Attributes
    ----------
    version
        Of the engine.
    commit
        Of the checkout of the job's package, else of the engine's; empty where there is none.
    changed
        Whether source files differ from that commit or are not part of it.
    files
        Digest by name, ``hpc/run.py``.
    """

    version: str
    commit: str
    changed: bool
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One SHA-256 of all."""
        text = "".join(f"{name}\0{self.files[name]}\n" for name in sorted(self.files))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def told(self) -> str:
        """Version and commit in words."""
        commit = f", commit {self.commit[:10]}{' + changes' if self.changed else ''}" if self.commit else ""
        return f"{self.version}{commit}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def code_of(target: str, more: Iterable[Path] = (), *, commit: bool = True) -> Code:
    """Read the code of a job.

    Parameters
    ----------
    target
        ``job._target_``: the dotted name of its class.
    more
        Python files and folders of packages that the job runs besides; see `hpc.job.Job.code`.
    commit
        Ask git, which one node of many is enough for.
    """
    roots = [Path(hpc.__file__).parent, *_roots(target.partition(".")[0])]
    files: dict[str, Path] = {}
    for root in dict.fromkeys([*roots, *more]):
        for name, file in _sources(root):
            files[name if files.get(name, file) == file else str(file)] = file
    digests = {name: _digest(file) for name, file in files.items()}
    states = [state for root in reversed(roots) if commit and (state := _commit(root)) is not None]
    name = states[0][0] if states else ""
    return Code(hpc.__version__, name, any(dirty for _, dirty in states), digests)


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a line for each source file that is another now."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            what = "is new" if name not in before else "is gone" if name not in now else "was edited"
            lines.append(f"{name}: {what}")
    return lines


def _roots(name: str) -> Iterator[Path]:
    """Yield the folders of a top-level package, or the file of a module; nothing if it has none."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) or (None if module else importlib.util.find_spec(name))
    if spec is not None and spec.submodule_search_locations is not None:
        yield from map(Path, spec.submodule_search_locations)
    elif spec is not None and spec.has_location and spec.origin:
        yield Path(spec.origin)
    elif module is not None and getattr(module, "__file__", None):
        yield Path(str(module.__file__))


def package_of(name: str) -> list[Path]:
    """Return where the code of a dotted name lies, for `hpc.job.Job.code`; nothing if it is not found."""
    return list(_roots(name.partition(".")[0]))


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the source files at a root by name: those of a package, or a file and what it imports beside it."""
    if root.is_dir():
        for file in sorted(root.rglob("*")):
            if file.suffix in _SOURCES and file.is_file():
                yield str(Path(root.name) / file.relative_to(root)), file
    else:
        yield from _with_imports(root).items()


def _with_imports(first: Path) -> dict[str, Path]:
    """Return a file, and what it and that imports from its folder or from ``PYTHONPATH``, by name."""
    places = [first.parent, *_python_path()]
    found = {first.name: first}
    todo = [first]
    while todo:
        for name in _imports(todo.pop()):
            for place in places:
                package, file = place / name, place / f"{name}.py"
                if (package / "__init__.py").is_file():
                    new = dict(_sources(package))
                elif file.is_file():
                    new = {file.name: file}
                else:
                    continue
                todo += [path for key, path in new.items() if key not in found and path.suffix == ".py"]
                found = {**new, **found}
                break
    return found


def _python_path() -> list[Path]:
    """Return the user's own folders of modules."""
    folders = [Path(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    engine = Path(hpc.__file__).parents[1]
    return [f for f in folders if not set(f.parts) & set(_FOREIGN) and f.resolve() != engine]


def _imports(file: Path) -> set[str]:
    """Return the top-level names that a Python file imports anywhere, but for the engine's."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names - {"hpc"} - sys.stdlib_module_names


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    except OSError as error:
        return f"not readable ({error.strerror})"


def _commit(root: Path) -> tuple[str, bool] | None:
    """Return the commit of a package's checkout and whether its sources differ; None if it is not part of one."""
    folder, what = (root, "__init__.py") if root.is_dir() else (root.parent, root.name)
    try:
        _git(folder, "ls-files", "--error-unmatch", what)  # a package installed below somebody's checkout is not of it
        commit = _git(folder, "rev-parse", "HEAD").decode().strip()
        status = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", "." if root.is_dir() else what)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = status.decode(errors="replace").splitlines()
    return commit, any(line.rstrip('"').endswith(_SOURCES) for line in lines)


def _git(directory: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(directory), *arguments], check=True, capture_output=True, timeout=10).stdout
