"""What stays the same while a patch is fitted: pixels, parameters with their bounds, and who touches whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from tessera.photometry.profiles import shape_parameters
from tessera.photometry.psf import PsfField
from tessera.photometry.render import Renderer, Stamp
from tessera.photometry.solve import Run
from tessera.photometry.sources import STAR, FitOptions, PatchPixels, Sources

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_MIN_LIGHT: Final = 1e-3
"""Share of its light that a source needs on good pixels to be drawn and measured in a band."""
_MIN_LIGHT_TO_MOVE: Final = 0.1
"""Share, in its best band, below which a source keeps its position and shape: wings alone do not fix both
where it is and how bright it is."""
_DEFAULT_RE: Final = 2.0
_MIN_AB: Final = 0.05
_MAX_SHIFT_STEP: Final = 1.0
_MAX_SHAPE_STEP: Final = 0.5
_MAX_SHEAR: Final = 3.0
"""Bound of either component of ln(a/b): thinner disks cannot be told apart on pixels."""
_SHAPE_SCALE: Final = 3.0
"""Width of ln r and eta, far wider than galaxies differ, that keeps the step of a source without light finite."""


@dataclass(frozen=True)
class Shared:
    """The parameters that all bands share: x and y of every source, ``ln r, eta1, eta2`` of some galaxies.

    Attributes
    ----------
    start
        Shape (m,), first values.
    owner
        Shape (m,), the source.
    low, high
        Shape (m,), bounds; equal where a parameter is held.
    max_step
        Shape (m,), largest change in one step.
    floor
        Shape (m,), curvature added to that of the data, far below that of any source that can be seen.
    prior_mean, prior_curvature
        Shape (m,), Gaussian priors.
    """

    start: Floats
    owner: Ints
    low: Floats
    high: Floats
    max_step: Floats
    floor: Floats
    prior_mean: Floats
    prior_curvature: Floats


@dataclass(frozen=True)
class Problem:
    """A patch ready to be fitted.

    Attributes
    ----------
    rows
        Shape (n,), index in the caller's `Sources` of the sources that can be measured in some band.
    data, variance
        Shape (B, h, w); 0 and inf on pixels that are not used.
    gain
        Shape (B,).
    kind
        Shape (n,).
    shape
        Shape (n, 3), ``ln r, eta1, eta2`` at the start.
    fits_shape
        Shape (n,), whether the shape is among the shared parameters.
    shared
        The parameters that all bands share.
    first
        Shape (n + 1,), where each source's shared parameters begin.
    usable
        Shape (n, B), whether enough of the source's light falls on good pixels.
    group
        Shape (n,): sources whose cores touch share a number.
    fit_sky
        Whether each band has a constant sky beside the sources.
    renderer
        Draws the sources.
    stamps
        Their pictures at the start.
    """

    rows: Ints
    data: Floats
    variance: Floats
    gain: Floats
    kind: Ints
    shape: Floats
    fits_shape: Bools
    shared: Shared
    first: Ints
    usable: Bools
    group: Ints
    fit_sky: bool
    renderer: Renderer
    stamps: list[Stamp]

    @property
    def sky_seen(self) -> Bools:
        """Return in which bands, shape (B,), a sky was fitted on some pixel."""
        return np.asarray(np.isfinite(self.variance).any(axis=(1, 2)) & self.fit_sky)

    def draw(self, i: int, shared: Floats, last: Stamp) -> Stamp:
        """Draw source i again, black in the bands where it is not measured."""
        own = shared[self.first[i] : self.first[i + 1]]
        fits = bool(self.fits_shape[i])
        shape = own[2:] if fits else self.shape[i]
        stamp = self.renderer.draw(int(self.rows[i]), int(self.kind[i]), own[0], own[1], shape, fits, last.half)
        stamp.maps[~self.usable[i]] = 0.0
        return stamp


def prepare(pixels: PatchPixels, sources: Sources, psfs: Sequence[PsfField], options: FitOptions, run: Run) -> Problem:
    """Sort out what can be fitted.

    Raises
    ------
    ValueError
        If the number of bands differs between pixels, sources and PSFs.
    """
    bands = len(pixels.image)
    if len(psfs) != bands or sources.flux.shape[1] != bands:
        msg = (
            f"the patch has {bands} bands, but there are {len(psfs)} PSFs and {sources.flux.shape[1]} columns "
            "of fluxes; give one of each for every band"
        )
        raise ValueError(msg)
    good = np.isfinite(pixels.image) & np.isfinite(pixels.sky_variance) & (pixels.sky_variance > 0)
    x, y = np.where(_placed(sources), [sources.x, sources.y], pixels.x0)
    renderer = Renderer(psfs, x, y, pixels.x0, pixels.y0, (pixels.image.shape[1], pixels.image.shape[2]))
    shape = _start_shapes(sources, options)
    fits_shape = (sources.kind != STAR) & options.fit_shapes

    def draw(i: int) -> Stamp:
        return renderer.draw(i, int(sources.kind[i]), x[i], y[i], shape[i], bool(fits_shape[i]))

    stamps = list(run(draw, range(len(sources))))
    light = np.array([_light(s, good) for s in stamps]).reshape(-1, bands) * _placed(sources)[:, None]
    usable = light > _MIN_LIGHT
    rows = np.flatnonzero(usable.any(axis=1))
    held = light.max(axis=1, initial=0.0) < _MIN_LIGHT_TO_MOVE
    for i in rows:
        stamps[i].maps[~usable[i]] = 0.0
    counts = np.where(fits_shape[rows], 5, 2)
    group = _groups(renderer, x[rows], y[rows], shape[rows], sources.kind[rows])
    return Problem(
        rows=rows,
        data=np.where(good, pixels.image, 0.0),
        variance=np.where(good, pixels.sky_variance, np.inf),
        gain=pixels.gain,
        kind=sources.kind[rows],
        shape=shape[rows],
        fits_shape=fits_shape[rows],
        shared=_shared(sources, rows, shape, fits_shape, held, options),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        usable=usable[rows],
        group=group,
        fit_sky=options.fit_sky,
        renderer=renderer,
        stamps=[stamps[i] for i in rows],
    )


def _placed(sources: Sources) -> Bools:
    return np.asarray(np.isfinite(sources.x) & np.isfinite(sources.y))


def _light(stamp: Stamp, good: Bools) -> Floats:
    return np.asarray(np.einsum("byx,byx->b", stamp.maps[:, 0], good[stamp.box]), dtype=np.float64)


def _start_shapes(sources: Sources, options: FitOptions) -> Floats:
    shapes = np.zeros((len(sources), 3))
    for i in np.flatnonzero(sources.kind != STAR):
        re, ab, theta = sources.re[i], sources.ab[i], sources.theta[i]
        known = np.isfinite([re, ab, theta]).all() and re > 0 and ab > 0
        if not known:
            re, ab, theta = _DEFAULT_RE, 1.0, 0.0
        shapes[i] = shape_parameters(float(re), float(np.clip(ab, _MIN_AB, 1.0)), float(theta))
        shapes[i, 0] = np.clip(shapes[i, 0], np.log(options.re_min_pix), np.log(options.re_max_pix))
    return shapes


def _shared(sources: Sources, rows: Ints, shape: Floats, fits_shape: Bools, held: Bools, options: FitOptions) -> Shared:
    columns: list[tuple[float, ...]] = []
    reach = options.pos_max_shift_pix
    shape_floor = _SHAPE_SCALE**-2
    for n, i in enumerate(rows):
        prior = float(sources.position_sigma[i]) ** -2
        columns += [
            (p, n, p - reach, p + reach, _MAX_SHIFT_STEP, (3 * reach) ** -2, p, prior)
            for p in (float(sources.x[i]), float(sources.y[i]))
        ]
        if fits_shape[i]:
            log_r, e1, e2 = map(float, shape[i])
            bounds = float(np.log(options.re_min_pix)), float(np.log(options.re_max_pix))
            columns.append((log_r, n, *bounds, _MAX_SHAPE_STEP, shape_floor, log_r, 0.0))
            round_prior = options.shear_sigma**-2
            columns += [
                (e, n, -_MAX_SHEAR, _MAX_SHEAR, _MAX_SHAPE_STEP, shape_floor, 0.0, round_prior) for e in (e1, e2)
            ]
    start, owner, low, high, *others = np.array(columns, dtype=float).reshape(-1, 8).T
    index = owner.astype(np.int64)
    stays = held[rows][index]
    return Shared(start, index, np.where(stays, start, low), np.where(stays, start, high), *others)


def _groups(renderer: Renderer, x: Floats, y: Floats, shape: Floats, kind: Ints) -> Ints:
    """Return the number of each source's group, shape (n,): sources whose cores touch share one."""
    n = len(x)
    if n == 0:
        return np.zeros(0, np.int64)
    core = np.sqrt(renderer.effective_area() / np.pi)
    radius = core + np.where(kind == STAR, 0.0, np.exp(shape[:, 0]))
    near = cKDTree(np.column_stack([x, y])).query_pairs(2 * radius.max(), output_type="ndarray")
    apart = np.hypot(x[near[:, 0]] - x[near[:, 1]], y[near[:, 0]] - y[near[:, 1]])
    links = near[apart < radius[near[:, 0]] + radius[near[:, 1]]]
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
