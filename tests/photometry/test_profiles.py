import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import j0

from tessera.photometry.profiles import (
    EXP_RADIUS,
    covariance,
    de_vaucouleurs,
    de_vaucouleurs_mixture,
    de_vaucouleurs_transform,
    ellipse,
    exponential_transform,
    shape_parameters,
    transform,
)
from tessera.photometry.sources import DEV, EXP, STAR

RADII = np.geomspace(1e-4, 8.0, 4000)


def hankel(profile, q, end):
    value, _ = quad(lambda r: profile(r) * r * j0(q * r), 0, end, limit=400)
    total, _ = quad(lambda r: profile(r) * r, 0, end, limit=400)
    return value / total


def test_half_of_an_exponentials_light_is_within_one_radius():
    assert (1 + EXP_RADIUS) * np.exp(-EXP_RADIUS) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("q", [0.1, 1.0, 3.0, 10.0])
def test_the_exponential_transform_is_the_hankel_transform_of_the_disk(q):
    g, _ = exponential_transform(np.array([q**2]))
    assert g[0] == pytest.approx(hankel(lambda r: np.exp(-EXP_RADIUS * r), q, 20.0), abs=1e-6)


@pytest.mark.parametrize("q", [0.1, 1.0, 3.0, 10.0])
def test_the_mixture_has_the_transform_of_the_de_vaucouleurs_profile(q):
    g, _ = de_vaucouleurs_transform(np.array([q**2]))
    assert g[0] == pytest.approx(hankel(lambda r: float(de_vaucouleurs(np.array(r))), q, 8.0), abs=6e-3)


def test_the_mixture_encloses_the_light_of_the_profile():
    light = np.cumsum(de_vaucouleurs(RADII) * RADII * np.gradient(RADII))
    weights, variances = de_vaucouleurs_mixture()
    inside = np.sum(weights * (1 - np.exp(-0.5 * RADII[:, None] ** 2 / variances)), axis=1)
    wrong = np.abs(inside - light / light[-1])
    # The cut at 7 to 8 radii cannot be sharp with Gaussians of one sign.
    assert wrong.max() < 0.012
    assert wrong[RADII < 1].max() < 0.006
    assert weights.sum() == pytest.approx(1.0)
    assert np.all(weights > 0)


@pytest.mark.parametrize("kind", [EXP, DEV])
def test_slopes_are_the_derivatives(kind):
    u = np.geomspace(1e-3, 1e3, 25)
    step = 1e-5 * u
    _, slope = transform(kind, u)
    numeric = (transform(kind, u + step)[0] - transform(kind, u - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-5, atol=1e-12)


def test_a_star_has_no_profile():
    with pytest.raises(ValueError, match="valid: 1"):
        transform(STAR, np.ones(1))


@pytest.mark.parametrize(("re", "ab", "theta"), [(3.0, 0.5, 20.0), (1.5, 0.95, -80.0), (6.0, 0.08, 89.0)])
def test_shapes_survive_the_round_trip(re, ab, theta):
    values, _ = ellipse(shape_parameters(re, ab, theta))
    np.testing.assert_allclose(values, [re, ab, theta], rtol=1e-12)


def test_the_axes_of_the_covariance_are_the_radii():
    c, _ = covariance(shape_parameters(4.0, 0.5, 30.0))
    axes, directions = np.linalg.eigh([[c[0], c[1]], [c[1], c[2]]])
    np.testing.assert_allclose(np.sqrt(axes), [2.0, 4.0])
    assert np.degrees(np.arctan(directions[1, 1] / directions[0, 1])) == pytest.approx(30.0)


@pytest.mark.parametrize("shape", [(0.3, 0.4, -0.7), (1.0, 0.0, 0.0), (1.0, 3e-3, 4e-3), (0.0, -2.0, 1.5)])
def test_shape_derivatives(shape):
    shape = np.array(shape)
    _, slopes = covariance(shape)
    _, jacobian = ellipse(shape)
    for k in range(3):
        step = np.zeros(3)
        step[k] = 1e-5
        numeric = (covariance(shape + step)[0] - covariance(shape - step)[0]) / 2e-5
        np.testing.assert_allclose(slopes[k], numeric, rtol=1e-6, atol=1e-6)
        if np.hypot(*shape[1:]) > 0:
            numeric = (ellipse(shape + step)[0] - ellipse(shape - step)[0]) / 2e-5
            np.testing.assert_allclose(jacobian[:, k], numeric, rtol=1e-4, atol=1e-5)
