"""Cutting the frame into cells and patches; every source belongs to exactly one patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.frames import FrameSet
from tessera.photometry.select import Box
from tessera.photometry.sources import PatchPixels, Sources

Rows = NDArray[np.intp]

_CELL_PIXELS: Final = 480
_MOST_CELLS: Final = 7
_AREA_OF_SOURCE: Final = 3000.0
"""Pixels whose share of a patch's time is that of one source."""


@dataclass(frozen=True)
class Patch:
    """A patch: what it owns and what it sees.

    Attributes
    ----------
    key
        ``rRR_cCC``, row and column of the patch grid.
    base
        The pixels it owns.
    roi
        The base box with its halo: the pixels it fits.
    own
        Rows of the catalog that are measured here.
    halo
        Rows of the catalog that are fitted along so that their light is not taken for that of others, but
        measured elsewhere or not at all.
    """

    key: str
    base: Box
    roi: Box
    own: Rows
    halo: Rows

    @property
    def cost(self) -> float:
        """Expected time relative to other patches, in sources."""
        return len(self.own) + len(self.halo) + self.roi.width * self.roi.height / _AREA_OF_SOURCE


def cells_per_side(box: Box, setting: int | Literal["auto"]) -> int:
    """Return the cells of the PSF grid along each axis; ``auto``: about 480 pixels a cell, 7 cells at most."""
    if setting != "auto":
        return setting
    return int(np.clip(round(min(box.width, box.height) / _CELL_PIXELS), 1, _MOST_CELLS))


def grid(box: Box, columns: int, rows: int) -> list[list[Box]]:
    """Cut a box into ``rows`` x ``columns`` boxes whose sides differ by at most one pixel."""
    xs = [box.x0 + box.width * k // columns for k in range(columns + 1)]
    ys = [box.y0 + box.height * k // rows for k in range(rows + 1)]
    return [[Box(xs[c], ys[r], xs[c + 1], ys[r + 1]) for c in range(columns)] for r in range(rows)]


def cut_patches(
    box: Box, size: int, halo: int, reach: int, sources: Sources, measured: NDArray[np.bool_], shape: tuple[int, int]
) -> list[Patch]:
    """Lay patches over the cropped frame and give each its sources.

    Parameters
    ----------
    box
        The cropped frame.
    size
        Wanted side of a patch, pixels.
    halo
        Pixels around the base box that are fitted along; they may reach into the cropped edge.
    reach
        Pixels beyond those from which sources shine in: they are fitted along, or a bright one just outside would
        be taken for sky.
    sources
        All sources of the catalog.
    measured
        Shape (n,), which of them are to be measured; the others on the image are fitted along only.
    shape
        ``(H, W)`` of the frames.

    Returns
    -------
    list of Patch
        Those that measure at least one source. Their ``own`` rows are disjoint and make up all measured ones.
    """
    frame = Box(0, 0, shape[1], shape[0])
    boxes = grid(box, max(1, round(box.width / size)), max(1, round(box.height / size)))
    patches = []
    for r, row in enumerate(boxes):
        in_row = np.flatnonzero(_rows_near(sources.y, row[0].y0 - halo - reach, row[0].y1 + halo + reach))
        for c, base in enumerate(row):
            roi = base.grown(halo, frame)
            x, y = sources.x[in_row], sources.y[in_row]
            own = in_row[base.holds(x, y) & measured[in_row]]
            if own.size:
                seen = in_row[Box(roi.x0 - reach, roi.y0 - reach, roi.x1 + reach, roi.y1 + reach).holds(x, y)]
                patches.append(Patch(f"r{r:02d}_c{c:02d}", base, roi, own, np.setdiff1d(seen, own)))
    return patches


def _rows_near(y: NDArray[np.float64], low: int, high: int) -> NDArray[np.bool_]:
    return np.asarray((y >= low - 0.5) & (y < high - 0.5))


def patch_pixels(frames: FrameSet, gains: NDArray[np.float64], roi: Box) -> PatchPixels:
    """Cut the pixels of a patch out of the planes (views, not copies)."""
    window = (slice(None), slice(roi.y0, roi.y1), slice(roi.x0, roi.x1))
    return PatchPixels(roi.x0, roi.y0, frames.image[window], frames.sky_variance[window], gains)


def cell_keys(bands: Sequence[str], cells: list[list[Box]]) -> dict[str, tuple[int, Box]]:
    """Return ``(band number, cell)`` by the key ``band/rRR_cCC``."""
    return {
        f"{band}/r{r:02d}_c{c:02d}": (b, cell)
        for b, band in enumerate(bands)
        for r, row in enumerate(cells)
        for c, cell in enumerate(row)
    }
