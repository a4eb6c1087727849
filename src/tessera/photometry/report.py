"""The photometry part of a run's report page: what was measured, how well, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hpc.report.view import Figure, RunView, Section, Table
from tessera.photometry import plot_charts, plot_images
from tessera.photometry import report_captions as captions
from tessera.photometry.plot_charts import BandFluxes
from tessera.photometry.report_data import (
    Cell,
    Frames,
    PatchRecord,
    Picture,
    join_pictures,
    read_catalog,
    read_cells,
    read_frames,
    read_overlay,
    read_patches,
    read_pictures,
    read_truth,
)

if TYPE_CHECKING:
    from astropy.table import Table as Catalog

Bools = NDArray[np.bool_]

_ALONE: Final = 0.01
"""Share of others' light up to which a source counts as alone."""
_WORST: Final = 10
_SHOWN_PATCHES: Final = 3
_LISTED_CELLS: Final = 60
_JOINED_SHARE: Final = 0.9
"""Of the patches, from which on data and model are shown as one picture of the field."""


def sections(run: RunView) -> list[Section]:
    """Return the sections, from the files under ``results``; what is not there yet is left out.

    Parameters
    ----------
    run
        The run, finished or not.

    Returns
    -------
    list of Section
        In the order of the page.
    """
    results = run.results_dir
    catalog, frames, patches = read_catalog(results), read_frames(results), read_patches(results)
    cells = read_cells(results)
    if catalog is None or frames is None:
        text = "The sources are not measured yet; these pictures come with the catalog. tessera report draws them anew."
        return [Section("Photometry", text), *psf_sections(cells, ""), *_timing(run.timings)]
    truth_file = run.config.get("job", {}).get("inputs", {}).get("truth")
    truth = read_truth(Path(truth_file), catalog["ID"]) if truth_file else None
    bands = [_fluxes(catalog, band, b, frames, cells, truth) for b, band in enumerate(frames.bands)]
    source = str(run.config.get("job", {}).get("epsf", {}).get("source", "build"))
    return [
        _field(results, catalog, frames),
        _residuals(results, patches, frames),
        _errors(bands, frames.zp_ref),
        *_truth(bands, truth_file, found=truth is not None),
        *psf_sections(cells, source),
        _frames(frames, bands),
        *_timing(run.timings),
    ]


def _fluxes(
    catalog: Catalog, band: str, number: int, frames: Frames, cells: Sequence[Cell], truth: Mapping[str, Any] | None
) -> BandFluxes:
    flux, error, chi2, neighbours = (
        np.asarray(catalog[f"{name}_{band}_fit"], float) for name in ("FLUX", "FLUXERR", "CHI2", "FRACFLUX")
    )
    areas = [c.oversampling**2 / np.sum(c.stamp**2) for c in cells if c.ok and c.band == band]
    floor = frames.sky_sigma[number] ** 2 * float(np.median(areas)) if areas else np.nan
    return BandFluxes(
        band=band,
        flux=flux,
        error=error,
        chi2=chi2,
        galaxy=np.isin(_texts(catalog["stype_fit"]), ("EXP", "DEV")),
        alone=neighbours < _ALONE,
        true=None if truth is None else truth.get(band),
        floor=float(floor),
        gain=float(frames.gain[number]),
    )


def _texts(column: NDArray[Any]) -> NDArray[np.str_]:
    return np.char.strip(np.asarray(column).astype(str))


def _field(results: Path, catalog: Catalog, frames: Frames) -> Section:
    kind = _texts(catalog["stype_fit"])
    excluded, fitted = np.asarray(catalog["excluded_any"]), kind != ""
    doubtful = fitted & ~np.asarray(catalog["fit_is_reliable"])
    groups = {
        "stars": kind == "STAR",
        "galaxies": fitted & (kind != "STAR"),
        "doubtful": doubtful,
        "excluded": excluded,
    }
    overlay = read_overlay(results)
    figures = []
    if overlay is not None:
        x, y = (np.asarray(catalog[f"{axis}_pix_white"], float) for axis in "xy")
        figures.append(Figure(plot_images.field_image(overlay, x, y, groups), captions.FIELD))
    bands = f"{len(frames.bands)} bands" if len(frames.bands) > 1 else "1 band"
    text = f"{np.count_nonzero(fitted)} of {len(catalog)} sources were measured in {bands}; "
    if doubtful.any():
        text += f"{np.count_nonzero(doubtful)} of the fits are doubtful; fit_quality_issues in the catalog says why."
    else:
        text += "all fits are reliable."
    return Section("Sources", text, [_counts(catalog, frames, fitted, doubtful)], figures)


def _counts(catalog: Catalog, frames: Frames, fitted: Bools, doubtful: Bools) -> Table:
    def count(name: str) -> int:
        return int(np.count_nonzero(np.asarray(catalog[name]) & fitted))

    rows: list[tuple[str, object, str]] = [
        ("in the catalog", len(catalog), ""),
        ("off the cropped frame", int(np.sum(catalog["excluded_crop"])), "not measured"),
        ("near saturated pixels", int(np.sum(catalog["excluded_saturation"])), "not measured"),
        ("fitted", int(fitted.sum()), ""),
        ("converged", count("opt_converged"), ""),
        ("cut off at n_opt_iters", count("opt_hit_max_iters"), "raise job.patch_run.n_opt_iters if many"),
        ("resting on a bound", count("flag_bound_stalled"), "position or radius wanted to go further"),
        ("degenerate", count("flag_degenerate"), "cannot be told from a neighbour"),
        ("doubtful in any way", int(doubtful.sum()), "fit_is_reliable is false"),
    ]
    for band in frames.bands:
        lost = fitted & ~np.isfinite(np.asarray(catalog[f"FLUX_{band}_fit"], float))
        rows.append((f"without a flux in {band}", int(lost.sum()), "on bad pixels"))
    rows.extend(
        (f"with a fallback PSF in {band}", count(f"psf_fallback_{band}"), "no empirical PSF of their cell")
        for band in frames.bands
    )
    always = ("in the catalog", "fitted", "converged")
    return Table(("sources", "number", ""), [row for row in rows if row[1] or row[0] in always])


def _residuals(results: Path, patches: Sequence[PatchRecord], frames: Frames) -> Section:
    pictures = _pictures(results, patches, frames)
    figures = []
    if pictures:
        figures.append(Figure(plot_images.data_model_residual(pictures), captions.RESIDUAL))
        pulls = {
            band: _finite(np.concatenate([p.pulls[b].ravel() for p in pictures])) for b, band in enumerate(frames.bands)
        }
        figures.append(Figure(plot_charts.pixel_pulls(pulls), captions.PIXEL_PULLS))
    figures.append(Figure(plot_images.patch_map(patches, frames.shape), captions.PATCHES))
    return Section("Data against model", "", [_worst(patches)], figures)


def _pictures(results: Path, patches: Sequence[PatchRecord], frames: Frames) -> list[Picture]:
    """Return the field as one picture where (nearly) all patches were kept, else those that fit worst."""
    kept = [patch for patch in patches if patch.pictured]
    if len(kept) >= _JOINED_SHARE * len(patches) and kept:
        parts = read_pictures(results, [patch.key for patch in kept], frames.gain)
        return [join_pictures([(p.base, picture) for p, picture in zip(kept, parts, strict=True)], "field")]
    worst = sorted(kept, key=lambda patch: -np.nan_to_num(patch.typical_chi2))[:_SHOWN_PATCHES]
    return list(read_pictures(results, [patch.key for patch in worst], frames.gain))


def _finite(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(values[np.isfinite(values)])


def _worst(patches: Sequence[PatchRecord]) -> Table:
    worst = sorted(patches, key=lambda patch: -abs(np.log(patch.typical_chi2)) if patch.typical_chi2 > 0 else 0.0)
    rows = []
    for patch in worst[:_WORST]:
        sky = patch.sky_pull[np.isfinite(patch.sky_pull)]
        x0, y0, x1, y1 = patch.base
        most = round(float(np.nanmax(patch.chi2)), 3) if np.isfinite(patch.chi2).any() else None
        rows.append(
            (
                patch.key,
                f"{x0}…{x1 - 1}, {y0}…{y1 - 1}",
                patch.n_own,
                patch.n_halo,
                round(patch.typical_chi2, 3),
                most,
                patch.unconverged,
                round(float(sky[np.argmax(np.abs(sky))]), 2) if sky.size else None,
            )
        )
    columns = ("patch", "pixels x, y", "sources", "in its halo", "median χ²", "largest χ²", "not converged", "sky, σ")
    caption = (
        f"The {len(rows)} patches (of {len(patches)}) whose χ² is furthest from 1; sky: the fitted constant over its "
        "error in the band where it is largest. Many σ in all patches: the sky is not subtracted "
        "(job.background.subtract); in one: light that no source of the catalog accounts for."
    )
    return Table(columns, rows, caption)


def _errors(bands: Sequence[BandFluxes], zp_ref: float) -> Section:
    figures = [
        Figure(plot_charts.magnitude_errors(bands, zp_ref), captions.MAGNITUDE_ERRORS),
        Figure(plot_charts.chi2_histogram(bands), captions.CHI2),
    ]
    return Section("Errors", figures=figures)


def _truth(bands: Sequence[BandFluxes], file: str | None, *, found: bool) -> list[Section]:
    if file is None:
        return []
    if not found:
        return [
            Section("Against the truth", f"{file}, named by job.inputs.truth, is not there, so nothing is compared.")
        ]
    known = [band for band in bands if band.true is not None]
    if not known:
        return [Section("Against the truth", f"{file} has no column FLUX_<band> of these bands.")]
    rows = [
        _truth_row(band, name, chosen)
        for band in known
        for name, chosen in (
            ("stars alone", ~band.galaxy & band.alone),
            ("stars with neighbours", ~band.galaxy & ~band.alone),
            ("galaxies", band.galaxy),
        )
    ]
    columns = ("band", "sources", "number", "flux bias, %", "scatter, %", "mean pull", "spread of pulls")
    caption = (
        "Bias: median of measured/true - 1; scatter: 1.48 times its median absolute deviation; pull: "
        f"(measured - true) / quoted error. Alone: less than {100 * _ALONE:g} % of others' light."
    )
    figures = [
        Figure(plot_charts.flux_pulls(known), captions.FLUX_PULLS),
        Figure(plot_charts.flux_ratios(known), captions.FLUX_RATIOS),
    ]
    return [Section("Against the truth", "", [Table(columns, rows, caption)], figures)]


def _truth_row(band: BandFluxes, name: str, chosen: Bools) -> tuple[object, ...]:
    pull = plot_charts.flux_pull(band)
    use = chosen & np.isfinite(pull)
    if band.true is None or not use.any():
        return (band.band, name, 0, None, None, None, None)
    relative = band.flux[use] / band.true[use] - 1
    bias = float(np.median(relative))
    scatter = 1.4826 * float(np.median(np.abs(relative - bias)))
    numbers = (100 * bias, 100 * scatter, float(pull[use].mean()), float(pull[use].std()))
    return (band.band, name, int(use.sum()), *(round(number, 2) for number in numbers))


def psf_sections(cells: Sequence[Cell], source: str) -> list[Section]:
    """Return what is to be said of the PSFs; nothing if they are still to be built.

    Parameters
    ----------
    cells
        Those that were built or failed.
    source
        The option ``epsf.source``.
    """
    if not cells:
        text = {
            "file": "The PSFs were read from files (job.epsf.files), not built.",
            "moffat": "An analytic Moffat profile was used everywhere (job.epsf.source).",
            "gaussian": "An analytic Gaussian was used everywhere (job.epsf.source).",
        }.get(source)
        return [Section("Point-spread functions", text)] if text else []
    failed = [cell for cell in cells if not cell.ok]
    text = f"{len(cells) - len(failed)} of {len(cells)} cells have an empirical PSF."
    if failed:
        text += " The others take that of the nearest good cell of their band, or an analytic profile if there is none."
    figures = [Figure(plot_images.psf_gallery(cells), captions.PSF_CORES)]
    if any(cell.ok for cell in cells):
        figures.append(Figure(plot_images.psf_profiles(cells), captions.PSF_PROFILES))
    return [Section("Point-spread functions", text, [_psf_table(cells)], figures)]


def _psf_table(cells: Sequence[Cell]) -> Table:
    listed = cells if len(cells) <= _LISTED_CELLS else [cell for cell in cells if not cell.ok][:_LISTED_CELLS]
    rows = [
        (
            cell.band,
            f"row {cell.row}, column {cell.column}",
            cell.nstars,
            *(round(v, 3) if cell.ok else None for v in (cell.fwhm, cell.ellipticity, *cell.ee_radii)),
            cell.reason,
        )
        for cell in listed
    ]
    columns = ("band", "cell", "stars", "FWHM, pix", "1 − b/a", "50 %", "80 %", "90 % light, pix", "remark")
    caption = "FWHM and 1 − b/a at half of the maximum; then the radii that hold so much of the light."
    if len(listed) < len(cells):
        caption += f" Only cells without a PSF of their own are listed; results/epsf.h5 has all {len(cells)}."
    return Table(columns, rows, caption)


def _frames(frames: Frames, bands: Sequence[BandFluxes]) -> Section:
    rows = []
    for b, band in enumerate(frames.bands):
        deepest = frames.zp_ref - 2.5 * np.log10(5 * np.sqrt(bands[b].floor)) if bands[b].floor > 0 else None
        rows.append(
            (
                band,
                frames.files[b],
                float(frames.sky_sigma[b]),
                float(frames.sky_level[b]),
                float(frames.gain[b]),
                int(frames.n_bad[b]),
                int(frames.n_saturated[b]),
                None if deepest is None else round(float(deepest), 2),
            )
        )
    columns = ("band", "file", "sky noise", "subtracted sky", "gain", "bad pixels", "saturated pixels", "5 σ depth")
    caption = (
        f"Frames of {frames.shape[1]} x {frames.shape[0]} pixels. Noise (counts) and gain (electrons per count) at the "
        f"common zero point {frames.zp_ref:g}, sky in the frame's own counts; depth: AB magnitude of a lone star at "
        "five times the noise of the sky."
    )
    return Section("Frames", tables=[Table(columns, rows, caption)])


def _timing(timings: Mapping[str, float]) -> list[Section]:
    if not timings:
        return []
    names = ("prep", "white", "crop", "sat", "overlay")
    inputs = [float(timings.get(name, 0.0)) for name in names]
    stages = [float(timings.get(name, 0.0)) for name in ("epsf", "patches")]
    everything = float(sum(timings.get(name, 0.0) for name in ("setup", "white", "epsf", "patches")))
    columns = (*names, "total", "epsf", "patches", "whole run")
    row = [f"{seconds:.2f}" for seconds in (*inputs, sum(inputs), *stages, everything)]
    return [Section("Timing", tables=[Table(columns, [row], captions.TIMING)])]
