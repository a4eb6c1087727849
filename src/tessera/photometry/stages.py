"""The stages of the photometry job: units in, files out. The numbers come from the algorithm modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hpc.job import Arrays, Map, Results, Unit
from hpc.store.atomic import write_atomically
from tessera.photometry import output
from tessera.photometry.catalog import Catalog, take
from tessera.photometry.epsf import CellPsf, build_cell, field_of_cells
from tessera.photometry.fit import fit_patch
from tessera.photometry.frames import FrameSet
from tessera.photometry.headers import FrameHeader
from tessera.photometry.options import PhotometryOptions
from tessera.photometry.patches import Patch, cell_keys, cut_patches, patch_pixels
from tessera.photometry.psf import PsfField
from tessera.photometry.psf_files import write_grid
from tessera.photometry.psf_grids import gaussian_field, moffat_field
from tessera.photometry.select import Box, Selection
from tessera.photometry.sources import FitOptions, PatchFit
from tessera.photometry.white import row_chunks, white_rows

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from hpc.context import Context

_DISPLAY_PIXELS: Final = 1500
_BEYOND_PSF: Final = 2
"""Pixels beyond half a PSF stamp from which a source may still shine in: positions move during the fit."""


@dataclass(frozen=True)
class Field:
    """The loaded inputs; the planes are shared by the ranks of a node."""

    options: PhotometryOptions
    headers: tuple[FrameHeader, ...]
    gains: NDArray[np.float64]
    frames: FrameSet
    catalog: Catalog
    selection: Selection
    box: Box
    cells: list[list[Box]]
    psfs: tuple[PsfField, ...]

    @property
    def bands(self) -> list[str]:
        """Names of the bands, in the order of the planes."""
        return [header.band for header in self.headers]

    @property
    def wcs(self) -> WCS | None:
        """Of the first frame, which is that of all."""
        return self.headers[0].wcs

    @property
    def active(self) -> NDArray[np.bool_]:
        """The sources that are measured."""
        return ~self.selection.excluded_any

    def analytic_psf(self, band: int) -> PsfField:
        """Return the profile that stands in for an empirical PSF."""
        moffat, size = self.options.moffat_psf, self.options.epsf.final_psf_size
        fwhm = self.headers[band].fwhm_pix or moffat.fwhm_default_pix
        if self.options.epsf.source == "gaussian":
            return gaussian_field(fwhm, size)
        return moffat_field(fwhm, moffat.beta, size)

    def patches(self) -> list[Patch]:
        """Return the patches that measure something."""
        options = self.options
        size, halo = options.patches.patch_size, options.patches.halo_pix_min
        halves = [psf.stamps.shape[-1] // (2 * psf.oversampling) for psf in self.psfs]
        reach = max(halves, default=options.epsf.final_psf_size // 2) + _BEYOND_PSF
        return cut_patches(self.box, size, halo, reach, self.catalog.sources, self.active, self.frames.shape)


class Loaded(Protocol):
    """The job, as far as its stages need it."""

    @property
    def field(self) -> Field:
        """The loaded inputs."""
        ...


class WhiteStage(Map):
    """All bands in one image, by chunks of rows."""

    name = "white"

    def __init__(self, job: Loaded) -> None:
        self._job = job

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List the chunks."""
        del ctx
        chunks = row_chunks(self._job.field.frames.shape[0])
        return [Unit(f"rows-{first:06d}-{end:06d}", end - first) for first, end in chunks]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Stack one chunk."""
        first, end = (int(n) for n in unit.key.split("-")[1:])
        setting = self._job.field.options.performance.white_stack_workers
        workers = ctx.threads if setting == "auto" else min(setting, ctx.threads)
        white, sigma = white_rows(self._job.field.frames, first, end, max(1, workers))
        return {"white": white, "sigma": sigma}

    def merge(self, results: Results, ctx: Context) -> None:
        """Write ``white.fits``, and a small copy with all sources for the overlay."""
        field = self._job.field
        height, width = field.frames.shape
        white, sigma = np.full((height, width), np.nan, np.float32), np.full((height, width), np.inf, np.float32)
        for key, arrays in results.items():
            first, end = (int(n) for n in key.split("-")[1:])
            white[first:end], sigma[first:end] = arrays["white"], arrays["sigma"]
        path = ctx.results_dir / "white.fits"
        write_atomically(path, lambda p: output.write_white(p, white, sigma, field.wcs))
        with ctx.timed("overlay"):
            overlay = _overlay(field, white)
            attributes = {"bands": field.bands, "downsample": _step(field)}
            path = ctx.results_dir / "overlay.h5"
            write_atomically(path, lambda p: output.write_diagnostics(p, attributes, [("overlay", overlay)]))


def _step(field: Field) -> int:
    return display_step(field.options.diagnostics.display_downsample, field.frames.shape)


def display_step(setting: int | Literal["auto"], shape: tuple[int, int]) -> int:
    """Return every how many pixels of the white stack are shown; ``auto``: at most 1500 to a side."""
    return -(-max(shape) // _DISPLAY_PIXELS) if setting == "auto" else setting


def _overlay(field: Field, white: NDArray[np.float32]) -> Arrays:
    step = _step(field)
    box = field.box
    return {
        "white": white[::step, ::step],
        "x": field.catalog.sources.x,
        "y": field.catalog.sources.y,
        "excluded_crop": field.selection.excluded_crop,
        "excluded_saturation": field.selection.excluded_saturation,
        "box": np.array([box.x0, box.y0, box.x1, box.y1]),
    }


class EpsfStage(Map):
    """One PSF per band and grid cell, from the stars in it."""

    name = "epsf"

    def __init__(self, job: Loaded) -> None:
        self._job = job

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List the cells; those without a source to measure are left out unless asked for."""
        field = self._job.field
        keys = cell_keys(field.bands, field.cells)
        x, y = field.catalog.sources.x[field.active], field.catalog.sources.y[field.active]
        skip = field.options.epsf.skip_empty_epsf_patches
        chosen = [k for k, (_, cell) in keys.items() if not skip or cell.holds(x, y).any()]
        ctx.log.info("Active ePSF cells: %d/%d", len(chosen), len(keys))
        return [Unit(key) for key in chosen]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Build the PSF of one cell."""
        field = self._job.field
        band, cell = cell_keys(field.bands, field.cells)[unit.key]
        # Sums in BLAS depend on its number of threads, and the PSF must not.
        with threadpool_limits(limits=1, user_api="blas"):
            built = build_cell(
                field.frames.image[band],
                field.frames.sky_variance[band],
                float(field.gains[band]),
                cell,
                field.catalog.sources,
                field.analytic_psf(band),
                field.options.epsf,
            )
        if not built.ok:
            ctx.log.warning("ePSF %s: %s; an analytic or a neighbour's PSF is used", unit.key, built.reason)
        return built.arrays()

    def merge(self, results: Results, ctx: Context) -> None:
        """Write each band's PSFs as a grid that can be given back, and what is known of each cell."""
        field = self._job.field
        for b, band in enumerate(field.bands):
            psf = field_of_band(field, b, results)[0]
            path = ctx.results_dir / f"epsf_{band}.fits"
            write_atomically(path, lambda p, f=psf, name=band: write_grid(p, f, name))  # type: ignore[misc]
        path = ctx.results_dir / "epsf.h5"
        attributes = {"bands": field.bands, "cells_per_side": len(field.cells)}
        write_atomically(path, lambda p: output.write_diagnostics(p, attributes, results.items()))


def field_of_band(field: Field, band: int, results: Results) -> tuple[PsfField, NDArray[np.bool_]]:
    """Return the PSF of a band from the cells' results, and at which cells it is not their own."""
    built = []
    for r, row in enumerate(field.cells):
        keys = [f"{field.bands[band]}/r{r:02d}_c{c:02d}" for c in range(len(row))]
        built.append([CellPsf.from_arrays(results[key]) if key in results else None for key in keys])
    return field_of_cells(field.cells, built, field.analytic_psf(band))


class PatchStage(Map):
    """The simultaneous fit of all bands, patch by patch."""

    name = "patches"

    def __init__(self, job: Loaded) -> None:
        self._job = job
        self._psfs: list[PsfField] = []
        self._patches: dict[str, Patch] = {}

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List the patches that have a source to measure."""
        del ctx
        return [Unit(patch.key, patch.cost) for patch in self._job.field.patches()]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Fit one patch."""
        field = self._job.field
        self._prepare(field, ctx)
        patch = self._patches[unit.key]
        rows = np.concatenate([patch.own, patch.halo])
        pixels = patch_pixels(field.frames, field.gains, patch.roi)
        run = field.options.patch_run
        options = FitOptions(
            n_opt_iters=run.n_opt_iters,
            dlnp_stop=run.dlnp_stop,
            pos_max_shift_pix=run.pos_max_shift_pix,
            fit_sky=run.fit_sky,
            fit_shapes=run.fit_shapes,
        )
        fit = fit_patch(pixels, take(field.catalog.sources, rows), self._psfs, options, ctx.threads)
        result = _own_results(patch, fit)
        if unit.key in self._shown:
            result |= _pictures(field, patch, fit)
        return result

    def _prepare(self, field: Field, ctx: Context) -> None:
        """Collect the PSFs and the patches at the first unit of this rank."""
        if self._patches:
            return
        patches = field.patches()
        most = sorted(patches, key=lambda p: (-len(p.own), p.key))[: field.options.diagnostics.save_models]
        self._shown = {p.key for p in most}
        self._psfs = [psf for psf, _ in psf_fields(field, ctx)]
        self._patches = {p.key: p for p in patches}

    def merge(self, results: Results, ctx: Context) -> None:
        """Write the catalog (ECSV and FITS) and the diagnostics (HDF5)."""
        field = self._job.field
        measured = output.collect(
            results.items(), len(field.catalog), len(field.bands), max((len(k) for k in results), default=1)
        )
        fallback = {
            band: _at_sources(field, cells)
            for band, (_, cells) in zip(field.bands, psf_fields(field, ctx), strict=True)
        }
        zp_ref = field.options.image_scaling.zp_ref
        table = output.build_catalog(field.catalog, field.selection, measured, field.bands, field.wcs, zp_ref, fallback)
        for suffix, kind in (("ecsv", "ascii.ecsv"), ("fits", "fits")):
            path = ctx.results_dir / f"catalog.{suffix}"
            write_atomically(path, lambda p, k=kind: output.write_table(p, table, k))  # type: ignore[misc]
        attributes = {"bands": field.bands, "zp_ref": zp_ref, "shape": list(field.frames.shape)}
        path = ctx.results_dir / "photometry.h5"
        write_atomically(path, lambda p: output.write_diagnostics(p, attributes, _groups(field, results)))
        _log_fits(measured, ctx)


def psf_fields(field: Field, ctx: Context) -> list[tuple[PsfField, NDArray[np.bool_]]]:
    """Return per band the PSF and the cells, shape (rows, columns), at which it is not an empirical one."""
    cells = (len(field.cells), len(field.cells[0]))
    if field.options.epsf.source == "build":
        results = ctx.results("epsf")
        return [field_of_band(field, b, results) for b in range(len(field.bands))]
    if field.psfs:
        return [(psf, np.zeros(cells, bool)) for psf in field.psfs]
    return [(field.analytic_psf(b), np.ones(cells, bool)) for b in range(len(field.bands))]


def _at_sources(field: Field, cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    values = np.zeros(len(field.catalog), bool)
    x, y = field.catalog.sources.x, field.catalog.sources.y
    for row, flags in zip(field.cells, cells, strict=True):
        for cell, flag in zip(row, flags, strict=True):
            values[cell.holds(x, y)] = flag
    return values


def _own_results(patch: Patch, fit: PatchFit) -> dict[str, NDArray[Any]]:
    own = slice(len(patch.own))
    result: dict[str, NDArray[Any]] = {"rows": patch.own, "n_halo": np.array(len(patch.halo))}
    for name in (*output.PER_SOURCE, *output.PER_BAND, *output.FLAGS, "niters", "npix"):
        result[name] = np.asarray(getattr(fit, name))[own]
    base, roi = patch.base, patch.roi
    return result | {
        "sky": fit.sky,
        "sky_err": fit.sky_err,
        "base": np.array([base.x0, base.y0, base.x1, base.y1]),
        "roi": np.array([roi.x0, roi.y0, roi.x1, roi.y1]),
    }


def _pictures(field: Field, patch: Patch, fit: PatchFit) -> dict[str, NDArray[Any]]:
    base, roi = patch.base, patch.roi
    inner = (slice(None), slice(base.y0 - roi.y0, base.y1 - roi.y0), slice(base.x0 - roi.x0, base.x1 - roi.x0))
    pixels = patch_pixels(field.frames, field.gains, base)
    sigma = np.sqrt(pixels.sky_variance)
    return {
        "image": np.where(np.isfinite(sigma), pixels.image, np.nan).astype(np.float32),
        "model": fit.model[inner].astype(np.float32),
        "sigma": sigma.astype(np.float32),
    }


def _groups(field: Field, results: Results) -> Iterator[tuple[str, Arrays]]:
    measures = field.frames.measures
    yield (
        "frames",
        {
            "band": np.array(field.bands),
            "file": np.array([h.entry.image.name for h in field.headers]),
            "sky_sigma": measures[:, 0],
            "sky_level": measures[:, 1],
            "n_bad": measures[:, 2],
            "n_saturated": measures[:, 3],
            "gain": field.gains,
        },
    )
    for key, arrays in results.items():
        yield f"patches/{key}", arrays


def _log_fits(measured: output.Measurements, ctx: Context) -> None:
    fitted = measured.patch != ""
    ctx.log.info(
        "Fit summary: converged=%d hit_max_iters=%d total=%d",
        np.count_nonzero(measured.values["converged"] & fitted),
        np.count_nonzero(measured.values["hit_max_iters"] & fitted),
        np.count_nonzero(fitted),
    )
