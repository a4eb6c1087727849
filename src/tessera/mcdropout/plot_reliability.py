"""The report's charts of how far trials agree, and of how estimates settle with the number of passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout import reliability as gates
from tessera.mcdropout.reliability import Reliability, spearman, spearman_matrix
from tessera.mcdropout.report_data import Trials
from tessera.plot_style import (
    BLUE,
    INK,
    ORANGE,
    SOFT,
    WIDTH,
    band_colours,
    image_axes,
    legend,
    new_figure,
    panels,
    png,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_SHOWN_ARMS: Final = 30
_GATES: Final = (
    ("pairwise_spearman_median", "rank correlation", gates.USABLE_RHO, gates.FAILED_RHO),
    ("snr", "signal / noise", gates.USABLE_SNR, gates.FAILED_SNR),
    ("icc", "ICC(1,1)", gates.USABLE_ICC, None),
)


def curves(lines: Mapping[str, Sequence[tuple[float, Reliability]]], x_label: str) -> bytes:
    """Draw rank correlation, SNR and ICC along T or p, a line per model.

    Parameters
    ----------
    lines
        By name: ``(x, reliability)`` in rising x.
    x_label
        What x is.
    """
    figure, grid = panels(3, 0.9)
    colours = band_colours(list(lines))
    for axes, (name, label, usable, failed) in zip(grid, _GATES, strict=True):
        for model, points in lines.items():
            x = [p for p, _ in points]
            y = np.array([getattr(r, name) for _, r in points])
            axes.plot(x, y, "o-", ms=4, lw=1.2, color=colours[model], label=model)
            if name == "pairwise_spearman_median":
                low, high = ([getattr(r, f"pairwise_spearman_{q}") for _, r in points] for q in ("q25", "q75"))
                axes.vlines(x, low, high, color=colours[model], lw=3, alpha=0.35)
        _draw_gates(axes, usable, failed, horizontal=True)
        axes.set_xscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        if name == "snr":
            _logarithmic(axes)
        tidy(axes, label, x_label)
    legend(grid[0], loc="best")
    return png(figure)


def _logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_gates(axes: Axes, usable: float, failed: float | None, *, horizontal: bool) -> None:
    draw = axes.axhline if horizontal else axes.axvline
    draw(usable, color=INK, lw=0.8, ls="--")
    if failed is not None:
        draw(failed, color=SOFT, lw=0.8, ls=":")


def ranking(arms: Sequence[tuple[str, Reliability]]) -> bytes:
    """Draw the rank correlation of many arms, best first, with quartiles; of more than thirty, the best."""
    shown = sorted(arms, key=lambda arm: -arm[1].pairwise_spearman_median)[:_SHOWN_ARMS]
    figure = new_figure(0.24 * len(shown) + 0.9)
    axes = figure.subplots()
    y = np.arange(len(shown))[::-1]
    for place, (_, found) in zip(y, shown, strict=True):
        axes.hlines(place, found.pairwise_spearman_q25, found.pairwise_spearman_q75, color=BLUE, lw=4, alpha=0.35)
        axes.plot(found.pairwise_spearman_median, place, "o", ms=4, color=BLUE)
    _draw_gates(axes, gates.USABLE_RHO, gates.FAILED_RHO, horizontal=False)
    axes.set_xlim(min(-0.02, *(found.pairwise_spearman_q25 - 0.02 for _, found in shown)), 1.0)
    axes.set_yticks(y, [name for name, _ in shown])
    tidy(axes, "", "rank correlation between trials")
    return png(figure)


def convergence(lines: Mapping[str, Trials]) -> bytes:
    """Draw trace and distance of the mean against T."""
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    colours = band_colours(list(lines))
    passes = sorted({t for trials in lines.values() for t in trials.passes})
    for name, trials in lines.items():
        t = np.array(trials.passes)
        unbiased = np.array([trials.columns["trace_pre_unbiased"][n].mean() for n in t])
        biased = np.array([trials.columns["trace_pre"][n].mean() for n in t])
        left.plot(t, unbiased / unbiased[-1], "o-", ms=4, lw=1.2, color=colours[name], label=f"{name}, unbiased")
        left.plot(t, biased / unbiased[-1], "s-", ms=3, lw=0.8, color=colours[name], alpha=0.5, label=f"{name}, biased")
        distance = np.array([trials.columns["rel_dist"][n].mean() for n in t])
        right.plot(t, distance, "o-", ms=4, lw=1.2, color=colours[name], label=name)
        right.plot(t, distance[0] * np.sqrt(t[0] / t), ls="--", lw=0.8, color=colours[name])
    x = np.geomspace(passes[0], passes[-1], 60)
    left.plot(x, (x - 1) / x, ls="--", lw=0.8, color=INK)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(passes, [str(t) for t in passes])
        axes.minorticks_off()
    _logarithmic(right)
    tidy(left, "mean trace / that at the largest T", "passes T")
    tidy(right, "distance of the mean from the plain features / their norm", "passes T")
    legend(left, loc="lower right")
    legend(right, loc="upper right")
    return png(figure)


def matrix(names: Sequence[str], means: Sequence[Floats]) -> bytes:
    """Draw the rank correlations between arms, as numbers on a coloured grid."""
    rho = spearman_matrix(np.stack(means))
    size = 0.42 * len(names) + 1.4
    figure = new_figure(min(size, 8.0), min(size + 1.2, WIDTH))
    axes = figure.subplots()
    axes.imshow(rho, vmin=0, vmax=1, cmap="Blues")
    for i, row in enumerate(rho):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else INK)
    image_axes(axes)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    return png(figure)


def ambiguity(models: Mapping[str, tuple[Floats, Mapping[str, Floats]]]) -> bytes:
    """Draw trace against margin and entropy.

    Parameters
    ----------
    models
        By model: mean traces (N,), and ``margin`` and ``entropy`` (N,).
    """
    kinds = (("margin", BLUE), ("entropy", ORANGE))
    figure = new_figure(3.0 * len(models))
    grid = figure.subplots(len(models), 2, squeeze=False)
    for row, (model, (trace, found)) in zip(grid, models.items(), strict=True):
        for axes, (kind, colour) in zip(row, kinds, strict=True):
            axes.plot(found[kind], trace, ".", ms=3, color=colour, alpha=0.6)
            _logarithmic(axes)
            rho = spearman(trace, found[kind])
            tidy(axes, f"{model}: rank correlation {rho:+.2f}", f"{kind} of the classifier", "trace")
    return png(figure)


def effective_ranks(models: Mapping[str, Floats]) -> bytes:
    """Draw how the effective rank of the passes' covariance is distributed over the images."""
    figure = new_figure(2.6, WIDTH * 0.6)
    axes = figure.subplots()
    colours = band_colours(list(models))
    everything = np.concatenate(list(models.values()))
    edges = np.linspace(everything.min(), everything.max() * 1.001 + 1e-9, 30)
    for name, values in models.items():
        axes.hist(values, edges.tolist(), histtype="stepfilled", alpha=0.35, color=colours[name], label=name)
    tidy(axes, "", "effective rank", "images")
    legend(axes, loc="upper left")
    return png(figure)
