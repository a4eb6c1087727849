"""What each chunk contributes to the cost: where in the data a model does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.accumulate import ModelObjective
from tessera.lsq.profile import phase
from tessera.lsq.quadratic import Vector


def chunk_costs(objective: ModelObjective, x: Vector) -> dict[str, NDArray[np.float64]]:
    """Return chi² and points of every chunk. Collective; one pass over the data.

    Parameters
    ----------
    objective
        Model and data.
    x
        Parameters, shape (p,).

    Returns
    -------
    dict
        ``chunk_chi2`` and ``chunk_count``, each of shape (n_chunks,), the same on every rank.
    """
    kept: dict[str, NDArray[Any]] = {}

    def add(n: int, contributions: Callable[[range], Iterator[Mapping[str, NDArray[Any]]]]) -> dict[str, NDArray[Any]]:
        def placed(mine: range) -> Iterator[Mapping[str, NDArray[Any]]]:
            for index, part in zip(mine, contributions(mine), strict=True):
                row = np.zeros((2, n))
                row[:, index] = 2 * part["cost"], part["count"]
                yield {**part, "by_chunk": row}

        sums = objective.add(n, placed)
        kept["by_chunk"] = sums.pop("by_chunk")
        return sums

    with phase("cost"):
        # Of the order that is compiled already: at this point compiling costs more than a dearer pass.
        replace(objective, add=add).evaluate(x)
    chi2, count = kept["by_chunk"]
    return {"chunk_chi2": chi2, "chunk_count": count}
