"""Which sources are measured: those on the cropped frame and away from saturated pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.errors import PhotometryInputError
from tessera.photometry.frames import SATURATED, FrameSet
from tessera.photometry.sources import Sources

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Box:
    """Pixels ``x0 <= column < x1`` and ``y0 <= row < y1``.

    A position belongs to the pixel it rounds to, so that boxes that tile the frame own every position once.
    """

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Rows."""
        return self.y1 - self.y0

    def holds(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Bools:
        """Say which positions (0-based pixels) belong to the box: ``x0 - 0.5 <= x < x1 - 0.5``, y likewise."""
        return np.asarray((x >= self.x0 - 0.5) & (x < self.x1 - 0.5) & (y >= self.y0 - 0.5) & (y < self.y1 - 0.5))

    def grown(self, margin: int, within: Box) -> Box:
        """Return the box with a margin around it, cut at the edges of another box."""
        return Box(
            max(self.x0 - margin, within.x0),
            max(self.y0 - margin, within.y0),
            min(self.x1 + margin, within.x1),
            min(self.y1 + margin, within.y1),
        )


@dataclass(frozen=True)
class Selection:
    """Why sources are left out, each of shape (n,)."""

    excluded_crop: Bools
    excluded_saturation: Bools

    @property
    def excluded_any(self) -> Bools:
        """Left out for any reason."""
        return self.excluded_crop | self.excluded_saturation


def crop_box(shape: tuple[int, int], margin: int) -> Box:
    """Return the frame without ``margin`` pixels along each edge.

    Raises
    ------
    PhotometryInputError
        If nothing is left.
    """
    height, width = shape
    if 2 * margin >= min(height, width):
        msg = (
            f"job.crop.margin={margin} leaves nothing of frames of {width}x{height} pixels; "
            "make it smaller or set job.crop.enabled=false"
        )
        raise PhotometryInputError(msg)
    return Box(margin, margin, width - margin, height - margin)


def near_saturated(frames: FrameSet, sources: Sources, radius: float, *, require_all_bands: bool = False) -> Bools:
    """Say which sources have a saturated pixel within a radius.

    Parameters
    ----------
    frames
        The planes.
    sources
        Positions off the image are never near.
    radius
        Pixels between the source's position and the centre of the saturated pixel, at most.
    require_all_bands
        True if it must be so in every band, False if any band is enough.

    Returns
    -------
    numpy.ndarray
        Shape (n,).
    """
    from scipy.spatial import cKDTree

    finite = np.isfinite(sources.x) & np.isfinite(sources.y)
    positions = np.stack([sources.x[finite], sources.y[finite]], axis=1)
    near = np.zeros((len(frames.flags), len(sources.x)), bool)
    for band, flags in enumerate(frames.flags):
        rows, columns = np.nonzero(flags & SATURATED)
        if rows.size:
            distance, _ = cKDTree(np.stack([columns, rows], axis=1)).query(positions)
            near[band, finite] = distance <= radius
    return np.asarray(near.all(axis=0) if require_all_bands else near.any(axis=0))


def require_sources(selection: Selection, catalog: str, box: Box) -> None:
    """Check that something is left to measure.

    Raises
    ------
    PhotometryInputError
        Naming the filter that took the sources.
    """
    n = len(selection.excluded_crop)
    off, saturated = int(selection.excluded_crop.sum()), int(selection.excluded_saturation.sum())
    if off == n:
        msg = (
            f"none of the {n} sources of catalog {catalog} lies on the frame (pixels {box.x0}…{box.x1 - 1}, "
            f"{box.y0}…{box.y1 - 1} after the crop); give the catalog of this field, and check job.crop.margin, "
            "the WCS, and job.inputs.pixel_origin"
        )
        raise PhotometryInputError(msg)
    if selection.excluded_any.all():
        msg = (
            f"no source of catalog {catalog} is left: {off} are off the frame and {saturated} near saturated pixels; "
            "check job.headers.saturation and job.source_saturation_cut"
        )
        raise PhotometryInputError(msg)
