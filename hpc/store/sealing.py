"""Results under seal: what a complete stage wrote below ``results/``, by size and SHA-256.

The seals stand in the stage's ``complete.json``. `tessera verify` and every resume compare them with what is there:
a file that went missing, was emptied or changed is made again from the stage's segments or its last state.
A stage owns the files that no stage before it owns; one that a later stage writes again belongs to the later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from hpc.errors import CorruptFileError
from hpc.store.newfile import is_temporary
from hpc.store.plain import require_regular
from hpc.store.reading import is_refusal, names_in
from hpc.store.records import read_record

COMPLETE: Final = "complete.json"
"""In a stage's folder: that the stage is complete, and the seals of its results."""

Seals = Mapping[str, Mapping[str, Any]]
"""Size, time of last change and SHA-256 of files, by their path below ``results/``."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What is relied on of a seal; ``changed`` counts nanoseconds."""

    size: int
    sha256: str
    changed: Any


@dataclass(frozen=True, slots=True)
class Complete:
    """What is relied on of ``complete.json``; earlier versions wrote less."""

    units: int = 0
    index: int = 0
    config_hash: str = ""
    results: Mapping[str, Seal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.results:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                msg = f"{name!r} does not lie below results/"
                raise ValueError(msg)


def read_complete(folder: Path) -> dict[str, Any] | None:
    """Return a stage's ``complete.json``, None if there is none; raises as `hpc.store.records.read_record` does."""
    return read_record(folder / COMPLETE, Complete)


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file under seal, and the stage whose seal counts."""

    stage: str
    name: str
    seal: Mapping[str, Any]


def seal_results(results: Path, earlier: Iterable[Seals]) -> dict[str, dict[str, Any]]:
    """Return the seals of all files below ``results`` but those that earlier stages wrote and nobody has since.

    Raises
    ------
    OSError
        If a file cannot be read now.
    """
    known = {(name, seal["size"], seal["changed"]) for seals in earlier for name, seal in seals.items()}
    sealed = {}
    for name in _files_below(results):
        found = (results / name).stat()
        if (name, found.st_size, found.st_mtime_ns) not in known:
            size, digest = _digest(results / name)
            sealed[name] = {"size": size, "changed": found.st_mtime_ns, "sha256": digest}
    return sealed


def read_seals(folder: Path) -> Seals:
    """Return the seals in a stage's ``complete.json``; none if it is absent, damaged, or of a version without them.

    Raises
    ------
    OSError
        If it cannot be read now.
    """
    try:
        record = read_complete(folder)
    except CorruptFileError:
        return {}
    found: Seals = (record or {}).get("results", {})
    return found


def in_force(seals: Mapping[str, Seals]) -> list[SealedFile]:
    """Return every file with the seal of the last stage that wrote it; the stages are in their order."""
    last = {name: SealedFile(stage, name, seal) for stage, files in seals.items() for name, seal in files.items()}
    return [last[name] for name in sorted(last)]


def sealed_files(folders: Iterable[Path]) -> list[SealedFile]:
    """Return the files in force of some stages' folders, whose records give the order; damaged ones are left out."""
    records: dict[str, dict[str, Any]] = {}
    for folder in folders:
        with suppress(OSError, CorruptFileError):
            records[folder.name] = read_complete(folder) or {}
    order = sorted(records, key=lambda name: records[name].get("index", 0))
    return in_force({name: records[name].get("results", {}) for name in order})


def harms(run: Path) -> dict[str, str]:
    """Return what is wrong with the results of a run, by their path below ``results/``; nothing if all are as sealed.

    Raises
    ------
    OSError
        If a result cannot be read now.
    """
    checkpoints = run / "checkpoints"
    files = sealed_files(checkpoints / name for name in names_in(checkpoints))
    return {file.name: wrong for file in files if (wrong := harm(run / "results", file))}


def harm(results: Path, file: SealedFile) -> str:
    """Return what is wrong with a file, "" if it is as it was sealed.

    Raises
    ------
    OSError
        If it cannot be read now.
    """
    path, size = results / file.name, int(file.seal["size"])
    try:
        require_regular(path)
        found = path.stat().st_size
        if found != size:
            return f"holds {found} bytes instead of {size}" if found else "is empty"
        return "" if _digest(path)[1] == file.seal["sha256"] else "has been changed"
    except OSError as error:
        if is_refusal(error):
            raise
        return "is missing"


def to_finish_again(seals: Mapping[str, Seals], harmed: Iterable[str]) -> list[str]:
    """Return the stages that have to write their results again so that all harmed files come back.

    A stage that wrote a harmed file writes all its files again; later stages that wrote one of those follow.
    """
    wanted, again = set(harmed), []
    for stage, files in seals.items():
        if wanted & files.keys():
            again.append(stage)
            wanted |= files.keys()
    return again


def share(files: Sequence[SealedFile], rank: int, size: int) -> Sequence[SealedFile]:
    """Return the files that a rank looks at."""
    return files[rank::size]


def _files_below(folder: Path) -> Iterator[str]:
    for path, _, names in os.walk(folder, onerror=_raise):
        for name in sorted(names):
            if not is_temporary(name) and (Path(path) / name).is_file():
                yield (Path(path) / name).relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    if is_refusal(error):
        raise error


def _digest(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file, read in pieces."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
