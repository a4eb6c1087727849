"""Bad pixels, bad sources and bad luck cost what they must and no more."""

from dataclasses import replace

import numpy as np
import pytest
from photometry.fit_scenes import Moffat, catalog, draw, observe

from tessera.photometry.fit import fit_patch
from tessera.photometry.solve import Normal, eliminate, shared_step
from tessera.photometry.sources import DEV, EXP, FitOptions, PatchPixels

PSFS = [Moffat(3.4), Moffat(4.2)]
FIELDS = [psf.field() for psf in PSFS]
SKY, GAIN = 5.0, 20.0
X, Y = np.array([30.2, 75.7, 30.8, 72.0]), np.array([30.4, 33.1, 78.2, 74.6])
FLUX = np.array([[4000.0, 3000.0], [2000.0, 2500.0], [900.0, 700.0], [8000.0, 9000.0]])
SHAPE = (105, 108)


def picture(x=X, y=Y, flux=FLUX):
    frames = [
        sum(f[b] * draw(psf, *at, SHAPE) for *at, f in zip(x, y, flux, strict=True)) for b, psf in enumerate(PSFS)
    ]
    return np.array(frames)


@pytest.fixture(scope="module")
def pixels():
    return observe(picture(), SKY, GAIN, np.random.default_rng(3))


@pytest.fixture(scope="module")
def reference(pixels):
    return fit_patch(pixels, catalog(X, Y, 2), FIELDS)


def spoiled(pixels, index, value=np.nan, variance=np.inf):
    image, sky_variance = pixels.image.copy(), pixels.sky_variance.copy()
    image[index] = value
    sky_variance[index] = variance
    return replace(pixels, image=image, sky_variance=sky_variance)


def test_bad_pixels_cost_only_themselves(pixels, reference):
    bad = np.random.default_rng(4).uniform(size=pixels.image.shape) < 0.02
    fit = fit_patch(spoiled(pixels, bad), catalog(X, Y, 2), FIELDS)
    assert fit.converged.all()
    # Dropping 2 % of the pixels moves a flux by about sqrt(0.02) of its error.
    assert np.all(np.abs(fit.flux - reference.flux) < 0.7 * reference.flux_err)
    assert np.all(fit.npix < reference.npix)
    assert np.all(fit.flux_err / reference.flux_err < 1.1)


@pytest.mark.parametrize(
    ("value", "variance"), [(np.nan, 25.0), (1e9, np.inf), (np.inf, 25.0), (0.0, np.nan), (7.0, 0.0)]
)
def test_a_bad_pixels_value_has_no_influence(pixels, value, variance):
    index = (0, slice(30, 34), 29)
    expected = fit_patch(spoiled(pixels, index), catalog(X, Y, 2), FIELDS)
    fit = fit_patch(spoiled(pixels, index, value, variance), catalog(X, Y, 2), FIELDS)
    np.testing.assert_array_equal(fit.flux, expected.flux)
    np.testing.assert_array_equal(fit.model, expected.model)


def test_a_source_without_pixels_in_a_band_is_measured_in_the_other(pixels, reference):
    hole = (0, slice(0, 62), slice(0, 61))
    fit = fit_patch(spoiled(pixels, hole), catalog(X, Y, 2), FIELDS)
    assert np.isnan(fit.flux[0, 0])
    assert np.isnan(fit.flux_err[0, 0])
    assert fit.npix[0, 0] == 0
    assert fit.converged.all()
    others = np.ones_like(FLUX, bool)
    others[0, 0] = False
    assert np.all(np.abs(fit.flux - reference.flux)[others] < 0.3 * reference.flux_err[others])


def test_no_pixel_at_all_gives_nan_and_no_error(pixels):
    fit = fit_patch(spoiled(pixels, ...), catalog(X, Y, 2), FIELDS)
    assert np.isnan(fit.flux).all()
    assert np.isnan(fit.x).all()
    assert not fit.converged.any()
    assert np.isnan(fit.sky_err).all()
    assert np.isfinite(fit.model).all()


def test_no_source_at_all_still_measures_the_sky(pixels):
    empty = observe(np.full(pixels.image.shape, 2.0), SKY, GAIN)
    fit = fit_patch(empty, catalog([], [], 2), FIELDS)
    np.testing.assert_allclose(fit.sky, 2.0, rtol=1e-6)
    np.testing.assert_allclose(fit.sky_err, SKY / np.sqrt(SHAPE[0] * SHAPE[1]), rtol=1e-4)
    assert fit.flux.shape == (0, 2)


def test_a_source_without_a_position_is_left_out(pixels, reference):
    sources = catalog([*X, np.nan, 1e6], [*Y, 40.0, 40.0], 2)
    fit = fit_patch(pixels, sources, FIELDS)
    assert np.isnan(fit.flux[4:]).all()
    assert not fit.converged[4:].any()
    np.testing.assert_array_equal(fit.flux[:4], reference.flux)


def test_identical_sources_share_the_light_and_are_flagged(pixels, reference):
    sources = catalog([*X, X[3]], [*Y, Y[3]], 2)
    fit = fit_patch(pixels, sources, FIELDS)
    assert fit.degenerate.tolist() == [False, False, False, True, True]
    assert not fit.converged[3:].any()
    np.testing.assert_allclose(fit.flux[3] + fit.flux[4], reference.flux[3], rtol=1e-3)
    assert np.all(fit.flux_err[3:] > 30 * reference.flux_err[3])
    assert np.all(np.abs(fit.flux[:3] - reference.flux[:3]) < 0.05 * reference.flux_err[:3])


def test_a_source_on_empty_sky_ends_cleanly(pixels, reference):
    fit = fit_patch(pixels, catalog([*X, 52.0], [*Y, 54.0], 2), FIELDS)
    assert np.all(np.abs(fit.flux[4]) < 5 * fit.flux_err[4])
    assert np.all(np.hypot(fit.x[4] - 52.0, fit.y[4] - 54.0) <= 5 * np.sqrt(2))
    assert np.all(np.abs(fit.flux[:4] - reference.flux[:4]) < 0.1 * reference.flux_err[:4])


def test_a_position_stops_at_its_bound(pixels):
    options = FitOptions(pos_max_shift_pix=1.0)
    fit = fit_patch(pixels, catalog(X + np.array([0, 0, 0, 1.8]), Y, 2), FIELDS, options)
    assert fit.bound_stalled.tolist() == [False, False, False, True]
    assert fit.x[3] == pytest.approx(X[3] + 0.8)
    assert np.isnan(fit.x_err[3])
    assert np.isfinite(fit.y_err[3])


@pytest.mark.parametrize("kind", [EXP, DEV])
def test_a_galaxy_that_is_a_star_collapses_and_is_flagged(pixels, reference, kind):
    sources = catalog(X, Y, 2, [None, None, None, (3.0, 0.6, 30.0)])
    fit = fit_patch(pixels, replace(sources, kind=np.where(sources.kind == EXP, kind, sources.kind)), FIELDS)
    assert fit.re[3] < 0.5
    np.testing.assert_allclose(fit.flux[3], reference.flux[3], rtol=0.02)
    assert np.isfinite(fit.flux_err).all()


def test_a_galaxy_on_nothing_does_not_blow_up(pixels, reference):
    sources = catalog([*X, 52.0], [*Y, 54.0], 2, [None] * 4 + [(30.0, 0.5, 0.0)])
    fit = fit_patch(pixels, sources, FIELDS)
    assert np.isfinite(fit.flux).all()
    assert fit.re[4] < 200
    assert np.all(np.abs(fit.flux[:4] - reference.flux[:4]) < 3 * reference.flux_err[:4])


def test_a_bright_star_outside_is_not_taken_for_sky(pixels):
    x, y = np.append(X, -6.0), np.append(Y, 52.0)
    flux = np.vstack([FLUX, [2e5, 2e5]])
    cut = observe(picture(x, y, flux), SKY, GAIN, np.random.default_rng(9))
    fit = fit_patch(cut, catalog(x, y, 2), FIELDS)
    assert np.all(np.abs(fit.sky) < 4 * fit.sky_err)
    assert np.all(np.abs(fit.flux[:4] - FLUX) < 4 * fit.flux_err[:4])
    assert fit.x[4] == -6.0
    without = fit_patch(cut, catalog(X, Y, 2), FIELDS)
    assert np.all(without.sky > 4 * without.sky_err)


def test_threads_do_not_change_a_bit(pixels, reference):
    fit = fit_patch(pixels, catalog(X, Y, 2), FIELDS, threads=2)
    for name, value in vars(reference).items():
        np.testing.assert_array_equal(getattr(fit, name), value, err_msg=name)


@pytest.mark.parametrize("unit", [1e-9, 1e12])
def test_the_unit_of_the_counts_does_not_matter(pixels, reference, unit):
    scaled = PatchPixels(0, 0, pixels.image.astype(float) * unit, pixels.sky_variance * unit**2, pixels.gain / unit)
    fit = fit_patch(scaled, catalog(X, Y, 2), FIELDS)
    np.testing.assert_allclose(fit.flux / unit, reference.flux, rtol=1e-5)
    np.testing.assert_allclose(fit.flux_err / unit, reference.flux_err, rtol=1e-4)


def test_the_frame_position_of_the_patch_only_shifts_the_result(pixels, reference):
    fit = fit_patch(replace(pixels, x0=1000, y0=500), catalog(X + 1000, Y + 500, 2), FIELDS)
    np.testing.assert_allclose(fit.x - 1000, reference.x, atol=1e-4)
    np.testing.assert_allclose(fit.flux, reference.flux, rtol=1e-5)


def test_fixed_shapes_and_sky_stay(pixels):
    sources = catalog(X, Y, 2, [None, None, None, (2.0, 0.6, 30.0)])
    fit = fit_patch(pixels, sources, FIELDS, FitOptions(fit_shapes=False, fit_sky=False))
    assert fit.re[3] == pytest.approx(2.0)
    assert np.isnan(fit.re_err[3])
    np.testing.assert_array_equal(fit.sky, 0.0)
    assert np.isnan(fit.sky_err).all()


def test_too_few_steps_are_flagged(pixels):
    fit = fit_patch(pixels, catalog(X + 2.0, Y, 2), FIELDS, FitOptions(n_opt_iters=1))
    assert fit.hit_max_iters.all()
    assert not fit.converged.any()


def test_mismatched_bands_name_the_numbers(pixels):
    with pytest.raises(ValueError, match=r"2 bands.*1 PSFs"):
        fit_patch(pixels, catalog(X, Y, 2), FIELDS[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": np.array([1.0, -2.0])}, "gain"),
        ({"gain": np.array([1.0])}, "gain"),
        ({"sky_variance": np.ones((2, 3, 4))}, "sky variance"),
    ],
)
def test_impossible_pixels_are_refused(pixels, change, message):
    with pytest.raises(ValueError, match=message):
        replace(pixels, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y[:2]}, "y has shape"),
        ({"flux": np.zeros((2, 2))}, "flux has shape"),
        ({"kind": np.full(4, 9)}, "kind holds"),
        ({"position_sigma": np.zeros(4)}, "position_sigma"),
    ],
)
def test_impossible_sources_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(catalog(X, Y, 2), **change)


@pytest.mark.parametrize("change", [{"n_opt_iters": 0}, {"dlnp_stop": 0.0}, {"re_max_pix": 0.05}])
def test_impossible_options_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        FitOptions(**change)


def test_curvature_lost_to_stale_blocks_gives_a_finite_step():
    """Blocks of sources that rest are of earlier weights: what is left of a position's curvature can be negative."""
    normal = Normal(
        linear=np.eye(2)[None],
        cross=np.array([[[1.1], [0.0]]]),
        shared=np.eye(1),
        linear_gradient=np.zeros((1, 2)),
        shared_gradient=np.array([3.0]),
    )
    reduced = eliminate(normal)
    step = shared_step(reduced, np.zeros(1), np.ones(1, bool))
    assert np.isfinite(step).all()
    assert step[0] > 0
