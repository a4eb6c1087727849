"""The report's pictures of an XPCS fit: maps, decays along the lag, chi² of each angle, transport over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.plot_style import (
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RANGE: Final = (1.0, 99.5)
"""Percentiles of the data between which the colours of the maps run."""
_PULL: Final = 4.0
_LAGS: Final = 60
"""Points of a decay."""


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
    figure = new_figure(rows * 0.29 * WIDTH + 0.3)
    grid = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    shown = np.concatenate([np.concatenate([a.data.ravel(), a.fit.ravel()]) for a in angles])
    low, high = np.percentile(shown[np.isfinite(shown)], _RANGE)
    for row, angle in zip(grid, angles, strict=True):
        titles = (f"φ = {angle.phi:g}°: data", "fit", f"residual / noise; χ² per point {angle.reduced:.3f}")
        for axes, values, title in zip(row, (angle.data, angle.fit, angle.residual), titles, strict=True):
            pull = values is angle.residual
            image = axes.imshow(
                values.T,
                origin="lower",
                extent=(0, last, 0, last),
                cmap="RdBu_r" if pull else "viridis",
                vmin=-_PULL if pull else low,
                vmax=_PULL if pull else high,
                interpolation="nearest",
            )
            image_axes(axes, title)
            if axes is not row[1]:
                _bar(figure, axes, image)
        row[0].set_ylabel("t₂, s", fontsize=9, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("t₁, s", fontsize=9, color=INK)
    return png(figure)


def _bar(figure: Figure, axes: Axes, image: object) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)  # type: ignore[arg-type]
    bar.ax.tick_params(labelsize=7, colors=INK)


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
