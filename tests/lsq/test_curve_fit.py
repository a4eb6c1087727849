"""`curve_fit` beside scipy's, argument by argument."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import OptimizeWarning

from tessera.lsq import curve_fit as package_level
from tessera.lsq.fit_curve import curve_fit
from tessera.lsq.result import Result, Status

RNG = np.random.default_rng(11)
X = np.linspace(0, 4, 300)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * RNG.standard_normal(300)
SIGMA = RNG.uniform(0.02, 0.1, 300)
TIGHT = {"ftol": 1e-13, "xtol": 1e-13, "gtol": 1e-13}


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def as_numpy(f):
    return lambda x, *p: np.asarray(f(x, *p))


def decay_np(x, a, b, c):
    return a * np.exp(-b * x) + c


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("sigma", [None, SIGMA, 0.07])
def test_values_and_covariance_are_scipys(sigma, absolute):
    theirs = np.full(300, sigma) if np.ndim(sigma) == 0 and sigma is not None else sigma
    popt, pcov = scipy.optimize.curve_fit(decay_np, X, Y, sigma=theirs, absolute_sigma=absolute, **TIGHT)
    mine, cov = curve_fit(decay, X, Y, sigma=sigma, absolute_sigma=absolute)
    np.testing.assert_allclose(mine, popt, rtol=1e-7)
    np.testing.assert_allclose(cov, pcov, rtol=1e-5)


def test_bounds_and_no_start_are_scipys():
    bounds = ([0, 0, -1], [2.0, 3.0, 1.0])
    popt, _ = scipy.optimize.curve_fit(decay_np, X, Y, bounds=bounds, **TIGHT)
    mine, _ = curve_fit(decay, X, Y, bounds=bounds)
    np.testing.assert_allclose(mine, popt, rtol=1e-5)
    like_object, _ = curve_fit(decay, X, Y, bounds=scipy.optimize.Bounds(*bounds))
    np.testing.assert_array_equal(like_object, mine)


@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_robust_losses_are_scipys(loss):
    y = Y.copy()
    y[::17] += 3.0
    popt, _ = scipy.optimize.curve_fit(
        decay_np, X, y, [2.0, 1.0, 0.3], method="trf", loss=loss, f_scale=0.1, **TIGHT, max_nfev=10000
    )
    mine, _ = curve_fit(decay, X, y, [2.0, 1.0, 0.3], loss=loss, f_scale=0.1)
    np.testing.assert_allclose(mine, popt, rtol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_two_independent_variables_in_rows_or_columns(turned):
    x = RNG.uniform(0, 3, (2, 200))
    y = 2.0 * np.exp(-0.7 * x[0]) + 0.3 * x[1] + 0.01 * RNG.standard_normal(200)
    if turned:
        mine, _ = curve_fit(lambda x, a, b, c: a * jnp.exp(-b * x[:, 0]) + c * x[:, 1], x.T, y)
    else:
        mine, _ = curve_fit(lambda x, a, b, c: a * jnp.exp(-b * x[0]) + c * x[1], x, y)
    popt, _ = scipy.optimize.curve_fit(lambda x, a, b, c: a * np.exp(-b * x[0]) + c * x[1], x, y, **TIGHT)
    np.testing.assert_allclose(mine, popt, rtol=1e-6)


def test_analytic_jacobian_gives_the_same():
    def jac(x, a, b, c):
        e = jnp.exp(-b * x)
        return jnp.stack([e, -a * x * e, jnp.ones_like(x) + 0 * c], axis=1)

    np.testing.assert_allclose(curve_fit(decay, X, Y, jac=jac)[1], curve_fit(decay, X, Y)[1], rtol=1e-9)


def test_not_finite_data_are_refused_or_omitted():
    y = Y.copy()
    y[[3, 70]] = np.nan
    with pytest.raises(ValueError, match="chunk 0"):
        curve_fit(decay, X, y)
    mine, cov = curve_fit(decay, X, y, nan_policy="omit")
    popt, pcov = scipy.optimize.curve_fit(decay_np, X, y, nan_policy="omit", **TIGHT)
    np.testing.assert_allclose(mine, popt, rtol=1e-6)
    np.testing.assert_allclose(cov, pcov, rtol=1e-5)


def test_full_output_brings_the_result():
    popt, pcov, result = curve_fit(decay, X, Y, full_output=True)
    assert isinstance(result, Result)
    assert result.names == ("a", "b", "c")
    assert result.status is Status.CONVERGED
    assert result["b"] == popt[1]
    np.testing.assert_array_equal(result.covariance, pcov)


def test_as_many_parameters_as_points_have_no_errors():
    with pytest.warns(OptimizeWarning, match="could not be estimated"):
        mine, cov = curve_fit(lambda x, a, b: a + b * x, [0.0, 1.0], [1.0, 3.0])
    np.testing.assert_allclose(mine, [1.0, 2.0], atol=1e-9)
    assert np.isinf(cov).all()


def test_degenerate_parameters_have_infinite_errors_and_a_warning_with_their_names():
    with pytest.warns(OptimizeWarning, match="a, b"):
        _, cov = curve_fit(lambda x, a, b, c: (a + b) * x + c, X, Y)
    assert np.isinf(cov).all()


def test_failure_raises_as_in_scipy():
    with pytest.raises(RuntimeError, match="Optimal parameters not found: not converged"):
        curve_fit(decay, X, Y, maxfev=2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ydata": []}, ValueError, "must not be empty"),
        ({"method": "simplex"}, ValueError, "method"),
        ({"nan_policy": "propagate"}, ValueError, "nan_policy"),
        ({"sigma": np.eye(300)}, ValueError, "Cholesky"),
        ({"sigma": np.ones(7)}, ValueError, "incorrect shape"),
        ({"no_such": 1}, TypeError, "no_such"),
        ({"xdata": [{}] * 300}, ValueError, "xdata"),
    ],
)
def test_what_cannot_be_is_said(change, error, words):
    with pytest.raises(error, match=words):
        curve_fit(decay, **({"xdata": X, "ydata": Y} | change))


def test_scipys_other_keywords_are_accepted():
    mine, _ = curve_fit(decay, X, Y, method="trf", jac="3-point", x_scale="jac", check_finite=False, max_nfev=100)
    np.testing.assert_allclose(mine, curve_fit(decay, X, Y)[0], rtol=1e-9)


def test_the_package_has_it_too():
    assert package_level is curve_fit
