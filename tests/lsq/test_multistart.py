"""Starts fill the box, the same ones every time, and the tournament finds the deepest of many minima."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.lsq import levenberg, multistart
from tessera.lsq.errors import StartError
from tessera.lsq.levenberg import LMOptions
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Quadratic

T = np.linspace(0, 6, 300)
TRUTH = np.array([1.5, 7.3])
Y = TRUTH[0] * np.sin(TRUTH[1] * T) + np.random.default_rng(0).normal(0, 0.1, T.size)
LOWER, UPPER = np.array([0.1, 0.5]), np.array([5.0, 12.0])
START = np.array([1.0, 2.0])


class Sine:
    """A frequency is the textbook case of many local minima."""

    names = ("a", "w")

    def evaluate(self, x, *, order=2, single=False, scores=False):
        s = np.sin(x[1] * T)
        r = x[0] * s - Y
        j = np.stack([s, x[0] * T * np.cos(x[1] * T)])
        return Quadratic(np.array(x), 0.5 * float(r @ r), j @ r, j @ j.T, T.size)


def config(**values):
    return HybridStreamingConfig.with_multistart(40).replace(**values)


@pytest.mark.parametrize("sampler", ["lhs", "sobol", "halton"])
def test_designs_fill_the_cube_and_repeat(sampler):
    points = multistart.design(sampler, 64, 5, seed=3)
    np.testing.assert_array_equal(points, multistart.design(sampler, 64, 5, seed=3))
    assert not np.array_equal(points, multistart.design(sampler, 64, 5, seed=4))
    assert (points >= 0).all()
    assert (points < 1).all()
    # Each eighth of each axis holds its share: random points miss that.
    counts = np.stack([np.histogram(column, 8, (0, 1))[0] for column in points.T])
    assert counts.min() >= 5
    assert counts.max() <= 11
    if sampler == "lhs":
        assert all(len(np.unique((column * 64).astype(int))) == 64 for column in points.T)


def test_halton_is_that_of_the_book():
    base2 = [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]
    base3 = [0, 1 / 3, 2 / 3, 1 / 9, 4 / 9, 7 / 9]
    points = multistart.design("halton", 6, 2, seed=1)
    for column, book in zip(points.T, (base2, base3), strict=True):
        np.testing.assert_allclose((column - column[0]) % 1, book, atol=1e-14)
    with pytest.raises(StartError, match="21 dimensions"):
        multistart.design("halton", 4, 21)


def test_starts_stay_in_the_box_and_begin_with_the_users():
    points = multistart.starts(START, LOWER, UPPER, config(scale_factor=3.0))
    np.testing.assert_array_equal(points[0], START)
    assert (points >= LOWER).all()
    assert (points <= UPPER).all()
    free = multistart.starts(START, np.full(2, -np.inf), np.full(2, np.inf), config(scale_factor=0.5))
    assert (np.abs(free - START) <= 0.5 * (np.abs(START) + 0.1)).all()
    with pytest.raises(StartError, match="finite bounds"):
        multistart.starts(START, LOWER, np.array([5.0, np.inf]), config(center_on_p0=False))


def play(settings, advance=None):
    points = multistart.starts(START, LOWER, UPPER, settings, seed=1)
    advance = advance or multistart.in_turn(Sine(), LMOptions())
    return multistart.choose(points, LOWER, UPPER, advance, settings)


def minimum(x0):
    state = levenberg.start(x0, LOWER, UPPER)
    while not levenberg.done(state):
        state = levenberg.step(state, Sine().evaluate)
    return state.x


@pytest.mark.parametrize("sampler", ["lhs", "sobol", "halton"])
def test_the_deepest_minimum_is_found(sampler):
    assert abs(minimum(START)[1] - TRUTH[1]) > 1  # from the user's start it is missed
    x = minimum(play(config(multistart_sampler=sampler, center_on_p0=False)))
    np.testing.assert_allclose(x, TRUTH, rtol=0.02)


def test_never_worse_than_the_users_start():
    for seed in range(5):
        settings = config(n_starts=3, scale_factor=0.01 * (seed + 1))
        cost = Sine().evaluate(play(settings)).cost
        assert cost <= Sine().evaluate(START).cost


def test_entrants_go_round_by_round():
    settings = config(n_starts=9, elimination_rounds=3, elimination_fraction=0.5, batches_per_round=2)
    seen = []
    inner = multistart.in_turn(Sine(), LMOptions(tolerance=1e-300))

    def advance(entrants):
        seen.append(len(entrants))
        return inner(entrants)

    play(settings, advance)
    assert seen[:4] == [9, 9, 5, 5]
    assert len(seen) <= 6


def test_a_start_without_a_finite_model_goes_first():
    class Patchy(Sine):
        def evaluate(self, x, **asked):
            q = super().evaluate(x, **asked)
            return q if x[1] < 3 else Quadratic(q.x, np.nan, q.gradient * np.nan, q.hessian, q.count)

    settings = config(n_starts=8, center_on_p0=False)
    x = play(settings, multistart.in_turn(Patchy(), LMOptions()))
    assert np.isfinite(Patchy().evaluate(x).cost)


def test_goes_on_from_saved_arrays_with_the_same_bits():
    settings = config(n_starts=6)
    points = multistart.starts(START, LOWER, UPPER, settings)
    advance = multistart.in_turn(Sine(), LMOptions())
    straight = saved = multistart.begin(points, LOWER, UPPER)
    while not multistart.done(straight, settings):
        straight = multistart.step(straight, advance, settings)
        arrays = {k: np.array(v) for k, v in multistart.to_arrays(saved).items()}
        saved = multistart.step(multistart.from_arrays(arrays), advance, settings)
    for name, value in multistart.to_arrays(straight).items():
        np.testing.assert_array_equal(multistart.to_arrays(saved)[name], value)
