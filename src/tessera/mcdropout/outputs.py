"""What the scientist came for: the original's NPZ and JSON files, and everything in one HDF5 file."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout.experiments.design import ArmTable, Study
from tessera.mcdropout.reliability import go_no_go, reliability

Arrays = Mapping[str, NDArray[Any]]

TABLES: Final = "mcdropout.h5"
FEATURES: Final = "features.h5"


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write a compressed NPZ file that `numpy.load` reads; equal arrays make equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # numpy would put the time of day here
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON that every reader takes: numbers that are not finite become null."""
    path.write_text(json.dumps(_plain(record), indent=2, allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(study: Study) -> dict[str, Any]:
    """Return the flat numbers by which runs of a sweep are compared: of every arm's trace_pre, at its last T."""
    found: dict[str, Any] = {}
    statuses = []
    for key, table in study.tables.items():
        measured = reliability(table.trials("trace_pre"))
        statuses += [measured.status, reliability(table.trials("trace_post")).status]
        found[f"{key}.status"] = measured.status
        found[f"{key}.spearman"] = measured.pairwise_spearman_median
        found[f"{key}.snr"] = measured.snr
        found[f"{key}.icc"] = measured.icc
        found[f"{key}.trace_mean"] = float(table.trials("trace_pre").mean())
    return {"decision": go_no_go(statuses), **found} if statuses else {"decision": "no-go"}


def write_hdf5(path: Path, study: Study, attributes: Mapping[str, Any], groups: Iterable[tuple[str, Arrays]]) -> None:
    """Write all tables of a study to one HDF5 file.

    Parameters
    ----------
    path
        New file.
    study
        Its tables go to ``arms/KEY``: attributes ``model``, ``perturbation``, ``seeds``, ``passes`` (JSON), datasets
        ``images`` (N,), ``sites``, ``reference`` (N, D), and ``T0064/NAME`` (K, N) for each T and column.
    attributes
        Of the root, stored as JSON.
    groups
        Further ``(group name, arrays)``.
    """
    from hpc import new_hdf5

    with new_hdf5(path) as file:
        for name, value in attributes.items():
            file.attrs[name] = json.dumps(_plain(value), allow_nan=False)
        file["paths"] = np.array([p.encode() for p in study.paths] or [b""])
        for key, table in study.tables.items():
            _write_table(file.create_group(f"arms/{key}"), table, study)
        for name, arrays in groups:
            group = file.create_group(name)
            for column, array in arrays.items():
                _dataset(group, column, np.asarray(array))


def _write_table(group: Any, table: ArmTable, study: Study) -> None:
    arm = table.arm
    group.attrs["model"] = arm.model
    group.attrs["perturbation"] = json.dumps({"by": type(arm.perturbation).__name__, **asdict(arm.perturbation)})
    group.attrs["seeds"] = json.dumps(arm.seeds)
    group.attrs["passes"] = json.dumps(arm.passes)
    _dataset(group, "images", table.images)
    _dataset(group, "sites", np.array(list(study.sites.get(arm.key, ())) or [""]))
    _dataset(group, "reference", table.reference)
    for (name, passes), values in table.columns.items():
        _dataset(group, f"T{passes:04d}/{name}", values)


def _dataset(group: Any, name: str, data: NDArray[Any]) -> None:
    if data.dtype.kind == "U":
        data = np.char.encode(data, "utf-8")
    compress = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if data.ndim > 1 and data.size else {}
    group.create_dataset(name, data=data, fletcher32=data.ndim > 0 and data.size > 0, **compress)
