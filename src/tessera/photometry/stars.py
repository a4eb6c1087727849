"""Finding the stars that show the PSF, and cutting them out without the light of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.fit import fit_patch
from tessera.photometry.options import EpsfOptions
from tessera.photometry.psf import PsfField
from tessera.photometry.select import Box
from tessera.photometry.sources import FitOptions, Kind, PatchPixels, Sources

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_DETECT_SIGMA: Final = 2.5
_MATCH_PIX: Final = 2.5
_SIZE_RANGE: Final = 1.15
_FWHM_OF_HALF_LIGHT: Final = 1.66
_CLEANING: Final = FitOptions(n_opt_iters=4, dlnp_stop=0.5, pos_max_shift_pix=2.0, fit_shapes=False)
"""Neighbours need only be known to a fraction of their noise."""


@dataclass(frozen=True)
class Detections:
    """What stands out of the noise in a region; positions in frame pixels, one row per object.

    Attributes
    ----------
    x, y, flux, peak
        Barycentre, isophotal flux, highest pixel.
    elongation
        a / b.
    radius
        Of the circle around the position with half the light, pixels.
    flag
        SExtractor's flags.
    """

    x: Floats
    y: Floats
    flux: Floats
    peak: Floats
    elongation: Floats
    radius: Floats
    flag: NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """A cut-out of one band around a grid cell.

    Attributes
    ----------
    box
        Its pixels in the frame.
    image, variance
        Shape of the box, float64; variance is that of the sky, inf on bad pixels.
    gain
        Electrons per reference count.
    """

    box: Box
    image: Floats
    variance: Floats
    gain: float

    @property
    def good(self) -> Bools:
        """Pixels that can be used."""
        return np.isfinite(self.variance)

    def pixels(self) -> PatchPixels:
        """Return the region as a patch of one band."""
        return PatchPixels(self.box.x0, self.box.y0, self.image[None], self.variance[None], np.array([self.gain]))


@dataclass(frozen=True)
class Stamps:
    """Stars cut out around their nearest pixel.

    Attributes
    ----------
    data, sigma
        Shape (n, s, s): counts, and standard deviation with the star's own Poisson noise, inf on bad pixels and
        off the frame.
    x, y
        Position of each star from the centre of its middle pixel, shape (n,).
    frame_x, frame_y
        The same in frame pixels.
    flux
        Counts, shape (n,).
    """

    data: Floats
    sigma: Floats
    x: Floats
    y: Floats
    frame_x: Floats
    frame_y: Floats
    flux: Floats

    def __len__(self) -> int:
        return len(self.flux)

    def take(self, rows: Bools | NDArray[np.intp]) -> Stamps:
        """Return some of the stars."""
        return Stamps(
            self.data[rows], self.sigma[rows], self.x[rows], self.y[rows],
            self.frame_x[rows], self.frame_y[rows], self.flux[rows],
        )  # fmt: skip


def cut_region(image: NDArray[np.float32], variance: NDArray[np.float32], gain: float, box: Box) -> Region:
    """Cut a region out of a band's planes, as copies in float64."""
    window = slice(box.y0, box.y1), slice(box.x0, box.x1)
    return Region(box, image[window].astype(np.float64), variance[window].astype(np.float64), gain)


def detect(region: Region, minarea: int) -> Detections:
    """Detect objects with SExtractor's algorithm (Bertin & Arnouts 1996; Barbary 2016 for ``sep``)."""
    import sep

    bad = ~region.good
    sigma = np.sqrt(np.where(bad, 1.0, region.variance))
    found = sep.extract(
        np.ascontiguousarray(region.image), _DETECT_SIGMA, err=sigma, mask=bad, minarea=min(minarea, 5),
        deblend_nthresh=32, deblend_cont=0.001,
    )  # fmt: skip
    radius, _ = sep.flux_radius(
        np.ascontiguousarray(region.image), found["x"], found["y"], np.maximum(4 * found["a"], 6.0), 0.5, mask=bad
    )
    flux = np.asarray(found["flux"], np.float64)
    return Detections(
        x=found["x"] + region.box.x0,
        y=found["y"] + region.box.y0,
        flux=flux,
        peak=np.asarray(found["peak"], np.float64),
        elongation=found["a"] / np.maximum(found["b"], 1e-9),
        radius=np.asarray(radius, np.float64),
        flag=np.asarray(found["flag"], np.int64),
    )


def stellar_width(region: Region, found: Detections, sources: Sources, options: EpsfOptions) -> float:
    """Return the FWHM, pixels, of what is most common among bright round objects; NaN if there are too few.

    A Moffat profile of power 3.5 has its FWHM at 1.66 times its half-light radius.
    """
    low, high = options.q_range
    bright = found.peak > options.thresh_sigma * _sky_sigma(region)
    candidates = bright & (found.elongation >= low) & (found.elongation <= high) & ~_catalog_galaxies(found, sources)
    stars = _compact(found.radius, candidates & (found.radius > 0))
    if np.count_nonzero(stars) < options.min_epsf_nstars_for_use:
        return np.nan
    return float(_FWHM_OF_HALF_LIGHT * np.median(found.radius[stars]))


def _sky_sigma(region: Region) -> float:
    return float(np.sqrt(np.median(region.variance[region.good]))) if region.good.any() else np.inf


def choose_stars(
    region: Region, cell: Box, found: Detections, sources: Sources, fwhm: float, options: EpsfOptions
) -> NDArray[np.intp]:
    """Choose the detections that show the PSF, brightest first.

    A star lies in the cell, stands ``thresh_sigma`` out of the sky with a signal-to-noise ratio of ``min_snr``, is
    round (``q_range``) and of the size that most have, is no galaxy of the catalog, has no bad or saturated pixel in
    its core, no neighbour of more than ``max_neighbor_fraction`` of its flux within the core (3 FWHM), and is
    ``min_sep`` away from brighter ones.

    Parameters
    ----------
    region, cell, found, sources
        Pixels, the cell, what was detected in the region, and the catalog.
    fwhm
        Expected width, pixels.
    options
        As named above.

    Returns
    -------
    numpy.ndarray
        Rows of ``found``.
    """
    sky = _sky_sigma(region)
    noise = np.sqrt(np.pi * (1.5 * fwhm) ** 2 * sky**2 + np.maximum(found.flux, 0) / region.gain)
    low, high = options.q_range
    good = (
        cell.holds(found.x, found.y)
        & (found.peak > options.thresh_sigma * sky)
        & (found.flux > options.min_snr * noise)
        & (found.elongation >= low)
        & (found.elongation <= high)
        & ~_catalog_galaxies(found, sources)
        & _clean_cores(region, found, fwhm, options.edge_pad)
    )
    good &= ~_crowded(found, 3 * fwhm, options.max_neighbor_fraction)
    good &= _compact(found.radius, good)
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(-found.flux[rows], kind="stable")]
    return _apart(found, rows, options.min_sep)[: options.max_stars]


def _catalog_galaxies(found: Detections, sources: Sources) -> Bools:
    from scipy.spatial import cKDTree

    galaxy = (sources.kind != Kind.STAR) & np.isfinite(sources.x)
    if not galaxy.any():
        return np.zeros(len(found.x), bool)
    tree = cKDTree(np.stack([sources.x[galaxy], sources.y[galaxy]], axis=1))
    distance, _ = tree.query(np.stack([found.x, found.y], axis=1))
    return np.asarray(distance < _MATCH_PIX)


def _clean_cores(region: Region, found: Detections, fwhm: float, edge_pad: int) -> Bools:
    """Say which objects have only good pixels within 1 FWHM (3x3 at least) and lie off the region's edge."""
    half = max(1, int(np.ceil(fwhm)))
    clean = np.zeros(len(found.x), bool)
    height, width = region.image.shape
    for i, (x, y) in enumerate(zip(found.x - region.box.x0, found.y - region.box.y0, strict=True)):
        column, row = round(x), round(y)
        margin = half + edge_pad
        if margin <= column < width - margin and margin <= row < height - margin:
            core = region.variance[row - half : row + half + 1, column - half : column + half + 1]
            clean[i] = np.isfinite(core).all()
    return clean


def _crowded(found: Detections, radius: float, fraction: float) -> Bools:
    from scipy.spatial import cKDTree

    positions = np.stack([found.x, found.y], axis=1)
    others = np.zeros(len(found.x))
    for i, j in cKDTree(positions).query_pairs(radius):
        others[i] += max(found.flux[j], 0.0)
        others[j] += max(found.flux[i], 0.0)
    return np.asarray(others > fraction * found.flux)


def _compact(radius: Floats, candidates: Bools) -> Bools:
    """Keep the candidates in the most crowded 15 % range of sizes: stars have one size, galaxies many."""
    sizes = np.sort(radius[candidates])
    if sizes.size == 0:
        return candidates
    crowd = np.searchsorted(sizes, _SIZE_RANGE * sizes, side="right") - np.arange(sizes.size)
    smallest = sizes[int(np.argmax(crowd))]  # of equal crowds the more compact one
    return np.asarray(candidates & (radius >= smallest) & (radius <= _SIZE_RANGE * smallest))


def _apart(found: Detections, rows: NDArray[np.intp], min_sep: float) -> NDArray[np.intp]:
    kept: list[int] = []
    for row in rows:
        distance = np.hypot(found.x[kept] - found.x[row], found.y[kept] - found.y[row])
        if not np.any(distance < min_sep):
            kept.append(int(row))
    return np.array(kept, np.intp)


def scene_sources(box: Box, found: Detections, sources: Sources, first: NDArray[np.intp]) -> Sources:
    """Return everything that shines in a region: the chosen stars first, then the rest of catalog and detections."""
    from scipy.spatial import cKDTree

    stars = np.stack([found.x[first], found.y[first]], axis=1)
    inside = box.holds(sources.x, sources.y)
    listed = np.stack([sources.x[inside], sources.y[inside]], axis=1)
    listed_rows = np.flatnonzero(inside)[cKDTree(stars).query(listed)[0] > _MATCH_PIX] if len(listed) else []
    rest = np.setdiff1d(np.arange(len(found.x)), first)
    known = np.concatenate([stars, np.stack([sources.x[inside], sources.y[inside]], axis=1)])
    unlisted = rest[cKDTree(known).query(np.stack([found.x[rest], found.y[rest]], axis=1))[0] > _MATCH_PIX]
    rows = np.asarray(listed_rows, np.intp)
    extra = np.concatenate([first, unlisted]).astype(np.intp)
    nan, count = np.full(len(extra), np.nan), len(first)

    def joined(own: Floats, listed_values: Floats) -> Floats:
        return np.concatenate([own[:count], listed_values[rows], own[count:]])

    n = len(extra) + len(rows)
    return Sources(
        x=joined(found.x[extra], sources.x),
        y=joined(found.y[extra], sources.y),
        kind=joined(np.zeros(len(extra)), sources.kind.astype(np.float64)).astype(np.int64),
        flux=np.full((n, 1), np.nan),
        re=joined(nan, sources.re),
        ab=joined(nan, sources.ab),
        theta=joined(nan, sources.theta),
        position_sigma=np.full(n, np.inf),
    )


def clean_stamps(region: Region, scene: Sources, count: int, psf: PsfField, size: int) -> Stamps:
    """Fit all sources of a region and cut out the first ``count`` of them, the light of all others subtracted.

    Parameters
    ----------
    region
        Pixels.
    scene
        As `scene_sources` makes it.
    count
        Number of stars to cut out.
    psf
        The PSF as far as it is known.
    size
        Side of the stamps, odd.

    Returns
    -------
    Stamps
        In the order of ``scene``, without stars whose fit failed.
    """
    fit = fit_patch(region.pixels(), scene, [psf], _CLEANING)
    residual = region.image - fit.model[0]
    half = size // 2
    data = np.zeros((count, size, size))
    sigma = np.full((count, size, size), np.inf)
    x, y = fit.x[:count] - region.box.x0, fit.y[:count] - region.box.y0
    flux = fit.flux[:count, 0]
    usable = np.isfinite(x) & np.isfinite(y) & (flux > 0)
    columns = np.round(np.where(usable, x, 0)).astype(int)
    rows = np.round(np.where(usable, y, 0)).astype(int)
    unit = np.arange(-half, half + 1)
    for i in np.flatnonzero(usable):
        frame = (slice(rows[i] - half, rows[i] + half + 1), slice(columns[i] - half, columns[i] + half + 1))
        inside, stamp = _overlap(frame, region.image.shape)
        own = flux[i] * _drawn(psf, fit.x[i], fit.y[i], unit - (x[i] - columns[i]), unit - (y[i] - rows[i]))[stamp]
        data[i][stamp] = residual[inside] + own + fit.sky[0]
        variance = region.variance[inside] + np.maximum(own, 0) / region.gain
        sigma[i][stamp] = np.where(region.good[inside], np.sqrt(variance), np.inf)
        data[i][stamp] = np.where(region.good[inside], data[i][stamp], 0.0)
    stamps = Stamps(data, sigma, x - columns, y - rows, fit.x[:count], fit.y[:count], flux)
    return stamps.take(usable)


def _overlap(frame: tuple[slice, slice], shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    inside, stamp = [], []
    for window, length in zip(frame, shape, strict=True):
        start, stop = max(window.start, 0), min(window.stop, length)
        inside.append(slice(start, stop))
        stamp.append(slice(start - window.start, stop - window.start))
    return (inside[0], inside[1]), (stamp[0], stamp[1])


def _drawn(psf: PsfField, frame_x: float, frame_y: float, dx: Floats, dy: Floats) -> Floats:
    """Interpolate the PSF to native pixels at these offsets from the star."""
    from scipy.ndimage import map_coordinates

    stamp = psf.at(frame_x, frame_y)[0]
    centre = (stamp.shape[0] - 1) / 2
    at = np.meshgrid(dy * psf.oversampling + centre, dx * psf.oversampling + centre, indexing="ij")
    drawn: Floats = map_coordinates(stamp, at, order=3, mode="constant")
    return drawn


def without_outliers(stamps: Stamps, chi2: Floats) -> Stamps:
    """Drop stars that fit the common PSF much worse than most (binaries, cosmic rays, unresolved galaxies)."""
    middle = float(np.median(chi2))
    spread = 1.4826 * float(np.median(np.abs(chi2 - middle)))
    kept = chi2 <= middle + 5 * max(spread, 0.1 * middle)
    return stamps.take(kept)
