"""Small JSON records that tell when they are damaged: each carries a digest of itself.

What a resume believes without looking further (a stage is complete, a unit is in quarantine, a generation is
committed) is written this way. A flipped bit in such a file is then noticed, and the record counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hpc.errors import CorruptFileError
from hpc.store.atomic import write_bytes, write_json
from hpc.store.plain import parse_json
from hpc.store.reading import content_of, is_refusal
from hpc.watch.fields import record as checked

_SEAL: Final = "digest"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with a digest of its content."""
    return {**record, _SEAL: _digest(record)}


def unsealed(record: object) -> dict[str, Any]:
    """Return the content of a sealed record.

    Raises
    ------
    ValueError
        If it is none, or does not match its digest.
    """
    content = {k: v for k, v in record.items() if k != _SEAL} if isinstance(record, dict) else {}
    if not isinstance(record, dict) or record.get(_SEAL) != _digest(content):
        msg = "it does not match its own digest"
        raise ValueError(msg)
    return content


def write_record(path: Path, record: Mapping[str, Any], check: Callable[[], None] = lambda: None) -> None:
    """Write a sealed record atomically and durably; see `hpc.store.atomic.write_atomically` for ``check``."""
    write_json(path, sealed(record), check)


def read_record(path: Path, shape: type | None = None) -> dict[str, Any] | None:
    """Return what `write_record` wrote, None if there is no such file.

    Parameters
    ----------
    path
        The file.
    shape
        A dataclass of the keys that the caller relies on, see `hpc.watch.fields.record`: another version, or somebody
        who can compute a digest, may have written others.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the file is damaged, or lacks one of these keys.
    OSError
        If it cannot be read now.
    """
    try:
        found = unsealed(parse_json(content_of(path)))
        if shape is not None:
            checked(shape, found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if is_refusal(error):
            raise
        msg = f"{path}: the record is damaged ({error}) and counts as absent"
        raise CorruptFileError(msg) from error
    return found


def write_keyed(path: Path, records: Mapping[str, Mapping[str, Any]], check: Callable[[], None] = lambda: None) -> None:
    """Write records with a digest each, so that a damaged one does not cost the others."""
    lines = (f"{json.dumps(key)}: {json.dumps(sealed({**record, 'key': key}))}" for key, record in records.items())
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode(), check)


def read_keyed(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the sound records of `write_keyed` by key, and what is wrong with the others ("" if nothing is).

    Raises
    ------
    OSError
        If the file cannot be read now.
    """
    try:
        content = parse_json(content_of(path))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        if is_refusal(error):
            raise
        return {}, f"{path}: the records are damaged ({error}) and count as absent"
    sound = {}
    for key, record in content.items() if isinstance(content, dict) else ():
        with suppress(ValueError):
            found = unsealed(record)
            if found.get("key") == key:
                sound[key] = found
    lost = len(content) - len(sound) if isinstance(content, dict) else 1
    return sound, f"{path}: {lost} of its records are damaged and count as absent" if lost else ""


def _digest(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
