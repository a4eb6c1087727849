"""Read the results of Monte-Carlo dropout trials back for their report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trials:
    """The trials of an arm.

    Attributes
    ----------
    key, model
        Its name, and that of its model.
    perturbation
        Selection and size, in words.
    magnitude
        p, or the magnitude of another action; NaN where the sites have different ones.
    columns
        By name and T: shape (K, N).
    """

    key: str
    model: str
    perturbation: str
    magnitude: float
    columns: Mapping[str, Mapping[int, Floats]]

    @property
    def passes(self) -> list[int]:
        """The T that were looked at."""
        return sorted(self.columns["trace_pre"])

    def last(self, name: str) -> Floats:
        """Return a column at the largest T."""
        return self.columns[name][self.passes[-1]]


@dataclass(frozen=True)
class Gallery:
    """Small pictures of the images of lowest and highest trace.

    Attributes
    ----------
    rows
        Shape (n,): their places among the images of the model's first arm, lowest trace first.
    pictures
        Shape (n, h, w, 3).
    """

    rows: NDArray[np.int64]
    pictures: NDArray[np.uint8]


@dataclass(frozen=True)
class Everything:
    """All that the report shows.

    Attributes
    ----------
    facts
        The attributes of the file.
    arms
        In the order of their keys.
    galleries
        By model.
    ambiguity
        By model: margin, entropy and prompt sensitivity, shape (N,), of the images of its first arm.
    """

    facts: Mapping[str, Any]
    arms: list[Trials]
    galleries: Mapping[str, Gallery]
    ambiguity: Mapping[str, Mapping[str, Floats]]


def read(path: Path) -> Everything | None:
    """Return what is in the file of results; None if it is not there yet."""
    from hpc import existing_hdf5

    if not path.is_file():
        return None
    with existing_hdf5(path) as file:
        facts = {name: json.loads(value) for name, value in file.attrs.items()}
        arms: list[Trials] = []
        if "arms" in file:
            file["arms"].visititems(lambda name, node: _visit(name, node, arms))
        galleries = {m: Gallery(g["rows"][:], g["pictures"][:]) for m, g in _below(file, "thumbnails").items()}
        ambiguity = {m: {n: g[n][:] for n in g} for m, g in _below(file, "ambiguity").items()}
    return Everything(facts, arms, galleries, ambiguity)


def _below(file: Any, name: str) -> dict[str, Any]:
    return dict(file[name].items()) if name in file else {}


def _visit(name: str, node: Any, arms: list[Trials]) -> None:
    if "model" not in node.attrs:
        return
    how = json.loads(node.attrs["perturbation"])
    columns: dict[str, dict[int, Floats]] = {}
    for group in (g for g in node if g.startswith("T")):
        for column, data in node[group].items():
            columns.setdefault(column, {})[int(group[1:])] = data[:]
    words, size = _words(how)
    arms.append(Trials(name, node.attrs["model"], words, size, columns))


def _words(how: Mapping[str, Any]) -> tuple[str, float]:
    if how["by"] == "BySites":
        text = ", ".join(f"{site} {action} {size:g}" for site, action, size in how["sites"])
        return text, float(how["sites"][0][2]) if len(how["sites"]) == 1 else float("nan")
    if how["schedule"]:
        return "groups " + ", ".join(f"{p:.3g}" for p in how["schedule"]), float("nan")
    return f"{how['select']} {how['action']} {how['p']:g}", float(how["p"])
