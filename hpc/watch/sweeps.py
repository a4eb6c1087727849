"""``SWEEP_DIR/sweep.json``: which runs a sweep consists of."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hpc.errors import RunDirError
from hpc.store.atomic import write_bytes
from hpc.store.plain import read_json
from hpc.watch.fields import record

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

    def __post_init__(self) -> None:
        if self.run in {"", ".", ".."} or "/" in self.run or "\0" in self.run:
            msg = f"the run {self.run!r} is no folder of the sweep"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class _Sweep:
    """What is read of the file."""

    members: tuple[MemberRecord, ...]


def write_sweep(directory: Path, members: Sequence[MemberRecord]) -> None:
    """Write ``sweep.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, "members": [asdict(member) for member in members]}
    write_bytes(directory / FILE, json.dumps(content, indent=1).encode(), mode=0o644)  # see `hpc.ownership`


def is_sweep(directory: Path) -> bool:
    """Say whether a directory is that of a sweep."""
    return os.path.isfile(directory / FILE)  # noqa: PTH113 - the method raises for a name that is too long


def read_sweep(directory: Path) -> list[MemberRecord]:
    """Return the members of a sweep.

    Raises
    ------
    hpc.errors.RunDirError
        If its record is damaged.
    """
    try:
        return list(record(_Sweep, read_json(directory / FILE)).members)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        msg = f"{directory / FILE}: cannot be used ({cause}); resume the runs of the sweep one by one"
        raise RunDirError(msg) from error
