"""``SWEEP_DIR/sweep.json``: which runs a sweep consists of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hpc.errors import RunDirError

FILE: Final = "sweep.json"


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One run of a sweep.

    Attributes
    ----------
    run
        Its folder in the sweep's directory.
    label
        The words in which it differs from the others.
    overrides
        All words that made it.
    """

    run: str
    label: str
    overrides: tuple[str, ...]


def write_sweep(directory: Path, members: Sequence[MemberRecord]) -> None:
    """Write ``sweep.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"schema": 1, "members": [asdict(member) for member in members]}
    (directory / FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def is_sweep(directory: Path) -> bool:
    """Say whether a directory is that of a sweep."""
    return (directory / FILE).is_file()


def read_sweep(directory: Path) -> list[MemberRecord]:
    """Return the members of a sweep.

    Raises
    ------
    hpc.errors.RunDirError
        If its record is damaged.
    """
    try:
        members = json.loads((directory / FILE).read_bytes())["members"]
        return [MemberRecord(m["run"], m["label"], tuple(m["overrides"])) for m in members]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{directory / FILE}: cannot be read ({error!r}); resume the runs of the sweep one by one"
        raise RunDirError(msg) from error
