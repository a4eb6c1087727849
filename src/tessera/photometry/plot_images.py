"""The report's pictures that show pixels: the field, data against model, the patches, the PSFs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.report_data import Bounds, Cell, Overlay, PatchRecord, Picture
from tessera.plot_style import (
    BLUE,
    INK,
    ORANGE,
    RED,
    SOFT,
    WIDTH,
    image_axes,
    legend,
    new_figure,
    panels,
    png,
    robust,
    shrink,
    stretch,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_FIELD_PIXELS: Final = 1000
_FIELD_WIDTH: Final = 8.4
"""Inches."""
_PANEL_PIXELS: Final = 400
_GREY_LIMITS: Final = (-1.0, 4.5)
_PULL_LIMIT: Final = 5.0
_CHI2_LIMIT: Final = 4.0
_LABELLED_PATCHES: Final = 64
_DARK: Final = 1.5
"""Sum of red, green and blue below which writing is white."""
_CORE_FWHM: Final = 2.5
_MARKS: Final = (
    ("stars", "o", BLUE, 1.0),
    ("galaxies", "D", ORANGE, 0.9),
    ("doubtful", "s", RED, 1.5),
    ("excluded", "x", RED, 1.0),
)
"""Name, marker, colour and relative size."""


def field_image(overlay: Overlay, x: Floats, y: Floats, groups: Mapping[str, Bools]) -> bytes:
    """Draw the white stack with the sources on it.

    Parameters
    ----------
    overlay
        The stack.
    x, y
        Positions of the sources, frame pixels, shape (n,).
    groups
        Which sources are drawn with each of the marks ``stars``, ``galaxies``, ``doubtful`` and ``excluded``, each of
        shape (n,).
    """
    image, step = shrink(overlay.white, _FIELD_PIXELS)
    height, width = image.shape
    pixel = step * overlay.step
    figure = new_figure(_FIELD_WIDTH * min(height / width, 1.4) + 0.2, _FIELD_WIDTH)
    axes = figure.subplots()
    # A sample of the thinned image stands for the pixels around it.
    edge = -0.5 * overlay.step
    extent = (edge, edge + width * pixel, edge, edge + height * pixel)
    axes.imshow(
        stretch(image), cmap="gray_r", origin="lower", extent=extent, vmin=_GREY_LIMITS[0], vmax=_GREY_LIMITS[1]
    )
    # Thousands of marks are told apart by being small.
    size = float(np.clip(9.5 * (250 / max(len(x), 1)) ** 0.25, 2, 9.5))
    for name, marker, colour, larger in _MARKS:
        chosen = groups[name]
        (drawn,) = axes.plot(x[chosen], y[chosen], ls="none", marker=marker, mfc="none", mec=colour, mew=1.1)
        drawn.set_markersize(size * larger)
        drawn.set_label(f"{name} ({np.count_nonzero(chosen)})")
    _outline(axes, overlay.box, "--")
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    image_axes(axes)
    axes.set_xlabel("x, pixels", fontsize=9, color=INK)
    axes.set_ylabel("y, pixels", fontsize=9, color=INK)
    legend(axes, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    return png(figure)


def _outline(axes: Axes, box: Bounds, line: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec=SOFT, ls=line, lw=0.8))


def white_of(picture: Picture) -> tuple[Floats, Floats, Floats]:
    """Average the bands of a picture.

    Returns
    -------
    data, model, pulls
        Shape (h, w): means weighted with the inverse variance; and the sum of the bands' ``(data - model) / sigma``
        over the root of their number, which is unit noise where the model is right. NaN where no band has a pixel.
    """
    weight = 1 / picture.sigma.astype(np.float64) ** 2
    image = np.where(weight > 0, picture.image, 0)
    total, number = weight.sum(axis=0), (weight > 0).sum(axis=0)
    seen = number > 0
    nothing = np.full(seen.shape, np.nan)
    data = np.divide((weight * image).sum(axis=0), total, out=nothing.copy(), where=seen)
    model = np.divide((weight * np.nan_to_num(picture.model)).sum(axis=0), total, out=nothing.copy(), where=seen)
    pulls = np.where(weight > 0, picture.pulls, 0).sum(axis=0)
    return data, model, np.divide(pulls, np.sqrt(number), out=nothing.copy(), where=seen)


def data_model_residual(pictures: Sequence[Picture]) -> bytes:
    """Draw data, model and normalised residual, bands averaged, in a row for each picture."""
    shapes = [picture.image.shape[1:] for picture in pictures]
    figure = new_figure(0.4 + sum(0.93 * WIDTH / 3 * min(h / w, 2) for h, w in shapes))
    grid = figure.subplots(len(pictures), 3, squeeze=False)
    for row, picture in zip(grid, pictures, strict=True):
        data, model, pulls = white_of(picture)
        small, step = shrink(data, _PANEL_PIXELS)
        sky, sigma = robust(small)
        for axes, image in zip(row, (small, shrink(model, _PANEL_PIXELS)[0]), strict=False):
            shown = np.arcsinh((image - sky) / (3 * sigma))
            axes.imshow(shown, cmap="gray_r", origin="lower", vmin=_GREY_LIMITS[0], vmax=_GREY_LIMITS[1])
        # The mean of a block has less noise than a pixel; the scale stays that of one pixel's noise.
        residual = shrink(pulls, _PANEL_PIXELS)[0] * step
        drawn = row[2].imshow(residual, cmap="RdBu_r", origin="lower", vmin=-_PULL_LIMIT, vmax=_PULL_LIMIT)
        for axes, title in zip(row, (f"{picture.key}: data", "model", "(data − model) / noise"), strict=True):
            image_axes(axes, title, ticks=False)
        row[2].set_facecolor("#dddddd")
        bar = figure.colorbar(drawn, ax=row[2], shrink=0.85, pad=0.02)
        bar.ax.tick_params(labelsize=8, colors=INK)
    return png(figure)


def patch_map(patches: Sequence[PatchRecord], shape: tuple[int, int]) -> bytes:
    """Draw where the patches lie, with their typical chi² and their number of sources."""
    from matplotlib.colors import Normalize, TwoSlopeNorm

    figure = new_figure(0.42 * WIDTH * min(shape[0] / shape[1], 2) + 0.3)
    left, right = figure.subplots(1, 2)
    chi2 = np.array([patch.typical_chi2 for patch in patches])
    worst = float(np.clip(np.nanmax(chi2, initial=1.5), 1.5, _CHI2_LIMIT))
    _boxes(figure, left, patches, shape, chi2, "RdBu_r", TwoSlopeNorm(1.0, vmin=0.5, vmax=worst), "{:.2f}")
    image_axes(left, "typical χ² of the sources in a patch")
    numbers = np.array([patch.n_own for patch in patches], float)
    _boxes(figure, right, patches, shape, numbers, "Blues", Normalize(0, numbers.max(initial=1)), "{:.0f}")
    image_axes(right, "sources measured in a patch")
    return png(figure)


def _boxes(
    figure: Figure,
    axes: Axes,
    patches: Sequence[PatchRecord],
    shape: tuple[int, int],
    values: Floats,
    colours: str,
    norm: Normalize,
    words: str,
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes = [Rectangle((p.base[0], p.base[1]), p.base[2] - p.base[0], p.base[3] - p.base[1]) for p in patches]
    drawn = PatchCollection(boxes, cmap=colours, norm=norm, edgecolor="white", linewidth=1)
    drawn.set_array(np.ma.masked_invalid(values))
    axes.add_collection(drawn)
    axes.set_xlim(0, shape[1])
    axes.set_ylim(0, shape[0])
    axes.set_aspect("equal")
    axes.set_facecolor("#eeeeee")
    if len(patches) <= _LABELLED_PATCHES:
        for patch, value in zip(patches, values, strict=True):
            x, y = (patch.base[0] + patch.base[2]) / 2, (patch.base[1] + patch.base[3]) / 2
            light = np.isnan(value) or sum(drawn.to_rgba(value)[:3]) > _DARK
            colour = INK if light else "white"
            axes.text(x, y, words.format(value), ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02)
    bar.ax.tick_params(labelsize=8, colors=INK)


def psf_gallery(cells: Sequence[Cell]) -> bytes:
    """Draw the cores of all PSFs, the cells of a band laid out as on the frame."""
    bands = list(dict.fromkeys(cell.band for cell in cells))
    figure, grid = panels(len(bands), 1.0)
    for axes, band in zip(grid, bands, strict=True):
        mine = [cell for cell in cells if cell.band == band]
        built = [cell.fwhm for cell in mine if cell.ok]
        _draw_cells(axes, mine, float(np.median(built)) if built else np.nan)
        title = f"{band}: FWHM {np.median(built):.2f} pix" if built else f"{band}: none built"
        image_axes(axes, title, ticks=False)
    return png(figure)


def _draw_cells(axes: Axes, cells: Sequence[Cell], fwhm: float) -> None:
    from matplotlib.patches import Rectangle

    half_of_stamp = cells[0].stamp.shape[0] // 2
    reach = _CORE_FWHM * fwhm * cells[0].oversampling
    half = min(half_of_stamp, int(np.ceil(reach)) if np.isfinite(reach) else half_of_stamp)
    core = slice(half_of_stamp - half, half_of_stamp + half + 1)
    for cell in cells:
        extent = (cell.column, cell.column + 1, cell.row, cell.row + 1)
        if cell.ok:
            shown = np.log10(np.clip(cell.stamp[core, core] / cell.stamp.max(), 1e-3, 1))
            axes.imshow(shown, cmap="magma", origin="lower", extent=extent, vmin=-3, vmax=0)
        else:
            axes.add_patch(
                Rectangle((cell.column, cell.row), 1, 1, facecolor="#f2f2f2", edgecolor=SOFT, hatch="//", lw=0)
            )
            words = axes.text(cell.column + 0.5, cell.row + 0.5, "fallback", ha="center", va="center", fontsize=8)
            words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 2})
    axes.set_xlim(-0.02, max(cell.column for cell in cells) + 1.02)
    axes.set_ylim(-0.02, max(cell.row for cell in cells) + 1.02)
    axes.set_aspect("equal")


def psf_profiles(cells: Sequence[Cell]) -> bytes:
    """Draw the light of each PSF against the distance from its centre, and its growth."""
    bands = list(dict.fromkeys(cell.band for cell in cells if cell.ok))
    figure, grid = panels(len(bands), 0.85, sharey=True)
    for axes, band in zip(grid, bands, strict=True):
        for cell in (c for c in cells if c.ok and c.band == band):
            half = cell.stamp.shape[0] // 2
            offsets = (np.arange(cell.stamp.shape[0]) - half) / cell.oversampling
            radius = np.hypot(offsets, offsets[:, None]).ravel()
            light = cell.stamp.ravel() / cell.stamp.max()
            axes.plot(radius, np.where(light > 0, light, np.nan), ".", ms=1.6, alpha=0.5, color=BLUE, rasterized=True)
            axes.axvline(cell.fwhm / 2, color=ORANGE, lw=0.8)
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 1.5)
        tidy(axes, band, "distance from the centre, pixels", "light / light in the centre")
    return png(figure)
