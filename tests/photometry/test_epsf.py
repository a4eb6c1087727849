"""ePSFs against the PSF the stars were made with."""

import numpy as np
import pytest
from photometry.made_frames import GAIN, SKY_SIGMA

from tessera.photometry import excess
from tessera.photometry.epsf import CellPsf, build_cell, field_of_cells
from tessera.photometry.options import EpsfOptions
from tessera.photometry.patches import grid
from tessera.photometry.psf import PsfField
from tessera.photometry.psf_grids import gaussian, moffat, moffat_field, stamp_offsets
from tessera.photometry.psf_shape import growth_curve, width_of
from tessera.photometry.select import Box
from tessera.photometry.sources import Sources

SIDE = 320
OPTIONS = EpsfOptions(final_psf_size=41, cutout_size=51)


def made(profile, seed=1, stars=20, faint=30, sky=0.0):
    """Return image, variance and catalog of a field of stars drawn with ``profile(dx, dy)``."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(15, SIDE - 15, (2, stars + faint))
    flux = np.concatenate([10 ** rng.uniform(3.6, 5, stars), 10 ** rng.uniform(1.8, 3, faint)])
    rows, columns = np.indices((SIDE, SIDE))
    image = np.zeros((SIDE, SIDE))
    for a, b, f in zip(x, y, flux, strict=True):
        image += f * profile(columns - a, rows - b)
    image += sky + np.sqrt(SKY_SIGMA**2 + image / GAIN) * rng.standard_normal(image.shape)
    n, nan = len(x), np.full(len(x), np.nan)
    catalog = Sources(x, y, np.zeros(n, int), np.full((n, 1), np.nan), nan, nan, nan, np.full(n, np.inf))
    return image.astype(np.float32), np.full(image.shape, SKY_SIGMA**2, np.float32), catalog


def built(image, variance, catalog, options=OPTIONS, expected=4.0) -> CellPsf:
    return build_cell(image, variance, GAIN, Box(0, 0, SIDE, SIDE), catalog, moffat_field(expected, 3.5, 41), options)


def flux_error(psf: CellPsf, profile) -> float:
    """Return the bias of a flux fitted with the PSF to a noiseless star at equal weights."""
    offsets = stamp_offsets(41, psf.oversampling)
    truth = profile(offsets[None, :], offsets[:, None])
    near = np.hypot(offsets[None, :], offsets[:, None]) < 10
    return float((psf.stamp * truth)[near].sum() / (psf.stamp**2)[near].sum() - 1)


def elliptical(dx, dy):
    return moffat(dx, dy, 3.8, 2.8, 0.08, -0.05)


def two_cores(dx, dy):
    """No Moffat: a narrow core and a halo that is off-centre by a pixel."""
    return 0.7 * moffat(dx, dy, 3.2, 4.5) + 0.3 * moffat(dx - 1.0, dy + 0.4, 6.5, 4.0)


@pytest.mark.parametrize("sky", [0.0, 0.5])
def test_flux_is_right_within_a_per_cent_also_with_sky_left_in_the_frame(sky):
    psf = built(*made(elliptical, sky=sky))
    assert psf.ok, psf.reason
    assert psf.nstars >= 10
    assert abs(flux_error(psf, elliptical)) < 0.01
    assert psf.beta == pytest.approx(2.8, rel=0.1)


def test_what_no_moffat_can_show_is_added_from_the_stars(monkeypatch):
    psf = built(*made(two_cores, stars=40, faint=20))
    assert psf.ok, psf.reason
    offsets = stamp_offsets(41, psf.oversampling)
    dx, dy = offsets[None, :], offsets[:, None]
    # Centred like the fit centres it, so compare after removing the shift: by the best of a fine grid.
    shifts = np.arange(-0.6, 0.61, 0.05)

    def misfit(stamp):
        core = np.hypot(dx, dy) < 6
        return min(
            np.sqrt(np.mean((stamp - two_cores(dx + a, dy + b))[core] ** 2)) for a in shifts for b in shifts
        ) / two_cores(0, 0)

    assert misfit(psf.stamp) < 0.006
    monkeypatch.setattr(excess, "_significant", lambda extra, *_: np.zeros_like(extra))
    profile_only = built(*made(two_cores, stars=40, faint=20))
    assert misfit(psf.stamp) < 0.6 * misfit(profile_only.stamp)


def core_and_wing(dx, dy):
    """A fifth of the light in a wing three times as wide."""
    return 0.8 * moffat(dx, dy, 3.0, 4.0) + 0.2 * moffat(dx, dy, 9.0, 3.0)


def round_gaussian(dx, dy):
    return gaussian(dx, dy, 3.8)


def narrow(dx, dy):
    return moffat(dx, dy, 2.1, 3.0, 0.05, 0.0)


@pytest.mark.parametrize(("profile", "bias"), [(core_and_wing, 0.03), (round_gaussian, 0.02), (narrow, 0.004)])
def test_fluxes_with_psfs_that_a_moffat_is_not(profile, bias):
    psf = built(*made(profile, seed=2), expected=3.5)
    assert psf.ok, psf.reason
    assert abs(flux_error(psf, profile)) < bias


def test_the_noise_of_a_few_faint_stars_stays_out_of_the_wings():
    rng = np.random.default_rng(11)
    x, y = rng.uniform(20, SIDE - 20, (2, 16))
    rows, columns = np.indices((SIDE, SIDE))
    image = sum(
        f * elliptical(columns - a, rows - b) for a, b, f in zip(x, y, 10 ** rng.uniform(2.9, 3.8, 16), strict=True)
    )
    image = image + np.sqrt(SKY_SIGMA**2 + image / GAIN) * rng.standard_normal(image.shape)
    n, nan = len(x), np.full(len(x), np.nan)
    catalog = Sources(x, y, np.zeros(n, int), np.full((n, 1), np.nan), nan, nan, nan, np.full(n, np.inf))
    psf = built(image.astype(np.float32), np.full(image.shape, SKY_SIGMA**2, np.float32), catalog)
    assert psf.ok, psf.reason
    offsets = stamp_offsets(41, psf.oversampling)
    radius = np.hypot(offsets[None, :], offsets[:, None]) / 3.8
    ratio = psf.stamp / elliptical(offsets[None, :], offsets[:, None])
    assert np.std(ratio[radius < 1]) < 0.06
    assert np.std(ratio[(radius > 1) & (radius < 1.5)]) < 0.2
    assert np.std(ratio[(radius > 2) & (radius < 3)]) < 0.2


@pytest.mark.parametrize("oversamp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_moffat_stays_a_moffat(oversamp):
    psf = built(*made(elliptical, stars=40), EpsfOptions(final_psf_size=41, cutout_size=51, oversamp=oversamp))
    offsets = stamp_offsets(41, psf.oversampling)
    truth = elliptical(offsets[None, :], offsets[:, None])
    assert np.abs(psf.stamp - truth).max() < 0.012 * truth.max()


def test_neighbours_bad_pixels_and_saturation_do_not_bend_it():
    image, variance, catalog = made(elliptical, seed=5, stars=30, faint=150)
    rng = np.random.default_rng(6)
    bad = rng.uniform(size=image.shape) < 0.003
    bad[:, 120] = True
    image[bad] = 0
    variance[bad] = np.inf
    psf = built(image, variance, catalog)
    assert psf.ok, psf.reason
    assert abs(flux_error(psf, elliptical)) < 0.015


def test_galaxies_of_the_catalog_are_no_psf_stars():
    image, variance, catalog = made(elliptical, stars=20, faint=0)
    as_galaxies = Sources(
        catalog.x, catalog.y, np.ones(len(catalog.x), int), catalog.flux, np.full(20, 2.0), np.full(20, 0.8),
        np.zeros(20), catalog.position_sigma,
    )  # fmt: skip
    psf = built(image, variance, as_galaxies)
    assert not psf.ok
    assert psf.reason == "0 usable stars, 4 needed"


@pytest.mark.parametrize("stars", [0, 1, 3])
def test_too_few_stars_are_said(stars):
    psf = built(*made(elliptical, stars=stars, faint=0))
    assert not psf.ok
    assert psf.reason == f"{stars} usable stars, 4 needed"


def test_a_cell_of_bad_pixels_is_said():
    image, variance, catalog = made(elliptical, stars=5, faint=0)
    psf = built(image, np.full_like(variance, np.inf), catalog)
    assert not psf.ok
    assert psf.reason == "no good pixel in the cell"


@pytest.mark.parametrize("expected", [2.0, 7.0])
def test_a_wrong_first_guess_of_the_width_does_not_matter(expected):
    psf = built(*made(elliptical), expected=expected)
    assert psf.ok, psf.reason
    assert abs(flux_error(psf, elliptical)) < 0.01


def test_a_width_far_from_the_expected_one_is_refused():
    psf = built(*made(elliptical), expected=1.1)
    assert not psf.ok
    assert "is expected" in psf.reason


def test_record_survives_as_arrays():
    psf = built(*made(elliptical))
    back = CellPsf.from_arrays(psf.arrays())
    np.testing.assert_array_equal(back.stamp, psf.stamp)
    assert (back.nstars, back.fwhm, back.ok, back.reason, back.ee_radii) == (
        psf.nstars, psf.fwhm, psf.ok, psf.reason, psf.ee_radii,
    )  # fmt: skip


def test_the_same_cell_gives_the_same_bits():
    field = made(elliptical)
    np.testing.assert_array_equal(built(*field).stamp, built(*field).stamp)


def test_growth_curve_of_a_moffat():
    field = moffat_field(4.0, 3.5, 55)
    radii, flux = growth_curve(field.stamps[0], field.oversampling)
    a2 = 4.0 / (2 ** (1 / 3.5) - 1)
    expected = 1 - (1 + radii**2 / a2) ** -2.5
    np.testing.assert_allclose(flux[10:], expected[10:], atol=0.01)
    assert width_of(field) == pytest.approx(4.0, abs=0.15)


def test_cells_without_a_psf_take_the_nearest_good_one():
    cells = grid(Box(0, 0, 300, 100), 3, 1)
    stamp = moffat_field(4, 3.5, 11).stamps[0]
    good = CellPsf(stamp * 2, 1, 9, ok=True)
    bad = CellPsf(np.zeros_like(stamp), 1, 1, reason="x")
    field, missing = field_of_cells(cells, [[good, bad, None]], moffat_field(4, 3.5, 11))
    np.testing.assert_array_equal(missing, [[False, True, True]])
    np.testing.assert_array_equal(field.at(250, 50)[0], stamp * 2)
    field, missing = field_of_cells(cells, [[bad, bad, None]], moffat_field(4, 3.5, 11))
    assert missing.all()
    np.testing.assert_allclose(field.at(250, 50)[0], stamp)
    assert isinstance(field, PsfField)
