"""Generations: snapshots of a loop's state, each valid only once its commit record is durable.

``gen-NNNNNNNN.h5`` holds the state and ``gen-NNNNNNNN.json``, written after it is durable, its size and
SHA-256. A reader trusts committed generations only, verifies them, and falls back to the one before,
saying which it passed over and why. Older ones are deleted only after a newer one is durable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from hpc.errors import CorruptFileError
from hpc.job import Arrays
from hpc.store.atomic import read_hdf5, sha256, write_hdf5, write_json
from hpc.store.faults import reached

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Restored:
    """The newest generation that can be trusted.

    Attributes
    ----------
    number
        Of the generation; 0 if there is none.
    state
        The arrays, None if there is no usable generation.
    fallbacks
        Why newer generations were passed over, one sentence each.
    """

    number: int = 0
    state: dict[str, NDArray[Any]] | None = None
    fallbacks: list[str] = field(default_factory=list)


def save_generation(directory: Path, number: int, state: Arrays, facts: Mapping[str, object], keep: int) -> None:
    """Write generation ``number``, commit it, and delete all but the newest ``keep``.

    Raises
    ------
    OSError
        As raised by the file system; earlier generations are then untouched.
    """
    data = directory / f"gen-{number:08d}.h5"
    write_hdf5(data, state, {"schema": SCHEMA, "kind": "generation", "number": number})
    record = {
        **facts,
        "schema": SCHEMA,
        "number": number,
        "file": data.name,
        "size": data.stat().st_size,
        "sha256": sha256(data),
    }
    reached("before-commit")
    write_json(data.with_suffix(".json"), record)
    reached("before-retention")
    for old in sorted(directory.glob("gen-*.json"))[:-keep]:
        old.unlink(missing_ok=True)  # the record first: what has no record is not trusted
        old.with_suffix(".h5").unlink(missing_ok=True)


def load_newest(directory: Path) -> Restored:
    """Return the newest generation that verifies."""
    fallbacks: list[str] = []
    for record_path in sorted(directory.glob("gen-*.json"), reverse=True):
        try:
            number, state = load_generation(record_path)
        except CorruptFileError as error:
            fallbacks.append(str(error))
            continue
        return Restored(number, state, fallbacks)
    return Restored(fallbacks=fallbacks)


def load_generation(record_path: Path) -> tuple[int, dict[str, NDArray[Any]]]:
    """Return number and state of one committed generation.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the record or its file is missing or damaged, or of another schema.
    """
    try:
        record = json.loads(record_path.read_bytes())
        data = directory_file(record_path.parent, str(record["file"]))
        schema, size, digest, number = (
            record["schema"],
            record["size"],
            record["sha256"],
            int(record["number"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{record_path}: the commit record cannot be read ({error})"
        raise CorruptFileError(msg) from error
    if schema != SCHEMA:
        msg = f"{record_path}: schema {schema} instead of {SCHEMA}; written by another version of tessera"
        raise CorruptFileError(msg)
    try:
        actual = data.stat().st_size
        intact = actual == size and sha256(data) == digest
    except OSError as error:
        msg = f"{data}: {error.strerror}"
        raise CorruptFileError(msg) from error
    if not intact:
        msg = f"{data}: does not match its commit record ({actual} bytes, {size} recorded, or another SHA-256)"
        raise CorruptFileError(msg)
    state, _ = read_hdf5(data)
    return number, state


def directory_file(directory: Path, name: str) -> Path:
    """Return ``directory / name`` for a plain file name; a record must not point elsewhere."""
    if Path(name).name != name:
        msg = f"{name!r} is not a plain file name"
        raise ValueError(msg)
    return directory / name
