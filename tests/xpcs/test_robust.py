"""Robust losses and the sandwich covariance of the compiled sums, against the direct form pair by pair and scipy."""

import numpy as np
import pytest
from scipy.optimize import least_squares
from xpcs.problems import FLOW, FLOW_START, GAP, PHI, SCALING, STEP, Q, direct_model, noisy, times_of

from tessera.xpcs import fit
from tessera.xpcs.errors import ParameterError, XpcsInputError
from tessera.xpcs.objective import XpcsObjective

SIGMA = 0.02
LOSSES = ("soft_l1", "huber", "cauchy", "arctan")


def rho(loss, z):
    """rho, rho' and rho'' as scipy documents them."""
    if loss == "soft_l1":
        return 2 * (np.sqrt(1 + z) - 1), (1 + z) ** -0.5, -0.5 * (1 + z) ** -1.5
    if loss == "huber":
        far = z > 1
        root = np.sqrt(np.where(far, z, 1.0))
        return np.where(far, 2 * root - 1, z), 1 / root, np.where(far, -0.5 * root**-3, 0.0)
    if loss == "cauchy":
        return np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2
    return np.arctan(z), 1 / (1 + z**2), -2 * z / (1 + z**2) ** 2


def with_outliers(physical, n_t, phi, share=0.03, seed=3, low=0.0):
    """Symmetric data of which some pairs are far too high, and of these a part too low instead."""
    c2 = noisy(physical, n_t, phi, sigma=SIGMA, seed=seed)
    rng = np.random.default_rng(seed)
    wrong = np.triu(rng.random(c2.shape) < share, 1) * np.where(rng.random(c2.shape) < low, -1, 1)
    c2 += 0.5 * (wrong + wrong.transpose(0, 2, 1))
    return c2


def residuals_and_jacobian(x, c2, phi):
    """(f - y)/sigma and its derivatives, of shared contrast and offset, for all pairs i < j of all angles."""
    n_t, physical = c2.shape[1], x[:-2]
    i, j = np.triu_indices(n_t, 1)
    r, jac = [], []
    for matrix, angle in zip(c2, phi, strict=True):
        g = direct_model(physical, n_t, angle)
        slopes = [direct_model(physical + 1j * STEP * (np.arange(len(physical)) == k), n_t, angle).imag / STEP
                  for k in range(len(physical))]  # fmt: skip
        r.append(x[-1] + x[-2] * g - matrix[i, j])
        jac.append(np.stack([*(x[-2] * s for s in slopes), g, np.ones_like(g)], axis=1))
    return np.concatenate(r) / SIGMA, np.concatenate(jac) / SIGMA


def objective_of(c2, phi, model, **options):
    return XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(c2.shape[1]), model=model, scaling="shared", **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
@pytest.mark.parametrize("n_t", [45, 70])
def test_cost_gradient_and_matrix_are_those_of_the_direct_form(loss, model, n_t):
    phi = PHI[::4] if model == "laminar_flow" else PHI[:2]
    physical = FLOW_START if model == "laminar_flow" else FLOW_START[:3]
    c2 = with_outliers(physical, n_t, phi)
    x = np.array([*physical, 0.35, 1.02])
    scale = 1.5
    found = objective_of(c2, phi, model, sigma=SIGMA, loss=loss, loss_scale=scale).evaluate(x, scores=True)
    r, jac = residuals_and_jacobian(x, c2, phi)
    value, slope, bend = rho(loss, (r / scale) ** 2)
    curvature = np.maximum(slope + 2 * (r / scale) ** 2 * bend, 0.1 * slope)
    assert found.cost == pytest.approx(0.5 * scale**2 * value.sum(), rel=1e-9)
    hessian = jac.T @ (curvature[:, None] * jac)
    size = np.sqrt(np.diag(hessian))
    np.testing.assert_allclose(found.gradient / size, jac.T @ (slope * r) / size, atol=1e-6 * np.linalg.norm(r))
    np.testing.assert_allclose(found.hessian / np.outer(size, size), hessian / np.outer(size, size), atol=1e-7)
    middle = jac.T @ ((slope * r)[:, None] ** 2 * jac)
    size = np.sqrt(np.diag(middle))
    np.testing.assert_allclose(found.scores / np.outer(size, size), middle / np.outer(size, size), atol=1e-6)
    np.testing.assert_array_equal(found.x, x)


@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
def test_weights_and_missing_values_take_part(model):
    """A single error of each value, given as an array, and values that are not there."""
    phi, n_t = PHI[::4], 50
    physical = FLOW if model == "laminar_flow" else FLOW[:3]
    c2 = with_outliers(physical, n_t, phi)
    x = np.array([*physical, 0.35, 1.02])
    single = objective_of(c2, phi, model, sigma=np.full(c2.shape, SIGMA), loss="soft_l1")
    one = objective_of(c2, phi, model, sigma=SIGMA, loss="soft_l1")
    assert single.evaluate(x).cost == pytest.approx(one.evaluate(x).cost, rel=1e-12)
    np.testing.assert_allclose(single.evaluate(x).gradient, one.evaluate(x).gradient, rtol=1e-9)
    c2[0, 3, 40] = c2[0, 40, 3] = np.nan
    r, _ = residuals_and_jacobian(x, c2, phi)
    found = objective_of(c2, phi, model, sigma=SIGMA, loss="soft_l1").evaluate(x)
    assert found.rejected == 1
    assert found.cost == pytest.approx(0.5 * rho("soft_l1", r[np.isfinite(r)] ** 2)[0].sum(), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fit_ends_where_scipy_ends(loss):
    phi = PHI[:2]
    c2 = with_outliers(FLOW[:3], 60, phi)
    result = fit(
        c2, phi, q=Q, times=times_of(60), model="static_isotropic", scaling="shared", sigma=SIGMA, loss=loss,
        p0=FLOW_START[:3],
    )  # fmt: skip
    assert result.success, result.message
    start = result.x * [1.01, 0.99, 1.02, 1.0, 1.0]
    expected = least_squares(
        lambda x: residuals_and_jacobian(x, c2, phi)[0],
        start,
        lambda x: residuals_and_jacobian(x, c2, phi)[1],
        loss=loss,
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
    )
    np.testing.assert_allclose((result.x - expected.x) / result.errors, 0.0, atol=2e-3)
    assert result.cost == pytest.approx(expected.cost, rel=1e-8)


@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
def test_outliers_pull_squares_and_not_a_robust_fit(model):
    """Three per cent of the pairs are 25 standard errors off; 600 frames start on a stand-in of the data."""
    phi, n_t = (PHI[1::3], 600) if model == "laminar_flow" else (PHI[:1], 200)
    truth = FLOW if model == "laminar_flow" else FLOW[:3]
    options = {"q": Q, "gap": GAP, "times": times_of(n_t), "model": model, "p0": 0.9 * truth, "scaling": "shared"}
    expected = np.array([*truth, *SCALING])
    high = with_outliers(truth, n_t, phi)
    squares, robust = fit(high, phi, **options), fit(high, phi, loss="arctan", **options)
    assert abs(squares.x[-1] - 1.0) > 0.01  # the offset of squares is what the outliers add
    assert abs(robust.x[-1] - 1.0) < 3e-3
    both = with_outliers(truth, n_t, phi, low=0.5)
    squares, robust = fit(both, phi, **options), fit(both, phi, loss="arctan", loss_scale=3.0, sandwich=True, **options)
    assert robust.success
    assert (np.abs(robust.x - expected) < 4 * robust.errors).all()
    clean = fit(noisy(truth, n_t, phi, sigma=SIGMA, seed=3), phi, **options)
    assert (robust.errors < 1.3 * clean.errors).all()
    assert np.median(squares.errors / clean.errors) > 3


def test_the_sandwich_holds_where_the_noise_is_not_of_one_size():
    """Noise ten times as large at short lags: the plain errors of the contrast are a third too large, those of the sandwich right."""
    phi, n_t, cases = PHI[:1], 60, 60
    lag = np.abs(np.subtract.outer(np.arange(n_t), np.arange(n_t)))
    size = np.where(lag < 6, 0.01, 0.001)
    clean = noisy(FLOW[:3], n_t, phi, sigma=0.0)
    plain, sandwich = [], []
    for seed in range(cases):
        noise = np.triu(size * np.random.default_rng(seed).standard_normal((n_t, n_t)), 1)
        for errors, store in ((False, plain), (True, sandwich)):
            result = fit(
                clean + noise + noise.T, phi, q=Q, times=times_of(n_t), model="static_isotropic", scaling="shared",
                p0=FLOW[:3], sandwich=errors,
            )  # fmt: skip
            store.append((result.x - [*FLOW[:3], *SCALING]) / result.errors)
    widths = [np.sqrt(np.mean(np.square(z), axis=0)) for z in (plain, sandwich)]
    assert (np.abs(widths[1] - 1) < 0.2).all(), widths
    assert np.abs(widths[0] - 1).max() > 0.25, widths


def test_halves_that_differ_count_as_their_mean():
    phi, n_t = PHI[::4], 50
    c2 = noisy(FLOW, n_t, phi, symmetric=False)
    mean = 0.5 * (c2 + c2.transpose(0, 2, 1))
    x = np.array([*FLOW, 0.3, 1.0])
    both = objective_of(c2, phi, "laminar_flow", sigma=SIGMA, loss="huber").evaluate(x)
    once = objective_of(mean, phi, "laminar_flow", sigma=SIGMA / np.sqrt(2), loss="huber").evaluate(x)
    assert both.cost == pytest.approx(once.cost, rel=1e-12)
    assert both.count == once.count


def test_what_is_no_loss_is_said():
    c2, options = noisy(FLOW[:3], 20, PHI[:1]), {"q": Q, "times": times_of(20), "model": "static_isotropic"}
    with pytest.raises(ParameterError, match=r"no loss 'l1' .* losses are linear, soft_l1"):
        fit(c2, PHI[:1], loss="l1", **options)
    with pytest.raises(ParameterError, match="scale, in standard errors, is positive"):
        fit(c2, PHI[:1], loss="huber", loss_scale=0.0, **options)
    with pytest.raises(XpcsInputError, match="no noise can be measured"):
        fit(np.ones((1, 20, 20)), 0.0, loss="huber", **options)
