"""The fit recovers what is in a scene, with errors that mean what they say."""

import numpy as np
import pytest
from photometry.fit_scenes import Moffat, catalog, draw, observe, star_error

from tessera.photometry.fit import fit_patch
from tessera.photometry.sources import FitOptions

PSFS = [Moffat(3.2), Moffat(4.0, e1=-0.04), Moffat(4.8, e2=0.05)]
FIELDS = [psf.field() for psf in PSFS]
SKY, GAIN = 5.0, 20.0


def flux_at(snr, psf):
    """Return the flux of an isolated star with this ratio of signal to noise."""
    low, high = 1.0, 1e9
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if middle / star_error(psf, middle, SKY, GAIN) < snr else (low, middle)
    return low


def scene(x, y, fluxes, shape, galaxies=None):
    """Return the noiseless picture of sources with ``fluxes`` (n, B)."""
    galaxies = galaxies or [None] * len(x)
    truth = np.zeros((len(PSFS), *shape))
    for i, galaxy in enumerate(galaxies):
        for b, psf in enumerate(PSFS):
            truth[b] += fluxes[i, b] * draw(psf, x[i], y[i], shape, galaxy)
    return truth


@pytest.fixture(scope="module")
def stars():
    """Pulls of 6 x 36 well separated stars in three bands at 3 levels, and their relative errors."""
    rng = np.random.default_rng(11)
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 30.0 + 25.0
    snr = np.tile([10.0, 50.0, 400.0], 12)
    fluxes = np.array([[flux_at(s, psf) for psf in PSFS] for s in snr])
    pulls, errors, offsets = [], [], []
    for _ in range(6):
        x, y = (grid + rng.uniform(-0.5, 0.5, grid.shape)).T
        pixels = observe(scene(x, y, fluxes, (200, 200)), SKY, GAIN, rng)
        fit = fit_patch(pixels, catalog(x, y, 3, jitter=rng), FIELDS)
        assert fit.converged.all()
        pulls.append((fit.flux - fluxes) / fit.flux_err)
        errors.append((fit.flux - fluxes) / fluxes)
        offsets.append(np.column_stack([(fit.x - x) / fit.x_err, (fit.y - y) / fit.y_err]))
    return snr, np.array(pulls), np.array(errors), np.array(offsets)


@pytest.mark.parametrize("level", [10.0, 50.0, 400.0])
def test_pulls_of_isolated_stars_are_normal(stars, level):
    snr, pulls, _, offsets = stars
    # 216 independent fluxes and 144 coordinates: three standard errors of a mean and of a standard deviation.
    flux = pulls[:, snr == level].ravel()
    assert abs(flux.mean()) < 3 / np.sqrt(flux.size)
    assert abs(flux.std() - 1) < 3 / np.sqrt(2 * flux.size)
    position = offsets[:, snr == level].ravel()
    assert abs(position.mean()) < 3 / np.sqrt(position.size)
    assert abs(position.std() - 1) < 3 / np.sqrt(2 * position.size)


def test_bright_stars_are_not_biased(stars):
    snr, _, errors, _ = stars
    bright = errors[:, snr == 400.0].ravel()
    assert abs(bright.mean()) < 3 / 400 / np.sqrt(bright.size)


def test_faint_stars_are_not_biased_by_their_weights():
    rng = np.random.default_rng(17)
    psf, gain = PSFS[1], 0.3
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 30.0 + 25.0
    flux, errors = 600.0, []
    for _ in range(6):
        x, y = (grid + rng.uniform(-0.5, 0.5, grid.shape)).T
        truth = sum(flux * draw(psf, *at, (200, 200)) for at in zip(x, y, strict=True))[None]
        fit = fit_patch(observe(truth, SKY, gain, rng), catalog(x, y, 1, jitter=rng), [psf.field()])
        errors.append(fit.flux[:, 0] / flux - 1)
    errors = np.array(errors)
    # Of S/N 10: a variance from the data, which weights down what scatters high, makes them far too faint.
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(errors.size)


def test_blended_pairs_have_honest_errors():
    rng = np.random.default_rng(5)
    pulls, ratios = [], []
    fluxes = np.array([[flux_at(60, psf) for psf in PSFS], [flux_at(40, psf) for psf in PSFS]])
    for _ in range(40):
        angle = rng.uniform(0, 2 * np.pi)
        x = 35 + rng.uniform(-0.5, 0.5) + np.array([0, 4.0 * np.cos(angle)])
        y = 35 + rng.uniform(-0.5, 0.5) + np.array([0, 4.0 * np.sin(angle)])
        pixels = observe(scene(x, y, fluxes, (71, 71)), SKY, GAIN, rng)
        fit = fit_patch(pixels, catalog(x, y, 3, jitter=rng), FIELDS)
        assert fit.converged.all()
        pulls.append((fit.flux - fluxes) / fit.flux_err)
        ratios.append(fit.fracflux)
    pulls = np.array(pulls)
    # The bands share the positions, so that only the 80 sources count as independent.
    assert abs(pulls.mean()) < 3 / np.sqrt(80)
    assert abs(pulls.std() - 1) < 3 / np.sqrt(160)
    assert np.all(np.array(ratios) > 0.05)


def test_galaxies_are_recovered_with_their_shapes():
    rng = np.random.default_rng(7)
    shapes = [(2.0, 0.5, 30.0), (4.0, 0.7, -60.0), (1.5, 0.9, 80.0), (3.0, 0.35, 10.0)]
    x, y = np.array([40.3, 110.2, 39.6, 110.8]), np.array([40.1, 39.7, 110.4, 110.0])
    fluxes = np.array([[3 * flux_at(60, psf) for psf in PSFS]] * 4)
    truth = scene(x, y, fluxes, (150, 150), shapes)
    wrong_by = np.array([1.15, 0.9, 1.2, 0.95])
    start = [(re * k, min(ab * k, 0.95), theta + 8) for k, (re, ab, theta) in zip(wrong_by, shapes, strict=True)]
    pulls, errors, shape_pulls = [], [], []
    for _ in range(12):
        fit = fit_patch(observe(truth, SKY, GAIN, rng), catalog(x, y, 3, start, rng), FIELDS)
        assert fit.converged.all()
        pulls.append((fit.flux - fluxes) / fit.flux_err)
        errors.append(fit.flux / fluxes - 1)
        re, ab, theta = np.array(shapes).T
        turn = (fit.theta - theta + 90) % 180 - 90
        shape_pulls.append([(fit.re - re) / fit.re_err, (fit.ab - ab) / fit.ab_err, turn / fit.theta_err])
    assert abs(np.mean(errors)) < 0.01
    assert abs(np.mean(pulls)) < 3 / np.sqrt(48)
    assert abs(np.std(pulls) - 1) < 3 / np.sqrt(96)
    shape_pulls = np.array(shape_pulls)
    assert np.all(np.abs(shape_pulls.mean(axis=(0, 2))) < 4 / np.sqrt(48))
    assert np.all(np.abs(shape_pulls.std(axis=(0, 2)) - 1) < 4 / np.sqrt(96))


def test_without_noise_the_truth_comes_back():
    shapes = [None, (3.0, 0.5, 40.0), None]
    x, y = np.array([30.3, 60.2, 64.9]), np.array([40.1, 39.7, 43.4])
    fluxes = np.array([[900.0, 1500.0, 800.0], [9000.0, 6000.0, 8000.0], [3000.0, 2000.0, 4000.0]])
    truth = scene(x, y, fluxes, (90, 100), shapes) + np.array([3.0, -1.0, 0.5])[:, None, None]
    start = [None, (3.3, 0.6, 30.0), None]
    # 1e-3 of ln P is 0.045 sigma; a fit that goes on until 1e-8 shows what the renderer leaves.
    options = FitOptions(dlnp_stop=1e-8, shear_sigma=np.inf)
    fit = fit_patch(observe(truth, SKY, GAIN), catalog(x + 0.2, y - 0.15, 3, start), FIELDS, options)
    assert np.all(np.abs(fit.flux - fluxes) < 0.05 * fit.flux_err)
    assert np.all(np.abs(fit.x - x) < 0.05 * fit.x_err)
    assert np.all(np.abs(fit.sky - [3.0, -1.0, 0.5]) < 0.05 * fit.sky_err)
    assert fit.re[1] == pytest.approx(3.0, abs=0.1 * fit.re_err[1])
    assert np.isnan(fit.re[0])
    assert np.abs(fit.model - truth).max() < 0.1 * SKY


def test_errors_are_those_of_the_joint_fisher_matrix():
    x, y, shape = np.array([30.3, 34.0]), np.array([29.8, 31.5]), (60, 62)
    fluxes = np.array([[2000.0, 1500.0, 900.0], [700.0, 900.0, 1200.0]])
    pixels = observe(scene(x, y, fluxes, shape), SKY, GAIN)
    fit = fit_patch(pixels, catalog(x, y, 3), FIELDS)
    variance = SKY**2 + scene(x, y, fluxes, shape) / GAIN
    # Columns: x0 y0 x1 y1, then (f0, f1, sky) of each band; numeric derivatives of the analytic picture.
    jacobian = np.zeros((3, *shape, 13))
    for k, (i, axis) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        step = np.zeros((2, 2))
        step[axis, i] = 1e-3
        up = scene(x + step[0], y + step[1], fluxes, shape)
        down = scene(x - step[0], y - step[1], fluxes, shape)
        jacobian[..., k] = (up - down) / 2e-3
    for b, psf in enumerate(PSFS):
        for i in range(2):
            jacobian[b, ..., 4 + 3 * b + i] = draw(psf, x[i], y[i], shape)
        jacobian[b, ..., 6 + 3 * b] = 1.0
    fisher = np.einsum("byxk,byxl,byx->kl", jacobian, jacobian, 1 / variance, optimize=True)
    error = np.sqrt(np.diag(np.linalg.inv(fisher)))
    np.testing.assert_allclose(fit.x_err, error[[0, 2]], rtol=0.01)
    np.testing.assert_allclose(fit.y_err, error[[1, 3]], rtol=0.01)
    np.testing.assert_allclose(fit.flux_err, error[4:].reshape(3, 3)[:, :2].T, rtol=0.01)
    np.testing.assert_allclose(fit.sky_err, error[6::3], rtol=0.01)
    alone = np.array([[star_error(psf, f, SKY, GAIN) for psf, f in zip(PSFS, row, strict=True)] for row in fluxes])
    assert np.all(fit.flux_err > 1.05 * alone)


def test_a_position_prior_holds_a_source_as_tightly_as_it_says():
    x, y = np.array([30.0]), np.array([30.0])
    fluxes = np.array([[flux_at(8, psf) for psf in PSFS]])
    pixels = observe(scene(x, y, fluxes, (61, 61)), SKY, GAIN)
    loose = catalog(x + 0.4, y, 3)
    tight = type(loose)(**{**vars(loose), "position_sigma": np.array([0.05])})
    free, held = fit_patch(pixels, loose, FIELDS), fit_patch(pixels, tight, FIELDS)
    assert abs(free.x[0] - 30.0) < 0.02
    # The mean of two measurements, weighted by their variances.
    expected = 30.0 + 0.4 * free.x_err[0] ** 2 / (free.x_err[0] ** 2 + 0.05**2)
    assert held.x[0] == pytest.approx(expected, abs=0.02)
    assert held.x_err[0] < 0.05
