"""A result as plain values and named arrays, for JSON, HDF5 and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.result import HISTORY, Result


def parameters_record(result: Result) -> dict[str, Any]:
    """Return what ``parameters.json`` holds: values and errors by name, and how the fit ended.

    Numbers that JSON cannot hold (an error of a parameter that the data do not determine) are null.
    """
    return {
        "status": result.status.name,
        "success": result.success,
        "message": result.message,
        "parameters": {
            name: {"value": plain(value), "error": plain(error)}
            for name, value, error in zip(result.names, result.x, result.errors, strict=True)
        },
        "cost": plain(result.cost),
        "chi2": plain(result.chi2),
        "reduced_chi2": plain(result.reduced),
        "points": result.count,
        "points_left_out": result.rejected,
        "iterations": result.iterations,
        "passes": result.evaluations,
        "telemetry": plain_tree(result.telemetry),
    }


def complaint(path: Path) -> str | None:
    """Return why the fit of a ``parameters.json`` did not succeed; None if it did."""
    record = json.loads(path.read_text())
    return None if record["success"] else f"the fit did not converge ({record['status']}): {record['message']}"


def result_arrays(result: Result, extra: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what ``fit.h5`` holds: names, x, errors, covariance, correlation, history by column, and the extras."""
    return {
        "names": np.array(result.names),
        "x": result.x,
        "errors": result.errors,
        "covariance": result.covariance,
        "correlation": result.correlation,
        **{f"history/{name}": result.history[:, k] for k, name in enumerate(HISTORY)},
        **extra,
    }


def write_fit(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str]) -> None:
    """Write ``fit.h5``: arrays in their shapes (a slash in a name is a group), texts as attributes of the file."""
    import h5py

    from hpc import new_hdf5

    with new_hdf5(path) as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            text = array.dtype.kind == "U"
            file[name] = array.astype(h5py.string_dtype()) if text else array


def read_fit(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file of `write_fit`.

    Raises
    ------
    OSError
        If there is no such file, or it is damaged.
    """
    import h5py

    from hpc import existing_hdf5

    found: dict[str, NDArray[Any]] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()])

    with existing_hdf5(path) as file:
        file.visititems(note)
    return found


def summary_record(result: Result) -> dict[str, Any]:
    """Return the scalars for a sweep's table: each parameter and its error, and how well it fits."""
    values = {name: plain(value) for name, value in zip(result.names, result.x, strict=True)}
    errors = {f"{name}_error": plain(error) for name, error in zip(result.names, result.errors, strict=True)}
    fit = {"status": result.status.name, "reduced_chi2": plain(result.reduced), "passes": result.evaluations}
    return {**fit, **values, **errors}


def plain(value: Any) -> float | None:
    """Return a number as JSON can hold it; None if it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


def plain_tree(value: Any) -> Any:
    """Return nested telemetry with every number as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(k): plain_tree(v) for k, v in value.items()}
    if isinstance(value, float | np.floating):
        return plain(value)
    return value
