"""The warm-up descends, stays in its box, never loses ground, and says what its four layers did."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.lsq import warmup
from tessera.lsq.options import PRESETS, HybridStreamingConfig
from tessera.lsq.quadratic import Quadratic
from tessera.lsq.space import Space

T = np.linspace(0, 2, 400)
TRUTH = np.array([2.5, 1.3, 0.5])
Y = TRUTH[0] * np.exp(-TRUTH[1] * T) + TRUTH[2] + np.random.default_rng(3).normal(0, 0.05, T.size)
LOWER, UPPER = np.zeros(3), np.array([10.0, 5.0, 3.0])


def decay(x):
    """Cost and gradient of an exponential with an offset, by hand."""
    e = np.exp(-x[1] * T)
    r = x[0] * e + x[2] - Y
    j = np.stack([e, -x[0] * T * e, np.ones_like(T)])
    return Quadratic(x, 0.5 * float(r @ r), j @ r, np.zeros((3, 3)), T.size)


def rosenbrock(x):
    r = np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    j = np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])
    return Quadratic(x, 0.5 * float(r @ r), j.T @ r, np.zeros((2, 2)), 2)


def box(lower=LOWER, upper=UPPER):
    return Space(lower, upper, upper - lower, lower)


def free(p):
    return Space(np.full(p, -np.inf), np.full(p, np.inf), np.ones(p), np.zeros(p))


def run(x0, config, *, space=None, evaluate=decay, variance=None):
    state = warmup.start(evaluate(np.asarray(x0, float)), space or box(), config, variance)
    asked = []
    while not warmup.done(state):
        asked.append(warmup.ask(state))
        state = warmup.step(state, evaluate)
        assert len(asked) <= config.max_warmup_iterations
    return state, np.array(asked)


START = (6.0, 3.0, 2.0)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "multistart"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_descends_within_the_bounds(preset, optimizer):
    config = HybridStreamingConfig.preset(preset, warmup_optimizer=optimizer)
    state, asked = run(START, config)
    assert (asked >= LOWER).all()
    assert (asked <= UPPER).all()
    end = decay(warmup.best(state)).cost
    assert end < 0.7 * decay(np.array(START)).cost
    assert state.best_loss == pytest.approx(end / decay(np.array(START)).cost, rel=1e-12)


def test_lbfgs_reaches_a_minimum():
    config = HybridStreamingConfig(
        max_warmup_iterations=100,
        active_switching_criteria=("gradient",),
        gradient_norm_threshold=1e-10,
        enable_step_clipping=False,
    )
    state, asked = run((-1.2, 1.0), config, space=free(2), evaluate=rosenbrock)
    assert state.reason == "gradient"
    assert len(asked) < 70  # plain gradient descent takes thousands
    np.testing.assert_allclose(warmup.best(state), [1, 1], atol=1e-6)


def test_backtracking_reaches_it_too():
    config = HybridStreamingConfig(
        max_warmup_iterations=150,
        lbfgs_line_search="backtracking",
        active_switching_criteria=("gradient",),
        gradient_norm_threshold=1e-9,
        enable_step_clipping=False,
    )
    state, _ = run((-1.2, 1.0), config, space=free(2), evaluate=rosenbrock)
    np.testing.assert_allclose(warmup.best(state), [1, 1], atol=1e-5)


def test_adam_steps_as_published():
    # The first step of Adam is the learning rate along the sign of the gradient, whatever its size.
    config = HybridStreamingConfig(warmup_optimizer="adam", warmup_learning_rate=0.01)
    first = warmup.start(decay(np.array(START)), box(), config)
    moved = box().to_z(warmup.ask(first)) - box().to_z(np.array(START))
    np.testing.assert_allclose(moved, -0.01 * np.sign(decay(np.array(START)).gradient), rtol=1e-6)


def test_adam_schedule_rises_and_falls():
    from tessera.lsq.adam import schedule

    config = HybridStreamingConfig(warmup_learning_rate=0.1, lr_schedule_end_value=0.01)
    factors = [schedule(k, config) for k in range(60)]
    assert factors[0] < factors[4] < factors[5] == 1
    assert factors[-1] == pytest.approx(0.1)


def test_minimum_on_a_bound_is_found_and_recognised():
    upper = np.array([10.0, 1.0, 3.0])  # the truth wants 1.3
    config = HybridStreamingConfig(
        max_warmup_iterations=300, active_switching_criteria=("gradient",), gradient_norm_threshold=1e-7
    )
    state, asked = run((6.0, 0.5, 2.0), config, space=box(LOWER, upper))
    assert state.reason == "gradient"
    assert warmup.best(state)[1] == 1.0
    assert (asked <= upper).all()
    # The other two are linear there: the answer is a plain linear fit.
    design = np.stack([np.exp(-T), np.ones_like(T)], axis=1)
    np.testing.assert_allclose(warmup.best(state)[[0, 2]], np.linalg.lstsq(design, Y, rcond=None)[0], rtol=1e-5)


def test_layer_1_skips_with_a_good_start_only():
    config, spread = HybridStreamingConfig(), float(np.var(Y))
    skipped, asked = run(TRUTH, config, variance=spread)
    assert skipped.reason == "skipped"
    assert len(asked) == 0
    assert warmup.telemetry(skipped)["layer1_warm_start"]["skipped"]
    np.testing.assert_array_equal(warmup.best(skipped), TRUTH)
    poor, asked = run(START, config, variance=spread)
    assert poor.reason != "skipped"
    assert len(asked) > 0
    _, asked = run(TRUTH, config.replace(enable_warm_start_detection=False), variance=spread)
    assert len(asked) > 0


@pytest.mark.parametrize(
    ("x0", "quality", "step"),
    [(TRUTH, "refinement", 1.0), ((3.5, 1.6, 0.6), "careful", 0.5), (START, "exploration", 0.1)],
)
def test_layer_2_steps_by_the_start(x0, quality, step):
    config = HybridStreamingConfig(enable_warm_start_detection=False, enable_step_clipping=False)
    state = warmup.start(decay(np.asarray(x0, float)), box(), config, float(np.var(Y)))
    told = warmup.telemetry(state)["layer2_step"]
    assert (told["start"], told["step"]) == (quality, step)
    moved = box().to_z(warmup.ask(state)) - box().to_z(np.asarray(x0, float))
    assert np.linalg.norm(moved) <= step * (1 + 1e-12)


def test_layer_3_ends_a_rising_loss_with_the_best_point():
    config = HybridStreamingConfig(
        warmup_optimizer="adam",
        warmup_learning_rate=3.0,
        warmup_lr_careful=3.0,
        warmup_lr_refinement=3.0,
        enable_step_clipping=False,
    )
    state, _ = run(TRUTH, config)
    assert state.reason == "cost_guard"
    assert state.loss > state.first * 1.05
    np.testing.assert_array_equal(warmup.best(state), TRUTH)
    assert warmup.telemetry(state)["layer3_cost_guard"] == {"enabled": True, "above": 1, "aborted": True}


def test_layer_4_clips_every_update():
    config = HybridStreamingConfig(max_warmup_step_size=0.02, lbfgs_exploration_step_size=5.0, max_warmup_iterations=20)
    state, asked = run(START, config)
    path = np.vstack([START, asked]) / (UPPER - LOWER)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() <= 0.04  # a rejected trial and its neighbour
    assert state.history[:, 2].max() <= 0.02 * (1 + 1e-12)
    assert warmup.telemetry(state)["layer4_step_clip"]["clipped"] > 0


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("seed", range(12))
def test_never_ends_worse_than_it_started(optimizer, seed):
    """From anywhere in the box, with layers on or off and a model that is not finite in places."""

    def patchy(x):
        q = decay(x)
        return q if x[1] < 4.5 else Quadratic(x, np.nan, q.gradient * np.nan, q.hessian, q.count)

    rng = np.random.default_rng(seed)
    x0 = LOWER + (UPPER - LOWER) * rng.random(3) * np.array([1, 0.85, 1])
    preset = "defense_disabled" if seed % 2 else "default"
    config = HybridStreamingConfig.preset(preset, warmup_optimizer=optimizer, warmup_learning_rate=0.3)
    state, _ = run(x0, config, evaluate=patchy)
    assert decay(warmup.best(state)).cost <= decay(x0).cost
    assert np.isfinite(warmup.best(state)).all()


def test_points_lost_on_the_way_count_as_worse():
    """A trial where the model is finite for fewer points has a lower sum of squares, and is no improvement."""

    def losing(x):
        q = decay(x)
        return q if np.array_equal(x, START) else Quadratic(x, 1e-9, q.gradient, q.hessian, 5, rejected=395)

    state, _ = run(START, HybridStreamingConfig(), evaluate=losing)
    np.testing.assert_array_equal(warmup.best(state), START)


def test_a_start_that_is_not_finite_ends_at_once():
    bad = Quadratic(np.array(START), np.nan, np.zeros(3), np.zeros((3, 3)), 400)
    assert warmup.start(bad, box(), HybridStreamingConfig()).reason == "not_finite"


def test_none_at_all():
    state, asked = run(START, HybridStreamingConfig(warmup_iterations=0, max_warmup_iterations=0))
    assert (state.reason, len(asked)) == ("off", 0)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_goes_on_from_saved_arrays_with_the_same_bits(optimizer):
    config = HybridStreamingConfig.preset("conservative", warmup_optimizer=optimizer, telemetry="detailed")
    whole, _ = run(START, config)
    state = warmup.start(decay(np.array(START)), box(), config)
    while not warmup.done(state):
        arrays = {k: np.array(v) for k, v in warmup.to_arrays(state).items()}
        state = warmup.step(warmup.from_arrays(arrays, box(), config), decay)
    for name, value in warmup.to_arrays(whole).items():
        np.testing.assert_array_equal(warmup.to_arrays(state)[name], value, err_msg=name)


def test_telemetry_off_records_nothing():
    state, _ = run(START, HybridStreamingConfig(telemetry="off"))
    assert warmup.telemetry(state) == {}
    assert state.history.size == 0
    detailed, asked = run(START, HybridStreamingConfig(telemetry="detailed"))
    np.testing.assert_array_equal(detailed.history[:, 3:], asked)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"chunksize": 3}, "chunk_size"),
        ({"resume_from_checkpoint": "x"}, "tessera resume"),
        ({"chunk_size": 0}, ">= 1"),
        ({"precision": "f32"}, "float32"),
        ({"enable_cost_guard": 1}, "true or false"),
        ({"elimination_fraction": 1.0}, "between 0 and 1"),
        ({"warmup_iterations": 9, "max_warmup_iterations": 3}, "must not exceed"),
        ({"active_switching_criteria": ["gradients"]}, "gradients"),
        ({"gauss_newton_tol": float("nan")}, "must be a number"),
    ],
)
def test_wrong_options_are_named_with_the_remedy(values, word):
    with pytest.raises(ValueError, match=word):
        HybridStreamingConfig.from_mapping(values)
