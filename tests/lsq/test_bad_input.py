"""What a fit refuses, and that it says which parameter, chunk or argument, why, and what to do."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tessera.lsq import HybridStreamingConfig, Status, fit
from tessera.lsq.errors import DataError, FitInputError, ModelError, StartError

X = np.linspace(0.1, 4, 40)
Y = 2.0 * np.exp(-X)


def decay(x, a, b):
    return a * jnp.exp(-b * x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x, a, b: a * x[:-1] + b, r"shape \(39,\) for 40 points"),
        (lambda x, a, b: jnp.outer(a * x, x) + b, r"shape \(40, 40\)"),
        (lambda x, a, b: a * jnp.log(-x) + b, r"nan at the start values a = 1, b = 1, first at point 0"),
        (lambda x, a, b: np.exp(np.asarray(a) * np.asarray(x)) + b, "cannot be traced by JAX"),
        (lambda x, a, b: a if b > 0 else x, "cannot be traced by JAX"),
        (lambda x, a, b: a * x + jnp.sqrt(b - 1.0), "derivatives are not finite"),
    ],
)
def test_models_that_cannot_be_fitted(model, words):
    with pytest.raises(ModelError, match=words):
        fit(model, (X, Y), [1.0, 1.0])


def test_a_model_that_looks_at_its_neighbours_is_found_out():
    x = np.linspace(0, 1, 5000)
    with pytest.raises(ModelError, match="depends on the other points"):
        fit(lambda x, a: a * x / jnp.max(x), (x, x), [0.5], config=HybridStreamingConfig(chunk_size=2500))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"p0": [1.0]}, StartError, "1 values but the model takes 2 parameters: a, b"),
        ({"p0": [1.0, np.nan]}, StartError, "b = nan"),
        ({"p0": {"a": 1.0}}, StartError, r"missing \['b'\]"),
        ({"p0": [1.0, 7.0], "bounds": (0, 5)}, StartError, "b = 7 lies outside its bounds 0 to 5"),
        ({"bounds": ([0, 3], [1, 2])}, StartError, "b: the lower bound 3 is not below the upper bound 2"),
        ({"bounds": ([0, 0, 0], 1)}, StartError, "lower bounds"),
        ({"bounds": ([0, np.nan], 1)}, StartError, "b: the lower bound nan"),
        ({"linear": ["c"]}, StartError, "no parameter 'c'"),
        ({"loss": "huge"}, FitInputError, "soft_l1"),
        ({"sigma": np.where(X > 3, 0.0, 1.0)}, DataError, "sigma"),
        ({"sigma": -np.ones(40)}, DataError, "sigma"),
        ({"sigma": np.ones(3)}, DataError, "sigma has shape"),
        ({"data": (X[:1], Y[:1])}, DataError, "1 points cannot determine 2 parameters"),
        ({"data": (X, Y[:-1])}, DataError, "39 points"),
        ({"data": (X, np.where(X > 2, np.nan, Y))}, DataError, "chunk 0"),
    ],
)
def test_arguments_that_cannot_be_used(change, error, words):
    with pytest.raises(error, match=words):
        fit(decay, **({"data": (X, Y), "p0": [1.0, 1.0]} | change))


def test_a_model_of_unknown_many_parameters_needs_a_start():
    with pytest.raises(StartError, match="give p0"):
        fit(lambda x, *p: p[0] * x, (X, Y))


def test_a_source_that_changes_its_length_between_passes_is_refused():
    calls = []

    def pieces():
        calls.append(1)
        n = 40 if len(calls) < 4 else 30
        yield X[:n], Y[:n]

    with pytest.raises(DataError, match="30 points in this pass but 40"):
        fit(decay, pieces, [1.0, 0.3])


def test_float32_data_with_a_range_that_only_float64_has_keep_it():
    x = X.astype(np.float32)
    y = (1e30 * np.exp(-X)).astype(np.float32)
    result = fit(lambda x, a, b: a * 1e30 * jnp.exp(-b * x), (x, y), [0.5, 0.5], sigma=1e-20 + np.zeros(40))
    assert result.success, result.message
    np.testing.assert_allclose(result.x, [1.0, 1.0], rtol=1e-6)


def test_a_model_that_becomes_nan_on_the_way_is_no_success_by_accident():
    # Finite only at the start itself: no step can be taken.
    result = fit(lambda x, a: jnp.where(a == 1.0, a * x, jnp.nan), (X, Y), [1.0])
    assert result.status is Status.NOT_FINITE
    assert not result.success
    assert result.x[0] == 1.0
    assert "another start" in result.message
