"""One empirical PSF per band and grid cell: a Moffat profile for the wings, photutils' ePSF for what it misses.

A stamp that is normalised to its own sum is a few per cent too low in the core as soon as a trace of sky or of a
neighbour is left in its wings, where there are most pixels and least light. Here neighbours are fitted and
subtracted, every star has a free sky level, and the flux is that of a profile with analytic wings. What the stars
show beyond that profile is added as far as it stands out of its noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.excess import with_excess
from tessera.photometry.moffat_fit import MoffatFit, fit_moffat
from tessera.photometry.options import EpsfOptions
from tessera.photometry.psf import PsfField
from tessera.photometry.psf_grids import Bilinear, moffat_field, stamp_offsets
from tessera.photometry.psf_shape import growth_curve, width_of
from tessera.photometry.select import Box
from tessera.photometry.sources import Sources
from tessera.photometry.stars import (
    Stamps,
    choose_stars,
    clean_stamps,
    cut_region,
    detect,
    scene_sources,
    stellar_width,
    without_outliers,
)

Floats = NDArray[np.float64]
Float32 = NDArray[np.float32]

EE_RADII: Final = (0.5, 0.8, 0.9)
"""Fractions of the light whose radii are reported."""
_FIT_RADIUS_FWHM: Final = 6.0
_FIRST_RADIUS_FWHM: Final = 3.0
"""Of the fits that only serve to subtract neighbours and to find outliers."""
_FIRST_BETA: Final = 3.5
_SAMPLED_FWHM: Final = 2.5
"""Pixels; narrower ones cannot be interpolated from one sample per pixel."""
_STARS_A_SAMPLE: Final = 4
"""Stars that EPSFBuilder needs for each of its samples within a pixel."""
_SANE_FWHM: Final = (0.3, 3.0)
"""A built PSF may be so much narrower or wider than the expected one."""


@dataclass(frozen=True)
class CellPsf:
    """The PSF of one band in one cell.

    Attributes
    ----------
    stamp
        Shape (m, m), as in `PsfField`; zeros if none could be built.
    nstars
        Stars it was made from.
    fwhm, beta
        Of its Moffat profile, pixels.
    x, y
        Mean position of its stars, weighted with their flux up to a limit, frame pixels.
    ee_radii
        Radii with 50, 80 and 90 % of the light, pixels.
    core_correction
        Light in the core (1 FWHM) over that of the Moffat profile alone.
    ok
        It passed the quality gate.
    reason
        Why not; or, where it did, what is to be known of it.
    """

    stamp: Floats
    oversampling: int
    nstars: int
    fwhm: float = np.nan
    beta: float = np.nan
    x: float = np.nan
    y: float = np.nan
    ee_radii: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    core_correction: float = np.nan
    ok: bool = False
    reason: str = ""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the record as named arrays."""
        return {
            "stamp": self.stamp,
            "oversampling": np.array(self.oversampling),
            "nstars": np.array(self.nstars),
            "fwhm": np.array(self.fwhm),
            "beta": np.array(self.beta),
            "centre": np.array([self.x, self.y]),
            "ee_radii": np.array(self.ee_radii),
            "core_correction": np.array(self.core_correction),
            "ok": np.array(self.ok),
            "reason": np.array(self.reason),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CellPsf:
        """Return the record that `arrays` came from."""
        return cls(
            stamp=arrays["stamp"],
            oversampling=int(arrays["oversampling"]),
            nstars=int(arrays["nstars"]),
            fwhm=float(arrays["fwhm"]),
            beta=float(arrays["beta"]),
            x=float(arrays["centre"][0]),
            y=float(arrays["centre"][1]),
            ee_radii=tuple(float(r) for r in arrays["ee_radii"]),  # type: ignore[arg-type]
            core_correction=float(arrays["core_correction"]),
            ok=bool(arrays["ok"]),
            reason=str(arrays["reason"]),
        )


def build_cell(
    image: Float32,
    variance: Float32,
    gain: float,
    cell: Box,
    sources: Sources,
    expected: PsfField,
    options: EpsfOptions,
) -> CellPsf:
    """Build the PSF of one band in one cell.

    Parameters
    ----------
    image, variance
        Planes of the band, shape (H, W); variance is that of the sky, inf on bad and saturated pixels.
    gain
        Electrons per reference count.
    cell
        Stars are taken from here; their surroundings may reach beyond.
    sources
        The catalog, frame pixels.
    expected
        Analytic PSF against which the result is judged; its width is used where too few objects show theirs.
    options
        See `EpsfOptions`.

    Returns
    -------
    CellPsf
        With ``ok`` false and a reason where no PSF could be made.
    """
    frame = Box(0, 0, image.shape[1], image.shape[0])
    region = cut_region(image, variance, gain, cell.grown(options.cutout_size // 2, frame))
    if not region.good.any():
        return _nothing(0, "no good pixel in the cell", options)
    found = detect(region, options.minarea)
    measured = stellar_width(region, found, sources, options)
    guess = measured if np.isfinite(measured) else width_of(expected)
    rows = choose_stars(region, cell, found, sources, guess, options)
    if len(rows) < options.min_epsf_nstars_for_use:
        return _too_few(len(rows), options)
    scene = scene_sources(region.box, found, sources, rows)
    psf, beta = moffat_field(guess, _FIRST_BETA, options.final_psf_size), _FIRST_BETA
    for last in (False, True):  # the first profile is a guess, so neighbours are subtracted again with the fitted one
        stamps = clean_stamps(region, scene, len(rows), psf, options.cutout_size)
        if len(stamps) < options.min_epsf_nstars_for_use:
            return _too_few(len(stamps), options)
        profile = fit_moffat(stamps, guess, beta, _FIRST_RADIUS_FWHM * guess)
        if last:
            stamps = without_outliers(stamps, profile.chi2)
            profile = fit_moffat(stamps, profile.fwhm, profile.beta, _FIT_RADIUS_FWHM * profile.fwhm)
        psf, guess, beta = _profile_field(profile, options), profile.fwhm, profile.beta
    return _finish(stamps, profile, width_of(expected), options)


def _nothing(nstars: int, reason: str, options: EpsfOptions) -> CellPsf:
    oversampling = stamp_oversampling(options)
    side = (options.final_psf_size // 2) * 2 * oversampling + 1
    return CellPsf(np.zeros((side, side)), oversampling, nstars, reason=reason)


def _too_few(nstars: int, options: EpsfOptions) -> CellPsf:
    return _nothing(nstars, f"{nstars} usable stars, {options.min_epsf_nstars_for_use} needed", options)


def stamp_oversampling(options: EpsfOptions) -> int:
    """Return samples per pixel of the stamps of all cells: at least 2, so that narrow profiles are not aliased."""
    return 2 if options.oversamp == "auto" else max(2, options.oversamp)


def _builder_oversampling(profile: MoffatFit, options: EpsfOptions) -> int:
    if options.oversamp != "auto":
        return options.oversamp
    return 1 if profile.fwhm >= _SAMPLED_FWHM else 2


def _finish(stamps: Stamps, profile: MoffatFit, expected: float, options: EpsfOptions) -> CellPsf:
    kept = np.isfinite(profile.flux)
    stars, profile = stamps.take(kept), profile.take(kept)
    if len(stars) < options.min_epsf_nstars_for_use:
        return _too_few(len(stars), options)
    stamp, note = _profile_field(profile, options).stamps[0], ""
    oversampling = _builder_oversampling(profile, options)
    if len(stars) < _STARS_A_SAMPLE * oversampling**2:
        note = f"profile only: {len(stars)} stars are too few for {oversampling} samples per pixel"
    else:
        try:
            stamp = with_excess(stamp, stamp_oversampling(options), stars, profile, oversampling, options)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            note = f"profile only: EPSFBuilder failed: {error}"
    return _judged(stamp, stars, profile, expected, note, options)


def _profile_field(profile: MoffatFit, options: EpsfOptions) -> PsfField:
    oversampling = stamp_oversampling(options)
    offsets = stamp_offsets(options.final_psf_size, oversampling)
    return PsfField(profile.density(offsets[None, :], offsets[:, None])[None], oversampling)


def _judged(
    stamp: Floats, stamps: Stamps, profile: MoffatFit, expected: float, note: str, options: EpsfOptions
) -> CellPsf:
    oversampling = stamp_oversampling(options)
    psf = PsfField(stamp[None], oversampling)
    width = width_of(psf)
    radii, growth = growth_curve(stamp, oversampling)
    reason = _complaint(stamp, width, growth, expected)
    smooth = _profile_field(profile, options).stamps[0]
    offsets = stamp_offsets(options.final_psf_size, oversampling)
    core = np.hypot(offsets[None, :], offsets[:, None]) <= profile.fwhm
    return CellPsf(
        stamp=stamp,
        oversampling=oversampling,
        nstars=len(stamps),
        fwhm=width,
        beta=profile.beta,
        x=float(stamps.frame_x.mean()),
        y=float(stamps.frame_y.mean()),
        ee_radii=tuple(float(np.interp(f, growth, radii)) for f in EE_RADII),  # type: ignore[arg-type]
        core_correction=float(stamp[core].sum() / smooth[core].sum()),
        ok=not reason,
        reason=reason or note,
    )


def _complaint(stamp: Floats, width: float, growth: Floats, expected: float) -> str:
    if not np.isfinite(stamp).all():
        return "not finite"
    middle = stamp.shape[0] // 2
    core = stamp[middle - 1 : middle + 2, middle - 1 : middle + 2]
    if core.min() <= 0 or stamp.max() > 1.2 * core.max():
        return "no positive core in its middle"
    if not _SANE_FWHM[0] * expected <= width <= _SANE_FWHM[1] * expected:
        return f"FWHM {width:.2f} pix where {expected:.2f} is expected"
    if np.any(np.diff(growth) < -0.005):
        return "the light within a radius falls outwards"
    return ""


def field_of_cells(
    cells: list[list[Box]], built: Sequence[Sequence[CellPsf | None]], fallback: PsfField
) -> tuple[PsfField, NDArray[np.bool_]]:
    """Put the PSFs of a band's cells on a grid of their centres.

    Parameters
    ----------
    cells
        Rows of cells.
    built
        Their PSFs, None where none was asked for.
    fallback
        Analytic PSF, used if no cell has one of its own.

    Returns
    -------
    PsfField
        Cells without a good PSF take that of the nearest one that has it.
    numpy.ndarray
        Shape (rows, columns), True where that, or the fallback, was done.
    """
    x = np.array([(cell.x0 + cell.x1 - 1) / 2 for cell in cells[0]])
    y = np.array([(row[0].y0 + row[0].y1 - 1) / 2 for row in cells])
    flat = [psf for row in built for psf in row]
    good = [i for i, psf in enumerate(flat) if psf is not None and psf.ok]
    missing = np.array([i not in good for i in range(len(flat))]).reshape(len(y), len(x))
    if not good:
        stamps = np.repeat(fallback.stamps, len(flat), axis=0)
        return PsfField(stamps, fallback.oversampling, Bilinear(x, y)), missing
    at = np.stack([v.ravel() for v in np.meshgrid(x, y)], axis=1)
    chosen = [good[int(np.argmin(np.hypot(*(at[good] - position).T)))] for position in at]
    stamps = np.stack([psf.stamp for i in chosen if (psf := flat[i]) is not None])
    return PsfField(stamps, next(psf.oversampling for psf in flat if psf is not None), Bilinear(x, y)), missing
