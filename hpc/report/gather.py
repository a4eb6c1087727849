"""The runs of a sweep in one table: ``SWEEP_DIR/sweep.csv`` for people, ``sweep.h5`` for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpc.store.atomic import write_bytes, write_hdf5
from hpc.store.plain import read_json
from hpc.watch.queued import read_statuses
from hpc.watch.status import RunStatus
from hpc.watch.sweeps import MemberRecord, read_sweep

SUMMARY: Final = Path("results") / "summary.json"
"""Numbers and words that a job may leave for this table: a flat JSON object."""

_FIRST: Final = ("run", "state", "seconds", "units", "quarantined")


def gather(directory: Path) -> tuple[Path, Path]:
    """Write one row per run: its words, state, seconds of computing, and the scalars of its summary.

    Parameters
    ----------
    directory
        Of the sweep.

    Returns
    -------
    tuple of Path
        The CSV and the HDF5 file; the latter holds one dataset per column.

    Raises
    ------
    hpc.errors.RunDirError
        If this is no sweep.
    """
    members = read_sweep(directory)
    statuses = read_statuses([directory / member.run for member in members])
    rows = [_row(directory, m, status) for m, status in zip(members, statuses, strict=True)]
    names = list(dict.fromkeys([*_FIRST, *(name for row in rows for name in row)]))
    table = directory / "sweep.csv"
    write_bytes(table, _csv(names, rows).encode())
    columns = {_dataset_name(name): _column([row.get(name) for row in rows]) for name in names}
    write_hdf5(directory / "sweep.h5", columns, {"columns": names, "source": str(directory)})
    return table, directory / "sweep.h5"


def _row(directory: Path, member: MemberRecord, status: RunStatus) -> dict[str, Any]:
    words = (word.partition("=") for word in member.overrides)
    return {
        "run": member.run,
        "state": status.state,
        "seconds": round(sum(stage.seconds for stage in status.stages), 3),
        "units": sum(stage.done for stage in status.stages),
        "quarantined": status.quarantined,
        **{key.lstrip("+"): value for key, _, value in words if key.lstrip("+") not in {"job", "cluster"}},
        **{f"result.{key}": value for key, value in _summary(directory / member.run / SUMMARY).items()},
    }


def _summary(file: Path) -> Mapping[str, Any]:
    """Return the scalars of a run's summary; nothing if there is none yet."""
    try:
        values = read_json(file)
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: _text(value) for key, value in values.items() if isinstance(value, int | float | str)}


def _text(value: Any) -> Any:
    """Return a value that can be written as UTF-8: JSON may hold half of a surrogate pair, and NUL ends HDF5's text."""
    return value.encode("utf-8", "replace").decode().replace("\0", "") if isinstance(value, str) else value


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _dataset_name(name: str) -> str:
    """Return the name of a column's dataset: a slash would make a group."""
    return name.replace("/", "_")


def _column(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return a column as numbers if all its values are, NaN where one is missing; else as text."""
    numbers = [_number(value) for value in values]
    if any(number is None for number in numbers):
        return np.array(["" if value is None else str(value) for value in values])
    return np.array(numbers, dtype=np.float64)


def _number(value: Any) -> float | None:
    if value is None:
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
