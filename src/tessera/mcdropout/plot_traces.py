"""The report's pictures of the traces themselves: every image in every trial, and what the extremes look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout.report_data import Gallery
from tessera.plot_style import INK, WIDTH, image_axes, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_RANGE: Final = 2.0
"""Octaves around the median that the colours span, at most."""
_IN_ROW: Final = 12


def trace_maps(traces: Mapping[str, Floats]) -> bytes:
    """Draw the traces of every arm, trials below each other and images sorted by their mean.

    Parameters
    ----------
    traces
        By name: shape (K, N).
    """
    heights = [0.14 * min(len(values), 12) + 0.75 for values in traces.values()]
    figure = new_figure(sum(heights))
    grid = figure.subplots(len(traces), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, values) in zip(grid, traces.items(), strict=True):
        _map(axes, name, values)
    return png(figure)


def _map(axes: Axes, name: str, values: Floats) -> None:
    order = np.argsort(values.mean(axis=0), kind="stable")
    positive = np.maximum(values, np.finfo(np.float64).tiny)
    octaves = np.log2(positive / np.median(positive))[:, order]
    span = float(min(max(np.percentile(np.abs(octaves), 98), 0.02), _RANGE))
    shown = axes.imshow(octaves, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-span, vmax=span)
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.01)
    bar.set_ticks([-span, 0, span], labels=[f"{2.0**s:.3g}" for s in (-span, 0, span)])
    bar.ax.tick_params(labelsize=7, colors=INK)
    image_axes(axes, name)
    axes.set_yticks([0, len(values) - 1] if len(values) > 1 else [0])
    axes.set_xlabel("images, lowest mean trace first", fontsize=8, color=INK)
    axes.set_ylabel("trial", fontsize=8, color=INK)


def gallery(pictures: Gallery, traces: Floats) -> bytes:
    """Draw small pictures of the images of lowest and highest mean trace.

    Parameters
    ----------
    pictures
        Lowest first.
    traces
        Shape (N,), of the images that the gallery's rows count.
    """
    number = len(pictures.rows)
    rows = -(-number // _IN_ROW)
    figure = new_figure(rows * (WIDTH / _IN_ROW + 0.26))
    grid = figure.subplots(rows, _IN_ROW, squeeze=False).ravel()
    for axes, picture, row in zip(grid, pictures.pictures, pictures.rows, strict=False):
        axes.imshow(picture)
        image_axes(axes, f"{traces[row]:.3g}", ticks=False)
        axes.title.set_fontsize(7)
    for unused in grid[number:]:
        unused.set_visible(False)
    return png(figure)
