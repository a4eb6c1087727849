"""Light of very bright stars beyond their PSF stamps."""

import numpy as np
import pytest
from photometry.fit_scenes import Moffat, catalog, draw, observe

from tessera.photometry.fit import fit_patch
from tessera.photometry.psf_grids import gaussian_field
from tessera.photometry.wings import wing_of

SIDE, SKY, GAIN = 150, 1.0, 50.0
WIDE = Moffat(4.0, beta=2.5)


@pytest.mark.parametrize("oversampling", [1, 2])
@pytest.mark.parametrize("beta", [2.2, 3.5])
def test_a_moffat_is_continued_as_it_falls(oversampling, beta):
    moffat = Moffat(4.0, beta, 0.0, 0.0)
    wing = wing_of(moffat.field(oversampling).stamps[0], oversampling)
    for radius, tolerance in ((29.0, 0.03), (40.0, 0.1), (60.0, 0.25)):
        assert wing.at(radius**2) == pytest.approx(moffat(radius, 0.0), rel=tolerance)


def test_gaussians_and_noise_have_no_wings():
    assert wing_of(gaussian_field(4.0, 55).stamps[0], 1) is None
    assert wing_of(np.random.default_rng(1).normal(size=(55, 55)), 1) is None


def scene():
    """A star of a million times the sky noise with its core saturated, and faint ones at 25 to 80 pixels from it."""
    angle, distance = np.arange(10) * 2.4, np.linspace(27, 80, 10)
    x, y = 45 + distance * np.cos(angle), 45 + distance * np.sin(angle)
    inside = (x > 10) & (x < SIDE - 10) & (y > 10) & (y < SIDE - 10)
    x, y = np.append(x[inside], 45.3), np.append(y[inside], 44.8)
    flux = np.append(np.full(inside.sum(), 100.0), 1e6)
    truth = sum(f * draw(WIDE, a, b, (SIDE, SIDE)) for f, a, b in zip(flux, x, y, strict=True))[None]
    pixels = observe(truth, SKY, GAIN)
    pixels.sky_variance[truth > 2000] = np.inf
    return pixels, catalog(x, y, 1), flux[:-1]


def test_stars_beside_a_saturated_one_are_right():
    pixels, sources, flux = scene()
    fit = fit_patch(pixels, sources, [WIDE.field()])
    off = (fit.flux[:-1, 0] - flux) / fit.flux_err[:-1, 0]
    assert len(off) > 4
    assert np.abs(off).max() < 0.2
    rows, columns = np.indices((SIDE, SIDE))
    beyond = np.maximum(abs(rows - 45), abs(columns - 45)) > 31
    assert np.abs((pixels.image - fit.model)[0][beyond]).max() < 0.1 * SKY


def test_wings_are_what_makes_them_right(monkeypatch):
    monkeypatch.setattr("tessera.photometry.wings.wing_of", lambda *_: None)
    pixels, sources, flux = scene()
    fit = fit_patch(pixels, sources, [WIDE.field()])
    assert np.abs((fit.flux[:-1, 0] - flux) / fit.flux_err[:-1, 0]).max() > 0.4
