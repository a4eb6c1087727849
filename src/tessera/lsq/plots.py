"""Pictures of any fit: how it converged, and which of its parameters are bound to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.result import HISTORY
from tessera.plot_style import BLUE, INK, RED, SOFT, WIDTH, image_axes, new_figure, panels, png, tidy

_FLOOR: Final = 1e-16
"""Relative: what is left of a cost at rounding error."""
_NAMED: Final = 12
"""Parameters up to which the numbers are written into the cells."""


def convergence(history: NDArray[np.float64]) -> bytes:
    """Draw cost above its minimum, distance to go, and trust radius with step against the passes.

    Parameters
    ----------
    history
        Of `tessera.lsq.result.Result`: one row per pass, columns as `HISTORY`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (costs, distance, radius) = panels(3, 0.75)
    column = {name: history[:, k] for k, name in enumerate(HISTORY)}
    passes = np.arange(1, len(history) + 1)
    accepted = column["accepted"] > 0
    finite = column["cost"][np.isfinite(column["cost"])]
    least = finite.min() if finite.size else 0.0
    above = np.maximum(column["cost"] / least - 1 if least > 0 else column["cost"] - least, _FLOOR)
    for axes, values, colour in ((costs, above, BLUE), (distance, column["decrement"], BLUE)):
        axes.plot(passes, values, "-", color=SOFT, lw=1)
        axes.plot(passes[accepted], values[accepted], "o", ms=5, color=colour, label="accepted")
        axes.plot(passes[~accepted], values[~accepted], "x", ms=6, color=RED, label="rejected")
    radius.plot(passes, column["radius"], "-", color=INK, lw=1, label="trust radius")
    radius.plot(passes, column["step"], "o", ms=5, color=BLUE, label="step")
    for axes, title, y in (
        (costs, "cost", "above the lowest, relative"),
        (distance, "distance to go", "Gauss-Newton step / standard errors"),
        (radius, "steps", "scaled parameters"),
    ):
        shown = [line.get_ydata() for line in axes.lines]
        if any(np.any(np.asarray(values, float) > 0) for values in shown):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes, title, "pass over the data", y)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return png(figure)


def correlations(names: Sequence[str], matrix: NDArray[np.float64]) -> bytes:
    """Draw the correlation matrix of the parameters.

    Parameters
    ----------
    names
        Of the p parameters.
    matrix
        Shape (p, p).
    """
    p = len(names)
    side = min(0.75 * WIDTH, 1.6 + 0.55 * p)
    figure = new_figure(side, side + 0.8)
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    image_axes(axes)
    axes.set_xticks(range(p), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(p), names)
    if p <= _NAMED:
        for i, j in np.ndindex(p, p):
            value = matrix[i, j]
            colour = "white" if abs(value) > 0.6 else INK
            axes.text(j, i, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=8, colors=INK)
    return png(figure)
