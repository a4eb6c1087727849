"""The report's pictures of an XPCS fit: maps, decays along the lag, chi² of each angle, transport over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.plot_style import (
    BLUE,
    INK,
    ORANGE,
    SOFT,
    WIDTH,
    image_axes,
    legend,
    new_figure,
    panels,
    png,
    tidy,
)
from tessera.xpcs.physics import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RANGE: Final = (1.0, 99.5)
"""Percentiles of the data between which the colours of the maps run."""
_PULL: Final = 4.0
_LAGS: Final = 60
"""Points of a decay."""
_SIDE: Final = 2.55
_ROW: Final = 2.95
_LEFTS: Final = (0.6, 3.35, 6.7)
"""Inches: side of a map, distance of two rows, and where the columns begin."""


@dataclass(frozen=True)
class AngleMaps:
    """One angle's pictures.

    Attributes
    ----------
    phi
        deg.
    reduced
        chi² per pair of frames.
    data, fit, residual
        Shape (m, m); the last in units of its noise.
    """

    phi: float
    reduced: float
    data: Floats
    fit: Floats
    residual: Floats


def maps(angles: Sequence[AngleMaps], last: float) -> bytes:
    """Draw data, fit and residual of each angle side by side, all with the same colours.

    Parameters
    ----------
    angles
        At least one.
    last
        Time of the last frame, s.
    """
    rows = len(angles)
    figure = new_figure(rows * _ROW + 0.6)
    # Places are given: finding them, as the other pictures do, takes seconds for so many images.
    figure.set_layout_engine("none")
    shown = np.concatenate([np.concatenate([a.data.ravel(), a.fit.ravel()]) for a in angles])
    low, high = np.percentile(shown[np.isfinite(shown)], _RANGE)
    for number, angle in enumerate(angles):
        titles = (f"φ = {angle.phi:g}°: data", "fit", f"residual / noise; χ² per point {angle.reduced:.3f}")
        bottom = 0.5 + (rows - 1 - number) * _ROW
        for column, (values, title) in enumerate(zip((angle.data, angle.fit, angle.residual), titles, strict=True)):
            axes = figure.add_axes(_place(figure, _LEFTS[column], bottom, _SIDE))
            limits = (-_PULL, _PULL) if column == 2 else (low, high)
            image = axes.imshow(
                values.T,
                origin="lower",
                extent=(0, last, 0, last),
                cmap="RdBu_r" if column == 2 else "viridis",
                vmin=limits[0],
                vmax=limits[1],
                interpolation="nearest",
            )
            image_axes(axes, title)
            if number < rows - 1:
                axes.set_xticklabels([])
            else:
                axes.set_xlabel("t₁, s", fontsize=9, color=INK)
            if column == 0:
                axes.set_ylabel("t₂, s", fontsize=9, color=INK)
            else:
                axes.set_yticklabels([])
                bar = figure.add_axes(_place(figure, _LEFTS[column] + _SIDE + 0.1, bottom, 0.12))
                figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7, colors=INK)
    return png(figure)


def _place(figure: Figure, left: float, bottom: float, width: float) -> tuple[float, float, float, float]:
    """Return left, bottom, width and height in parts of the figure, from inches; all pictures are equally high."""
    across, up = figure.get_size_inches()
    return left / across, bottom / up, width / across, _SIDE / up


def decays(phi: Floats, times: Floats, data: Floats, fit: Floats) -> bytes:
    """Draw the mean of C2 at each lag against the lag, data and fit, one panel per angle.

    Parameters
    ----------
    phi
        Angles, deg, shape (n_phi,).
    times
        s, shape (n_t,).
    data, fit
        Means at lag 0, 1, …, shape (n_phi, n_t).
    """
    figure, grid = panels(len(phi), 0.72, sharex=True, sharey=True)
    n = times.size
    lags = np.unique(np.geomspace(1, n - 1, _LAGS).astype(int))
    step = times[1] - times[0]
    for axes, angle, measured, model in zip(grid, phi, data, fit, strict=True):
        axes.plot(lags * step, measured[lags], "o", ms=3.5, color=BLUE, label="data")
        axes.plot(np.arange(1, n) * step, model[1:], "-", color=ORANGE, lw=1.5, label="fit")
        axes.set_xscale("log")
        tidy(axes, f"φ = {angle:g}°", "lag, s", "mean of C₂ at this lag")
    legend(grid[0], loc="lower left")
    return png(figure)


def chi2_of_angles(phi: Floats, reduced: Floats, count: NDArray[np.int64]) -> bytes:
    """Draw chi² per point of each angle, with the spread that pure noise of the stated size would give."""
    figure = new_figure(2.9, 0.62 * WIDTH)
    axes = figure.subplots()
    spread = float(np.sqrt(2 / np.median(count)))
    axes.axhspan(1 - 2 * spread, 1 + 2 * spread, color=SOFT, alpha=0.3, lw=0)
    axes.axhline(1, color=SOFT, lw=1)
    axes.plot(phi, reduced, "o", ms=6, color=BLUE)
    tidy(axes, "", "φ, deg", "χ² per point")
    return png(figure)


def transport(times: Floats, curves: Sequence[tuple[str, Floats, Floats]]) -> bytes:
    """Draw rates against time with their standard errors.

    Parameters
    ----------
    times
        s, shape (n_t,).
    curves
        Label, value and standard error, each shape (n_t,).
    """
    figure, grid = panels(len(curves), 0.7)
    for axes, (label, value, error) in zip(grid, curves, strict=True):
        axes.fill_between(times, value - error, value + error, color=BLUE, alpha=0.25, lw=0)
        axes.plot(times, value, color=BLUE, lw=1.5)
        axes.set_xscale("log")
        tidy(axes, "", "t, s", label)
    return png(figure)
