#!/usr/bin/env python3
"""Print measured against true fluxes of a simulated field, per band and class of source.

Usage: compare_truth.py RUN/results/catalog.ecsv TRUTH.csv

The truth has columns ID, TYPE, x, y (0-based pixels) and FLUX_<band>, as demo_scene.py writes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from astropy.table import Table, join
from numpy.typing import NDArray
from scipy.spatial import cKDTree

ISOLATED_PIX: Final = 15.0
"""Pixels to the nearest other source from which on a star counts as isolated."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes
    ----------
    band, kind
        What it is about.
    number
        Sources with a flux.
    bias, scatter
        Median, and 1.48 times the median absolute deviation, of ``measured / true - 1``.
    pull_mean, pull_std
        Of ``(measured - true) / quoted error``; 0 and 1 if the errors are right.
    """

    band: str
    kind: str
    number: int
    bias: float
    scatter: float
    pull_mean: float
    pull_std: float


def compare(catalog: Table, truth: Table) -> list[Row]:
    """Compare the measured sources with the truth, matched by their ID."""
    positions = np.stack([truth["x"], truth["y"]], axis=1)
    truth = truth.copy()
    truth["nearest"] = cKDTree(positions).query(positions, k=2)[0][:, 1]
    catalog, truth = (_with_text_ids(table) for table in (catalog, truth))
    both = join(catalog, truth, keys="ID", table_names=("", "true"), uniq_col_name="{col_name}{table_name}")
    star = np.char.upper(np.asarray(truth_column(both, "TYPE"), str)) == "STAR"
    isolated = np.asarray(both["nearest"]) > ISOLATED_PIX
    kinds = {"isolated stars": star & isolated, "blended stars": star & ~isolated, "galaxies": ~star}
    for name in truth.colnames:
        if name.lower().startswith("flux_"):
            truth.rename_column(name, f"FLUX_{name[5:]}")
    bands = [name[5:] for name in truth.colnames if name.startswith("FLUX_")]
    return [_row(both, band, kind, chosen) for band in bands for kind, chosen in kinds.items()]


def _with_text_ids(table: Table) -> Table:
    table = table.copy()
    table["ID"] = np.asarray(table["ID"]).astype(str)
    return table


def truth_column(both: Table, name: str) -> NDArray[np.generic]:
    """Return a column of the truth, which has another name where the catalog has it too."""
    return np.asarray(both[f"{name}true" if f"{name}true" in both.colnames else name])


def _row(both: Table, band: str, kind: str, chosen: NDArray[np.bool_]) -> Row:
    measured, error = (np.asarray(both[f"{name}_{band}_fit"], float) for name in ("FLUX", "FLUXERR"))
    true = truth_column(both, f"FLUX_{band}").astype(float)
    use = chosen & np.isfinite(measured) & np.isfinite(error)
    if not use.any():
        return Row(band, kind, 0, *[float("nan")] * 4)
    relative = measured[use] / true[use] - 1
    pull = (measured[use] - true[use]) / error[use]
    bias = float(np.median(relative))
    scatter = 1.4826 * float(np.median(np.abs(relative - bias)))
    return Row(band, kind, int(use.sum()), bias, scatter, float(pull.mean()), float(pull.std()))


def show(rows: Sequence[Row]) -> str:
    """Return the comparison as text."""
    lines = [f"{'band':<6}{'sources':<16}{'N':>4}{'bias %':>9}{'scatter %':>11}{'pull mean':>11}{'pull std':>10}"]
    lines += [
        f"{r.band:<6}{r.kind:<16}{r.number:>4}{100 * r.bias:>+9.2f}{100 * r.scatter:>11.2f}"
        f"{r.pull_mean:>+11.2f}{r.pull_std:>10.2f}"
        for r in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison of the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("catalog", type=Path, help="the run's results/catalog.ecsv")
    parser.add_argument("truth", type=Path, help="what was drawn")
    given = parser.parse_args(arguments)
    catalog = Table.read(given.catalog, format="ascii.ecsv")
    truth = Table.read(given.truth, format="ascii.csv", converters={"ID": str})
    print(show(compare(catalog, truth)))
    print("bias and scatter: measured/true - 1; pull: (measured - true) / quoted error, ideally 0 and 1")


if __name__ == "__main__":
    main()
