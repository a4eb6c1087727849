"""Passes over chunks: sums against numpy, groups, precision, ranks and threads."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tessera.lsq import Groups, HybridStreamingConfig, fit, hybrid
from tessera.lsq.accumulate import ModelObjective, Settings
from tessera.lsq.fit_model import describe
from tessera.lsq.guard import Guarded
from tessera.lsq.reduce import serial
from tessera.lsq.sources import ArraySource

RNG = np.random.default_rng(5)
N = 7001
X = np.stack([RNG.integers(0, 3, N).astype(float), RNG.uniform(0, 4, N)])
TRUE = {"rate": 1.3, "scale": np.array([2.0, 3.0, 4.0]), "base": np.array([0.1, 0.2, 0.3])}
WHICH = X[0].astype(int)
Y = TRUE["base"][WHICH] + TRUE["scale"][WHICH] * np.exp(-TRUE["rate"] * X[1]) + 0.02 * RNG.standard_normal(N)
SIGMA = RNG.uniform(0.5, 2.0, N)
MASK = RNG.uniform(size=N) > 0.1
ANGLES = Groups(("scale", "base"), row=0, count=3)


def decay(x, rate, scale, base):
    return base + scale * jnp.exp(-rate * x[1])


def objective(chunk_size=N, groups=ANGLES, **settings):
    source = Guarded(ArraySource(X, Y, sigma=SIGMA, mask=MASK, chunk_size=chunk_size))
    names = ("rate", "scale", "base")
    model = describe(decay, None, names=names, groups=groups)
    return ModelObjective(model, source, serial(), Settings(**settings))


def by_numpy(x):
    """Cost, gradient, matrix and scores of the grouped model, by plain numpy."""
    rate, scale, base = x[0], x[1:4], x[4:7]
    e = np.exp(-rate * X[1])
    w = np.where(MASK, 1 / SIGMA, 0.0)
    j = np.zeros((N, 7))
    j[:, 0] = -X[1] * scale[WHICH] * e
    j[np.arange(N), 1 + WHICH] = e
    j[np.arange(N), 4 + WHICH] = 1.0
    j *= w[:, None]
    r = w * (base[WHICH] + scale[WHICH] * e - Y)
    return 0.5 * r @ r, j.T @ r, j.T @ j, (j * r[:, None]).T @ (j * r[:, None])


AT = np.array([1.0, 1.5, 2.5, 3.5, 0.0, 0.1, 0.2])


@pytest.mark.parametrize(("chunk_size", "scan"), [(N, True), (3000, True), (3000, False), (500, True)])
def test_sums_are_numpys_whatever_the_chunks(chunk_size, scan):
    q = objective(chunk_size, scan=scan).evaluate(AT, scores=True)
    cost, gradient, matrix, scores = by_numpy(AT)
    assert q.cost == pytest.approx(cost, rel=1e-13)
    np.testing.assert_allclose(q.gradient, gradient, rtol=1e-12)
    np.testing.assert_allclose(q.hessian, matrix, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(q.scores, scores, rtol=1e-12, atol=1e-9)
    assert (q.count, q.rejected) == (MASK.sum(), N - MASK.sum())
    w2 = np.where(MASK, SIGMA**-2, 0)
    mean = np.sum(w2 * Y) / np.sum(w2)
    assert q.spread == pytest.approx(np.sum(w2 * (Y - mean) ** 2) / MASK.sum())
    assert q.power == pytest.approx(np.sum(w2 * Y**2))


def test_single_precision_is_close_and_the_order_says_what_is_made():
    rough, cost = objective(3000, precision="float32").evaluate(AT, order=1), by_numpy(AT)[0]
    assert rough.cost == pytest.approx(cost, rel=1e-5)
    assert rough.cost != objective(3000).evaluate(AT).cost
    assert objective(3000).evaluate(AT, order=0).cost == pytest.approx(cost, rel=1e-13)
    # Too few points for a second compilation to pay:
    assert objective(3000).evaluate(AT, single=True).cost == objective(3000).evaluate(AT).cost


def test_threads_and_ranks_change_no_bit():
    one = objective(500).evaluate(AT)

    def three_ranks(n, contributions):
        from hpc.ranks import SerialRanks
        from hpc.reduce import sum_chunks

        # Each rank makes its own share, as over MPI; rank 0 finishes the tree with all of them.
        shares = [range(r * n // 3, (r + 1) * n // 3) for r in range(3)]
        parts = list(itertools.chain.from_iterable(list(contributions(s)) for s in shares))
        return sum_chunks(SerialRanks(), n, range(n), iter(parts))

    other = objective(500, threads=3)
    shared = ModelObjective(other.model, other.source, three_ranks, other.settings).evaluate(AT)
    assert one.cost == shared.cost
    np.testing.assert_array_equal(one.gradient, shared.gradient)
    np.testing.assert_array_equal(one.hessian, shared.hessian)


def test_groups_have_their_own_parameters():
    result = fit(
        decay, (X, Y), {"rate": 1.0, "scale": 1.0, "base": 0.0}, groups=ANGLES, absolute_sigma=True,
        sigma=np.full(N, 0.02), bounds=([0, 0, -1], 10),
    )  # fmt: skip
    assert result.names == ("rate", "scale[0]", "scale[1]", "scale[2]", "base[0]", "base[1]", "base[2]")
    truth = np.array([TRUE["rate"], *TRUE["scale"], *TRUE["base"]])
    assert (np.abs(result.x - truth) < 4 * result.errors).all()
    assert result.reduced == pytest.approx(1.0, abs=0.06)


def test_many_chunks_are_fitted_on_a_sample_first_and_exactly_after():
    options = HybridStreamingConfig(chunk_size=200)
    sampled = fit(decay, (X, Y), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], names=("rate", "scale", "base"), groups=ANGLES,
                  config=options)  # fmt: skip
    whole = fit(decay, (X, Y), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], names=("rate", "scale", "base"), groups=ANGLES)
    assert sampled.telemetry["sampled"]
    assert not whole.telemetry["sampled"]
    assert sampled.telemetry["gauss_newton_passes"] < whole.telemetry["gauss_newton_passes"]
    np.testing.assert_allclose(sampled.x, whole.x, rtol=1e-9)
    np.testing.assert_allclose(sampled.errors, whole.errors, rtol=1e-6)


def test_a_sample_that_is_not_fitted_soon_is_given_up(monkeypatch):
    """Its cost must not be what the first pass over all data is judged by."""
    monkeypatch.setattr(hybrid, "_SAMPLE_PASSES", 1)
    x = np.linspace(0, 4, 64_000)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + np.random.default_rng(3).normal(0, 0.05, x.size)
    config = HybridStreamingConfig(chunk_size=1000, max_warmup_iterations=0, warmup_iterations=0)

    near = (2.4, 1.25, 0.5)  # all data cost more at their minimum than the sample does here

    def decay(x, a, b, c):
        return a * jnp.exp(-b * x) + c

    result = fit(decay, (x, y), near, config=config)
    whole = fit(decay, (x, y), near, config=config.replace(chunk_size=64_000))
    assert result.success, result.message
    np.testing.assert_allclose(result.x, whole.x, rtol=1e-7)


def test_a_sample_that_is_unlike_the_rest_does_no_harm():
    x = np.linspace(0, 1, 3200)
    y = 2.0 + 3.0 * x
    y[(np.arange(3200) // 100) % 4 == 0] = -50.0  # just what the sample sees
    result = fit(lambda x, a, b: a + b * x, (x, y), [0.0, 0.0], config=HybridStreamingConfig(chunk_size=100))
    np.testing.assert_allclose(result.x, np.polyfit(x, y, 1)[::-1], rtol=1e-8)


def test_no_code_path_changes_the_callers_precision():
    fit(lambda x, a: a * x, (X[1], Y), [1.0])
    assert jnp.ones(3).dtype == jnp.float32


def test_several_starts_find_the_valley_that_one_misses():
    x = np.linspace(0, 10, 300)
    y = np.sin(2.3 * x) + 0.05 * RNG.standard_normal(300)

    def wave(x, omega):
        return jnp.sin(omega * x)

    alone = fit(wave, (x, y), [1.0], bounds=(0.2, 5.0))
    many = fit(wave, (x, y), [1.0], bounds=(0.2, 5.0), config=HybridStreamingConfig.with_multistart(20))
    assert abs(alone.x[0] - 2.3) > 0.1
    assert abs(many.x[0] - 2.3) < 4 * many.errors[0]


def test_start_values_by_name_name_what_the_signature_does_not():
    x = np.linspace(0, 1, 30)
    result = fit(lambda x, *p: p[0] + p[1] * x, (x, 2 + 3 * x), {"level": 0.0, "slope": 0.0})
    assert result.names == ("level", "slope")
    np.testing.assert_allclose(result.x, [2, 3], rtol=1e-9)
    assert describe(lambda x, a, b: a * x + b, {"b": 1.0, "a": 2.0}).names == ("a", "b")  # the signature's order
