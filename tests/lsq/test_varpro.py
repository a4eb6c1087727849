"""Linear parameters: no good start needed, the same minimum, no false steps."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tessera.lsq import HybridStreamingConfig, Status, fit

RNG = np.random.default_rng(8)
X = np.linspace(0, 6, 400)
Y = 3.0 * np.exp(-1.1 * X) + 1.5 * np.exp(-0.25 * X) + 0.4 + 0.005 * RNG.standard_normal(400)
COLD = HybridStreamingConfig(max_warmup_iterations=0, warmup_iterations=0)


def two_decays(x, k1, k2, a1, a2, c):
    return a1 * jnp.exp(-k1 * x) + a2 * jnp.exp(-k2 * x) + c


def variable_projection(k1, k2):
    """Cost with the best amplitudes: Golub & Pereyra's functional."""
    basis = np.stack([np.exp(-k1 * X), np.exp(-k2 * X), np.ones(400)], 1)
    return 0.5 * float(np.linalg.lstsq(basis, Y, rcond=None)[1][0])


LINEAR = ("a1", "a2", "c")


@pytest.mark.parametrize("amplitudes", [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [-1e6, 3e5, 1e7]])
def test_the_start_of_linear_parameters_does_not_matter(amplitudes):
    result = fit(two_decays, (X, Y), [2.0, 0.5, *amplitudes], linear=LINEAR, config=COLD)
    assert result.success, result.message
    assert result.cost == pytest.approx(variable_projection(*result.x[:2]), rel=1e-9)
    for k in range(2):  # a minimum of the projected functional
        step = np.zeros(2)
        step[k] = 0.1 * result.errors[k]
        assert variable_projection(*(result.x[:2] + step)) > result.cost
        assert variable_projection(*(result.x[:2] - step)) > result.cost


def test_the_minimum_is_that_of_all_parameters_together():
    start = [2.0, 0.5, 2.0, 2.0, 0.0]
    projected = fit(two_decays, (X, Y), start, linear=LINEAR, config=COLD)
    together = fit(two_decays, (X, Y), start, config=COLD)
    np.testing.assert_allclose(projected.x, together.x, rtol=1e-6)
    np.testing.assert_allclose(projected.covariance, together.covariance, rtol=1e-4)


def test_linear_parameters_keep_their_bounds():
    low = [0, 0, 0, 0, 0.5]
    result = fit(two_decays, (X, Y), [2.0, 0.5, 1.0, 1.0, 1.0], bounds=(low, 10), linear=LINEAR, config=COLD)
    assert result.status is Status.AT_BOUND
    assert result["c"] == 0.5
    both = fit(two_decays, (X, Y), [2.0, 0.5, 1.0, 1.0, 1.0], bounds=(low, 10), config=COLD)
    assert result.cost == pytest.approx(both.cost, rel=1e-9)
