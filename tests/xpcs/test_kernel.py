"""Cost, gradient and JᵀJ of the factorised passes against the direct form and automatic differentiation."""

import numpy as np
import pytest
from xpcs.problems import FLOW, FLOW_START, GAP, PHI, STEP, Q, direct_model, direct_quadratic, noisy, times_of

from tessera.xpcs import coarse
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.physics import g1_squared
from tessera.xpcs.tiles import ROWS, n_chunks, n_strips, places_of, strips_of

FLOORED = np.array([1500.0, -0.4, 200.0, 3.0e-2, -1.0, -2.0e-3, 4.0])  # the shear rate is cut off after 15 s
STIFF = np.array([1e5, -2.0, 1e4, 0.1, 0.5, 0.0, -10.0])


def compare(objective, c2, x, *, cost=1e-9, derivatives=1e-7, weight=None):
    found = objective.evaluate(x)
    n = len(objective.free)
    m = (len(x) - n) // 2
    coefficients = found.x[n:]
    expected = direct_quadratic(
        c2, objective.grid.phi, x[:n], coefficients[:m], coefficients[m:], objective.scaling.basis, weight
    )
    assert found.cost == pytest.approx(expected[0], rel=cost)
    size = np.sqrt(np.diag(expected[2]))
    size = np.where(size > 0, size, 1.0)
    np.testing.assert_allclose(
        found.hessian / np.outer(size, size), expected[2] / np.outer(size, size), atol=derivatives
    )
    # Of the optimum, in units of the residual's length; the slope in contrast and offset is zero there.
    length = np.sqrt(2 * expected[0])
    np.testing.assert_allclose(found.gradient / size / length, expected[1] / size / length, atol=derivatives)
    return found


@pytest.mark.parametrize("n_t", [20, 33, 97])
@pytest.mark.parametrize("physical", [FLOW, FLOW_START, FLOORED, STIFF], ids=["truth", "start", "floored", "stiff"])
def test_flow_agrees_with_the_direct_form(n_t, physical):
    """The start has phi0 - phi = 90°, where the flow does not show and sinc is one."""
    phi = PHI[::3]
    c2 = noisy(FLOW, n_t, phi, sigma=0.01)
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(n_t), scaling="shared")
    found = compare(objective, c2, np.concatenate([physical, [0.0, 0.0]]))
    assert found.count == len(phi) * n_t * (n_t - 1) // 2


@pytest.mark.parametrize("n_t", [20, 97])
@pytest.mark.parametrize("physical", [FLOW[:3], STIFF[:3]], ids=["truth", "stiff"])
def test_static_agrees_with_the_direct_form(n_t, physical):
    phi = PHI[:2]
    c2 = noisy(FLOW[:3], n_t, phi, sigma=0.01)
    objective = XpcsObjective(c2, phi, q=Q, times=times_of(n_t), model="static_isotropic", scaling="shared")
    compare(objective, c2, np.concatenate([physical, [0.0, 0.0]]))


@pytest.mark.parametrize("scaling", ["individual", "fourier", "auto"])
@pytest.mark.parametrize("model", ["laminar_flow", "static_anisotropic"])
def test_contrast_and_offset_may_differ_between_angles(scaling, model):
    phi = PHI[::2]
    truth = FLOW if model == "laminar_flow" else FLOW[:3]
    c2 = noisy(truth, 70, phi, contrast=0.3 + 0.1 * np.cos(np.deg2rad(phi)), offset=1 + 1e-4 * phi)
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(70), scaling=scaling, model=model)
    x = np.concatenate([truth, np.zeros(len(objective.linear))])
    found = compare(objective, c2, x)
    if scaling != "auto":
        contrast, offset = objective.scaling_at(found.x)
        np.testing.assert_allclose(contrast, 0.3 + 0.1 * np.cos(np.deg2rad(phi)), atol=0.05)
        np.testing.assert_allclose(offset, 1 + 1e-4 * phi, atol=0.005)


@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
def test_missing_values_and_single_errors_are_weights(model):
    phi, n_t = PHI[::4], 75
    truth = FLOW if model == "laminar_flow" else FLOW[:3]
    c2 = noisy(truth, n_t, phi)
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.01, 0.03, (n_t, n_t))
    sigma = np.broadcast_to(0.5 * (sigma + sigma.T), c2.shape)
    c2[1, 5, 60] = np.nan
    c2[2, 33:40, 41] = np.inf
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(n_t), scaling="shared", model=model, sigma=sigma)
    x = np.concatenate([truth, [0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        found = compare(objective, c2, x, weight=1 / sigma**2)
    assert found.rejected == 8
    plain = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(n_t), scaling="shared", model=model, sigma=0.02)
    with np.errstate(invalid="ignore"):
        assert compare(plain, c2, x, weight=np.full(c2.shape, 2500.0)).rejected == 8


def test_halves_that_differ_are_two_measurements():
    phi, n_t = PHI[::4], 60
    c2 = noisy(FLOW, n_t, phi, symmetric=False)
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(n_t), scaling="shared")
    found = objective.evaluate(np.concatenate([FLOW, [0.0, 0.0]]))
    basis = np.ones((len(phi), 1))
    upper = direct_quadratic(
        np.triu(c2) + np.triu(c2, 1).transpose(0, 2, 1), phi, FLOW, found.x[7:8], found.x[8:], basis
    )
    lower = direct_quadratic(
        np.tril(c2) + np.tril(c2, -1).transpose(0, 2, 1), phi, FLOW, found.x[7:8], found.x[8:], basis
    )
    assert found.cost == pytest.approx(upper[0] + lower[0], rel=1e-9)
    assert found.count == len(phi) * n_t * (n_t - 1)
    np.testing.assert_allclose(found.hessian, upper[2] + lower[2], rtol=1e-6)


def test_the_direct_form_has_the_derivatives_of_automatic_differentiation():
    """Of all that the comparisons above rest on."""
    import jax
    import jax.numpy as jnp

    n_t, angle = 24, 40.0
    with jax.enable_x64(True):
        expected = np.asarray(jax.jit(jax.jacfwd(lambda p: direct_model(p, n_t, angle, jnp)))(jnp.asarray(FLOW)))
    for k in range(7):
        stepped = direct_model(FLOW + 1j * STEP * (np.arange(7) == k), n_t, angle)
        np.testing.assert_allclose(
            stepped.imag / STEP, expected[:, k], rtol=1e-9, atol=1e-12 * np.abs(expected[:, k]).max()
        )


def test_the_smoothing_of_the_shear_integral_counts_for_the_cost():
    """At slow shear and long steps it changes g by 1e-5; the cost has it, the derivatives may lack it."""
    slow = np.array([1500.0, -0.40, 200.0, 3.0e-4, 0.20, 5.0e-5, 4.0])
    phi, n_t = PHI[:3], 30
    c2 = np.stack([1 + 0.3 * g1_squared(slow, times_of(n_t), q=Q, gap=2e6, phi=float(angle)) for angle in phi])
    c2 += 1e-4 * np.cos(np.arange(n_t) + np.arange(n_t)[:, None])
    objective = XpcsObjective(c2, phi, q=Q, gap=2e6, times=times_of(n_t), scaling="shared")
    i, j = np.triu_indices(n_t, 1)
    found = objective.evaluate(np.concatenate([slow, [0.0, 0.0]]))
    model = [found.x[8] + found.x[7] * g1_squared(slow, times_of(n_t), q=Q, gap=2e6, phi=float(a))[i, j] for a in phi]
    assert found.cost == pytest.approx(0.5 * np.sum((np.array(model) - c2[:, i, j]) ** 2), rel=1e-6)


def test_each_pair_is_in_one_place():
    for n_t in (3, 32, 33, 64, 600, 1100):
        seen = np.zeros((n_t, n_t), np.int8)
        strips = [k for chunk in range(n_chunks(n_t)) for k in strips_of(chunk, n_t)]
        assert sorted(strips) == list(range(n_strips(n_t)))
        for strip in strips:
            for place in places_of(strip, n_t):
                seen[place.first : place.first + place.rows, place.left : place.left + place.width] += 1
                assert (place.left - place.first) % ROWS == 0 or not place.width
        above = np.triu_indices(n_t, 1)
        assert (seen[above] == 1).all()


def test_nodes_sum_and_interpolate_polynomials_exactly():
    nodes = coarse.nodes_of(70)
    t = np.arange(70.0)
    x = nodes.at(t)
    assert nodes.share.sum() == pytest.approx(70)
    for degree in range(2 * coarse.NODES):
        value = ((t - 16) / 32) ** degree
        assert (nodes.share * ((x - 16) / 32) ** degree).sum() == pytest.approx(value.sum(), rel=1e-9)
    for degree in range(coarse.NODES):
        data = np.random.default_rng(0).standard_normal(32)
        wave = ((t[:32] - 16) / 16) ** degree
        assert (nodes.spread @ data) @ ((x[:8] - 16) / 16) ** degree == pytest.approx(data @ wave, rel=1e-9)


def test_the_stand_in_has_nearly_the_cost_of_the_data():
    phi = PHI[::3]
    c2 = noisy(FLOW, 530, phi)
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(530), scaling="shared")
    assert objective.small is not objective
    x = np.concatenate([FLOW, [0.0, 0.0]])
    whole, small = objective.evaluate(x), objective.small.evaluate(x)
    assert small.cost == pytest.approx(whole.cost, rel=1e-4)
    assert small.count == whole.count
    size = np.sqrt(np.diag(whole.hessian))
    np.testing.assert_allclose(small.hessian / np.outer(size, size), whole.hessian / np.outer(size, size), atol=0.02)
