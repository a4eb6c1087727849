"""Generations: snapshots of a loop's state, each valid only once its commit record is durable.

``gen-NNNNNNNN.h5`` holds the state and ``gen-NNNNNNNN.json``, written after it is durable, its size and
SHA-256. A reader trusts committed generations only, verifies them, and falls back to the one before,
saying which it passed over and why. Older ones are deleted only after a newer one is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from hpc.errors import CorruptFileError
from hpc.job import Arrays
from hpc.store.atomic import read_hdf5, sha256, write_hdf5
from hpc.store.faults import reached
from hpc.store.plain import parse_json
from hpc.store.reading import content_of, is_refusal, names_in
from hpc.store.records import read_record, unsealed, write_record

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
    damaged
        Their commit records.
    config_hash
        Of the configuration it was computed with; "" if it does not say.
    """

    number: int = 0
    state: dict[str, NDArray[Any]] | None = None
    fallbacks: list[str] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    config_hash: str = ""


def save_generation(
    directory: Path,
    number: int,
    state: Arrays,
    facts: Mapping[str, object],
    keep: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write generation ``number``, commit it, and delete all but the newest ``keep``; ``check`` may prevent each step.

    Raises
    ------
    OSError
        As raised by the file system; earlier generations are then untouched.
    """
    data = directory / f"gen-{number:08d}.h5"
    write_hdf5(data, state, {"schema": SCHEMA, "kind": "generation", "number": number}, check)
    record = {
        **facts,
        "schema": SCHEMA,
        "number": number,
        "file": data.name,
        "size": data.stat().st_size,
        "sha256": sha256(data),
    }
    reached("before-commit", data)
    write_record(data.with_suffix(".json"), record, check)
    reached("before-retention", data)
    check()
    for name in names_in(directory, "gen-*.json")[:-keep]:
        old = directory / name
        old.unlink(missing_ok=True)  # the record first: what has no record is not trusted
        reached("half-retired", old)
        old.with_suffix(".h5").unlink(missing_ok=True)


def load_newest(directory: Path) -> Restored:
    """Return the newest generation that verifies.

    Raises
    ------
    OSError
        If one cannot be read now: an older one must not take its place for that.
    """
    fallbacks: list[str] = []
    damaged: list[Path] = []
    for name in reversed(names_in(directory, "gen-*.json")):
        record_path = directory / name
        try:
            number, state = load_generation(record_path)
        except CorruptFileError as error:
            fallbacks.append(str(error))
            damaged.append(record_path)
            continue
        origin = str((read_record(record_path) or {}).get("config_hash", ""))
        return Restored(number, state, fallbacks, damaged, origin)
    return Restored(fallbacks=fallbacks, damaged=damaged)


def clear_away(directory: Path, found: Restored) -> None:
    """Set damaged generations aside and delete uncommitted ones; only the holder of the run's lock may call this.

    Left in place, a damaged generation would count as one of those that retention keeps.
    """
    for record in found.damaged:
        for path in (record, record.with_suffix(".h5")):
            with suppress(FileNotFoundError):
                path.rename(path.with_name(f"damaged-{path.name}"))
    committed = set(names_in(directory, "gen-*.json"))
    for name in names_in(directory, "gen-*.h5"):
        if name.removesuffix(".h5") + ".json" not in committed:
            (directory / name).unlink()


def load_generation(record_path: Path) -> tuple[int, dict[str, NDArray[Any]]]:
    """Return number and state of one committed generation.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the record or its file is missing or damaged, or of another schema.
    OSError
        If one of them cannot be read now.
    """
    try:
        record = unsealed(parse_json(content_of(record_path)))
        data = directory_file(record_path.parent, str(record["file"]))
        schema, size, digest, number = (
            record["schema"],
            record["size"],
            record["sha256"],
            int(record["number"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_refusal(error):
            raise
        msg = f"{record_path}: the commit record cannot be read ({error})"
        raise CorruptFileError(msg) from error
    if schema != SCHEMA:
        msg = f"{record_path}: schema {schema} instead of {SCHEMA}; written by another version of tessera"
        raise CorruptFileError(msg)
    try:
        reached("read", data)
        actual = data.stat().st_size
        intact = actual == size and sha256(data) == digest
    except OSError as error:
        if is_refusal(error):
            raise
        msg = f"{data}: {error.strerror}"
        raise CorruptFileError(msg) from error
    if not intact:
        msg = f"{data}: does not match its commit record ({actual} bytes, {size} recorded, or another SHA-256)"
        raise CorruptFileError(msg)
    state, attributes = read_hdf5(data)
    if not number == attributes["number"] == int(record_path.stem.removeprefix("gen-")):
        msg = f"{record_path}: speaks of generation {number}, its file of {attributes['number']}; one was misplaced"
        raise CorruptFileError(msg)
    return number, state


def directory_file(directory: Path, name: str) -> Path:
    """Return ``directory / name`` for a plain file name; a record must not point elsewhere."""
    if Path(name).name != name:
        msg = f"{name!r} is not a plain file name"
        raise ValueError(msg)
    return directory / name
