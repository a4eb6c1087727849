"""What all pictures of the report have in common: size, colours, a quiet frame, and PNG bytes at the end."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
RED: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
INK: Final = "#2b2f36"
SOFT: Final = "#8a909c"
"""Okabe & Ito's colours, which differ for all kinds of colour vision, and two greys."""

WIDTH: Final = 10.2
"""Inches of a figure that fills the page."""
_COLUMNS: Final = 3
"""Panels beside each other."""
_DPI: Final = 110


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of a size in inches, without touching matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    file = BytesIO()
    # Without the version of the software, equal data make equal bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def panels(number: int, height: float, **keywords: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``number`` panels, three beside each other, and their axes.

    Parameters
    ----------
    number
        At least one.
    height
        Of a panel over its width.
    **keywords
        For `matplotlib.figure.Figure.subplots`.
    """
    columns = min(number, _COLUMNS)
    rows = -(-number // columns)
    width = WIDTH * max(columns / _COLUMNS, 0.45)
    figure = new_figure(rows * height * width / columns + 0.2, width)
    grid = figure.subplots(rows, columns, squeeze=False, **keywords).ravel()
    for unused in grid[number:]:
        unused.set_visible(False)
    return figure, list(grid[:number])


def tidy(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give a chart its words, and take the box and the noise away from it."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(SOFT)


def image_axes(axes: Axes, title: str = "", *, ticks: bool = True) -> None:
    """Prepare axes for an image."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.tick_params(labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(SOFT)
    if not ticks:
        axes.set_xticks([])
        axes.set_yticks([])


def legend(axes: Axes, **keywords: Any) -> None:
    """Draw a small legend, its marks of one size."""
    from matplotlib.lines import Line2D

    drawn = axes.legend(fontsize=8, frameon=False, labelcolor=INK, **keywords)
    for handle in drawn.legend_handles:
        if isinstance(handle, Line2D):
            handle.set_markersize(6)


def stretch(image: NDArray[np.floating], faint: float = 3.0) -> NDArray[np.floating]:
    """Return an image scaled so that noise, faint wings and bright cores are all seen: arcsinh of sky sigmas.

    Parameters
    ----------
    image
        NaN where there is nothing to show.
    faint
        Sigmas of the sky up to which the scale is linear.
    """
    sky, sigma = robust(image)
    return np.asarray(np.arcsinh((image - sky) / (faint * sigma)))


def robust(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the median and 1.4826 times the median absolute deviation; sigma is 1 where that is zero."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    middle = float(np.median(finite))
    return middle, 1.4826 * float(np.median(np.abs(finite - middle))) or 1.0


def shrink(image: NDArray[np.floating], most: int) -> tuple[NDArray[np.floating], int]:
    """Average blocks of pixels until no side of a picture is longer than ``most``.

    Returns
    -------
    image, step
        Means of the finite pixels of blocks of ``step`` x ``step``, NaN where there is none; a rest narrower than a
        block is left out.
    """
    step = -(-max(image.shape) // most)
    if step == 1:
        return image, 1
    height, width = (n // step for n in image.shape)
    blocks = image[: height * step, : width * step].reshape(height, step, width, step)
    good = np.isfinite(blocks)
    number = good.sum(axis=(1, 3))
    total = np.where(good, blocks, 0).sum(axis=(1, 3))
    return np.where(number > 0, total / np.maximum(number, 1), np.nan), step


def band_colours(bands: Sequence[str]) -> dict[str, str]:
    """Return a colour for each band, all different up to five; more bands are coloured along a scale."""
    few = (BLUE, ORANGE, GREEN, RED, PURPLE)
    if len(bands) <= len(few):
        return dict(zip(bands, few, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["viridis"]
    return {band: to_hex(scale(0.9 * k / (len(bands) - 1))) for k, band in enumerate(bands)}
