"""The part of a run's report page that any fit has: parameters, convergence, correlation, where it misfits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpc.report.view import Figure, RunView, Section, Table
from tessera.lsq import plots
from tessera.lsq.output import read_fit
from tessera.lsq.result import HISTORY

_STRONG: Final = 0.95
"""Correlation from which a pair of parameters is named."""
_WORST: Final = 10
_DIGITS: Final = 9
"""After the point, up to which a value is written without exponent."""


def sections(run: RunView) -> list[Section]:
    """Return the sections of the lsq job, from the files under ``results``.

    Parameters
    ----------
    run
        The run, finished or not.
    """
    results = run.results_dir
    record, arrays = read_record(results / "parameters.json"), read_arrays(results / "fit.h5")
    if record is None or arrays is None:
        text = "The fit has not ended; these pictures come with its result. tessera report draws them anew."
        return [Section("Fit", text)]
    parts = [parameter_section(record), convergence_section(arrays), correlation_section(arrays)]
    if "chunk_chi2" in arrays:
        parts.append(_chunk_section(arrays))
    timing = results / "profile" / "timing.json"
    return [*parts, *([_timing_section(json.loads(timing.read_bytes()))] if timing.is_file() else [])]


def read_record(file: Path) -> Mapping[str, Any] | None:
    """Return what ``parameters.json`` holds; None if it is not there or damaged."""
    try:
        record: Mapping[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return record


def read_arrays(file: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of ``fit.h5``; None if it is not there or damaged."""
    try:
        return read_fit(file)
    except OSError:
        return None


def parameter_section(record: Mapping[str, Any]) -> Section:
    """Return the table of parameters and how the fit ended."""
    rows = [
        (name, digits(p["value"], p["error"]), p["error"], abs(p["error"] / p["value"]) if _both(p) else None)
        for name, p in record["parameters"].items()
    ]
    how = f"{record['message'][:1].upper()}{record['message'][1:]}."
    reduced = "" if record["reduced_chi2"] is None else f", χ² per degree of freedom {record['reduced_chi2']:.4g}"
    left = f", {record['points_left_out']} left out" if record["points_left_out"] else ""
    text = f"{how} {record['points']} points{left}; {record['passes']} passes over the data{reduced}."
    return Section("Parameters", text, [Table(("parameter", "value", "error", "relative"), rows)])


def digits(value: float | None, error: float | None) -> str | None:
    """Return a value with as many digits as its error gives a meaning, to two places of the error."""
    if value is None or not error:
        return None if value is None else f"{value:.10g}"
    places = 1 - math.floor(math.log10(error))
    if 0 <= places <= _DIGITS and abs(value) < 10**_DIGITS:
        return f"{value:.{places}f}"
    return f"{value:.{max(1, places + math.floor(math.log10(abs(value) or 1)))}e}"


def _both(parameter: Mapping[str, Any]) -> bool:
    return bool(parameter["value"] and parameter["error"])


def convergence_section(arrays: Mapping[str, NDArray[Any]]) -> Section:
    """Return how the Gauss-Newton phase converged."""
    history = np.stack([np.asarray(arrays[f"history/{name}"], float) for name in HISTORY], axis=1)
    caption = (
        "Cost above the lowest, distance to the minimum in standard errors, and trust radius with the length of the "
        "step, pass by pass. A good fit ends in a steep fall of the distance; a long flat stretch means a bad start or "
        "parameters that the data hardly tell apart."
    )
    figures = [Figure(plots.convergence(history), caption)] if len(history) else []
    return Section("Convergence", f"{len(history)} passes of the Gauss-Newton phase.", figures=figures)


def correlation_section(arrays: Mapping[str, NDArray[Any]]) -> Section:
    """Return the correlation matrix, and the pairs that are nearly one."""
    names = [str(n) for n in arrays["names"]]
    matrix = np.asarray(arrays["correlation"], float)
    pairs = [
        (names[i], names[j], float(matrix[i, j]))
        for i in range(len(names))
        for j in range(i)
        if abs(matrix[i, j]) > _STRONG
    ]
    worst = sorted(pairs, key=lambda pair: -abs(pair[2]))[:_WORST]
    text = (
        "Pairs near ±1 are determined in combination only; their single errors are large for that reason."
        if pairs
        else f"No pair of parameters is correlated by more than {_STRONG}."
    )
    tables = [Table(("parameter", "and", "correlation"), worst)] if worst else []
    figure = Figure(plots.correlations(names, matrix), "Correlation of the parameters' errors.")
    return Section("Correlation", text, tables, [figure])


def _chunk_section(arrays: Mapping[str, NDArray[Any]]) -> Section:
    chi2, count = np.asarray(arrays["chunk_chi2"], float), np.asarray(arrays["chunk_count"], float)
    used = np.flatnonzero(count > 0)
    mean = chi2[used] / count[used]
    order = used[np.argsort(-mean, kind="stable")][:_WORST]
    rows = [(int(i), int(count[i]), float(chi2[i] / count[i])) for i in order]
    caption = f"The {len(rows)} chunks (of {len(chi2)}) with the largest χ² per point; the mean is {mean.mean():.4g}."
    text = "Chunks that fit much worse than the others hold outliers, or data that the model does not describe."
    return Section("Chunks", text, [Table(("chunk", "points", "χ² per point"), rows, caption)])


def _timing_section(tree: Mapping[str, Any]) -> Section:
    rows: list[Sequence[object]] = []

    def add(node: Mapping[str, Any], depth: int) -> None:
        rows.append(("\u2003" * depth + node["name"], node["calls"], node["seconds"], node["self"], node["cpu"]))
        for part in node["parts"]:
            add(part, depth + 1)

    add(tree, 0)
    text = "Where the time of rank 0 went in the last attempt; checkpoints are written beside the computation."
    return Section("Profile", text, [Table(("phase", "calls", "s", "s itself", "CPU s"), rows)])
