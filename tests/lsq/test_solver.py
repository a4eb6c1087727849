"""The trust-region solver on numpy problems with known minima, and its honesty where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.lsq import hybrid, levenberg, subproblem
from tessera.lsq.cg import steihaug
from tessera.lsq.fit_model import run
from tessera.lsq.hybrid import Plan
from tessera.lsq.levenberg import LMOptions
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Quadratic
from tessera.lsq.result import Status
from tessera.lsq.subproblem import Bounds, Linear, bounded_step

COLD = HybridStreamingConfig(max_warmup_iterations=0, warmup_iterations=0, gauss_newton_max_iterations=500)


class Residuals:
    """An objective of plain numpy residuals and Jacobian."""

    def __init__(self, residuals, jacobian, p, m=None):
        self.residuals, self.jacobian, self.p, self.m = residuals, jacobian, p, m
        self.asked = []

    @property
    def names(self):
        return tuple(f"p{i}" for i in range(self.p))

    def evaluate(self, x, *, order=2, single=False, scores=False):
        self.asked.append(np.array(x))
        with np.errstate(all="ignore"):
            r, j = np.asarray(self.residuals(x), float), np.asarray(self.jacobian(x), float)
            s = (j * r[:, None]).T @ (j * r[:, None]) if scores else None
            return Quadratic(np.array(x), 0.5 * float(r @ r), j.T @ r, j.T @ j, self.m or r.size, scores=s)


def rosenbrock():
    return Residuals(
        lambda x: [10 * (x[1] - x[0] ** 2), 1 - x[0], 0.0], lambda x: [[-20 * x[0], 10.0], [-1.0, 0.0], [0.0, 0.0]], 2
    )


def powell_badly_scaled():
    def r(x):
        return [1e4 * x[0] * x[1] - 1, np.exp(-x[0]) + np.exp(-x[1]) - 1.0001]

    return Residuals(r, lambda x: [[1e4 * x[1], 1e4 * x[0]], [-np.exp(-x[0]), -np.exp(-x[1])]], 2)


def exponential(a=2.5, b=1.3, noise=0.01, m=200, seed=0):
    x = np.linspace(0, 4, m)
    y = a * np.exp(-b * x) + noise * np.random.default_rng(seed).standard_normal(m)
    return Residuals(
        lambda p: p[0] * np.exp(-p[1] * x) - y,
        lambda p: np.stack([np.exp(-p[1] * x), -p[0] * x * np.exp(-p[1] * x)], 1),
        2,
    )


def free(p):
    return np.full(p, -np.inf), np.full(p, np.inf)


def minimum(objective, x0, lower=None, upper=None, config=COLD, **plan):
    low, high = free(objective.p)
    return run(
        objective, np.array(x0, float), low if lower is None else np.array(lower, float),
        high if upper is None else np.array(upper, float), Plan(config, **plan),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "start", "solution"),
    [(rosenbrock, [-1.2, 1.0], [1.0, 1.0]), (powell_badly_scaled, [0.0, 1.0], [1.098159e-5, 9.106146])],
)
def test_classic_problems_are_solved(problem, start, solution):
    result = minimum(problem(), start)
    assert result.success, result.message
    np.testing.assert_allclose(result.x, solution, rtol=1e-6)


def test_a_change_of_units_changes_nothing_but_the_units():
    base, scaled = exponential(), exponential()
    units = np.array([1e-9, 1e6])
    scaled.residuals, scaled.jacobian = (
        lambda p: base.residuals(p * units),
        lambda p: base.jacobian(p * units) * units,
    )
    one, two = minimum(base, [1.0, 0.5]), minimum(scaled, np.array([1.0, 0.5]) / units)
    np.testing.assert_allclose(two.x * units, one.x, rtol=1e-9)
    assert two.evaluations == one.evaluations


def test_a_pass_is_made_at_no_point_twice_and_none_after_the_minimum():
    objective = exponential()
    result = minimum(objective, [1.0, 0.5])
    assert len(objective.asked) == result.evaluations == len({tuple(x) for x in objective.asked})
    assert result.evaluations <= 7
    # The last step needs no pass to confirm it.
    assert (np.abs(objective.asked[-1] - result.x) < 1e-3 * result.errors).all()
    assert result.cost == pytest.approx(objective.evaluate(result.x).cost, rel=1e-12)
    assert np.abs(objective.evaluate(result.x).gradient * result.errors).max() < 1e-9 * result.reduced


def test_standard_errors_are_those_of_the_scatter_of_many_fits():
    found = [minimum(exponential(seed=s, noise=0.05), [1.0, 0.5]) for s in range(60)]
    scatter = np.std([f.x for f in found], axis=0)
    np.testing.assert_allclose(np.mean([f.errors for f in found], axis=0), scatter, rtol=0.3)


@pytest.mark.parametrize("reflective", ["reflective", "projected"])
def test_minimum_on_the_bounds_is_found_and_said(reflective):
    config = COLD.replace(bounds_method=reflective)
    result = minimum(exponential(), [1.0, 0.5], [0.0, 0.0], [2.0, 5.0], config)
    assert result.status is Status.AT_BOUND
    assert result.success
    assert "p0" in result.message
    assert result.x[0] == 2.0
    # With p0 fixed the rest is a one-dimensional fit.
    b = np.linspace(0.5, 1.5, 100001)
    x = np.linspace(0, 4, 200)
    y = 2.5 * np.exp(-1.3 * x) + 0.01 * np.random.default_rng(0).standard_normal(200)
    costs = [np.sum((2.0 * np.exp(-v * x) - y) ** 2) for v in b[::50]]
    assert result.x[1] == pytest.approx(b[::50][int(np.argmin(costs))], abs=2 * 50e-5)


def test_a_start_on_the_wrong_bound_leaves_it():
    result = minimum(exponential(), [0.0, 5.0], [0.0, 0.0], [10.0, 5.0])
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.x, [2.5, 1.3], atol=0.02)


def test_degenerate_parameters_are_named_and_not_called_a_success():
    x = np.linspace(0, 4, 50)
    y = 3 * x + np.sin(40 * x)
    twins = Residuals(lambda p: (p[0] + p[1]) * x + p[2] - y, lambda p: np.stack([x, x, np.ones(50)], 1), 3)
    result = minimum(twins, [1.0, 1.0, 0.0])
    assert result.status is Status.SINGULAR
    assert not result.success
    assert "p0, p1" in result.message
    assert np.isinf(result.errors[:2]).all()
    assert np.isfinite(result.errors[2])


def test_a_model_that_is_not_finite_beyond_a_point_is_fitted_below_it():
    x = np.linspace(0, 1, 100)
    y = np.sqrt(0.2 + x)
    root = Residuals(
        lambda p: np.sqrt(p[0] + x) - y,
        lambda p: (0.5 / np.sqrt(p[0] + x))[:, None],
        1,
    )
    result = minimum(root, [50.0])
    assert result.success, result.message
    assert result.x[0] == pytest.approx(0.2, abs=1e-8)


def test_not_finite_at_the_start_is_no_success():
    result = minimum(Residuals(lambda p: [np.nan, 1.0], lambda p: [[1.0], [1.0]], 1), [0.0])
    assert result.status is Status.NOT_FINITE
    assert not result.success


def test_wrong_derivatives_are_found_out():
    good = exponential()
    bad = Residuals(good.residuals, lambda p: -good.jacobian(p), 2)
    result = minimum(bad, [1.0, 0.5])
    assert result.status is Status.STAGNATED
    assert not result.success
    np.testing.assert_array_equal(result.x, [1.0, 0.5])  # never worse than the start


def test_too_few_passes_are_no_success():
    result = minimum(exponential(), [1.0, 0.5], config=COLD.replace(gauss_newton_max_iterations=2))
    assert result.status is Status.MAX_PASSES
    assert not result.success


def test_exact_data_end_at_rounding_error():
    result = minimum(exponential(noise=0.0), [1.0, 0.5])
    assert result.success
    np.testing.assert_allclose(result.x, [2.5, 1.3], rtol=1e-12)


def test_saved_and_restored_at_every_pass_it_ends_in_the_same_bits():
    plan = Plan(COLD.replace(enable_warm_start_detection=False, max_warmup_iterations=5, warmup_iterations=2))
    objective = rosenbrock()
    low, high = free(2)
    whole = run(objective, np.array([-1.2, 1.0]), low, high, plan)
    state = hybrid.start(np.array([-1.2, 1.0]), low, high)
    seen = set()
    while not hybrid.done(state):
        seen.add(state.name)
        state = hybrid.from_arrays(hybrid.to_arrays(hybrid.step(state, objective, plan)), plan)
    again = hybrid.finish(state, objective, plan)
    assert {"first", "warm-up", "gauss-newton"} <= seen
    np.testing.assert_array_equal(again.x, whole.x)
    np.testing.assert_array_equal(again.history, whole.history)
    np.testing.assert_array_equal(again.covariance, whole.covariance)


def test_bounded_steps_are_the_minima_of_their_models():
    rng = np.random.default_rng(3)
    from scipy.optimize import lsq_linear

    for _ in range(200):
        p = int(rng.integers(1, 7))
        a, b = rng.standard_normal((p + 2, p)), rng.standard_normal(p + 2)
        low, high = -rng.exponential(0.3, p), rng.exponential(0.3, p)
        none = np.zeros(0, np.intp)
        found = bounded_step(
            Linear(a, b, 1e-14),
            np.zeros(p),
            np.ones(p),
            Bounds(low, high),
            radius=np.inf,
            linear=none,
            reflective=False,
        )
        best = lsq_linear(a, -b, (low, high), tol=1e-14)
        assert (found.d >= low).all()
        assert (found.d <= high).all()
        assert found.predicted == pytest.approx(0.5 * b @ b - best.cost, abs=1e-9)


def test_steps_keep_to_the_trust_region():
    rng = np.random.default_rng(4)
    for radius in (1e-3, 0.1, 1.0):
        a, b = rng.standard_normal((8, 5)) * 10.0 ** np.arange(-4, 1), rng.standard_normal(8)
        step = bounded_step(
            Linear(a, b, 1e-14), np.zeros(5), np.ones(5), Bounds(*free(5)), radius=radius,
            linear=np.zeros(0, np.intp), reflective=True,
        )  # fmt: skip
        assert 0.85 * radius <= step.length <= 1.11 * radius
        assert step.predicted > 0


def test_many_parameters_go_by_conjugate_gradients_to_the_same_minimum():
    rng = np.random.default_rng(6)
    design = rng.standard_normal((200, 40)) * 10.0 ** rng.uniform(-3, 3, 40)
    y = rng.standard_normal(200)

    def problem():
        # A mildly nonlinear chain: every residual bends with its own prediction.
        def r(p):
            f = design @ p
            return f + 0.1 * np.sin(f) - y

        return Residuals(r, lambda p: (1 + 0.1 * np.cos(design @ p))[:, None] * design, 40)

    dense = minimum(problem(), np.zeros(40))
    sparse = minimum(problem(), np.zeros(40), config=COLD.replace(cg_param_threshold=10))
    assert dense.success
    assert sparse.success
    np.testing.assert_allclose(sparse.x, dense.x, atol=1e-6 * np.abs(dense.x).max())
    np.testing.assert_allclose(sparse.x / sparse.errors, dense.x / dense.errors, atol=1e-6)


def test_conjugate_gradients_stop_at_the_trust_radius_or_at_the_minimum():
    rng = np.random.default_rng(7)
    a = rng.standard_normal((30, 12))
    h, g = a.T @ a, rng.standard_normal(12)
    whole = steihaug(lambda v: h @ v, g, np.inf, tolerance=1e-12, most=100)
    np.testing.assert_allclose(whole, -np.linalg.solve(h, g), rtol=1e-8)
    short = steihaug(lambda v: h @ v, g, 0.1 * np.linalg.norm(whole), tolerance=1e-12, most=100)
    assert np.linalg.norm(short) == pytest.approx(0.1 * np.linalg.norm(whole))
    assert g @ short + 0.5 * short @ h @ short < 0


def test_the_state_machine_makes_one_pass_a_step():
    objective = rosenbrock()
    state = levenberg.start(np.array([-1.2, 1.0]), *free(2))
    while not levenberg.done(state):
        before = len(objective.asked)
        state = levenberg.step(state, objective.evaluate, LMOptions())
        assert len(objective.asked) == before + 1
    assert state.passes == len(objective.asked) == len(state.history)


def test_parameters_without_room_are_not_let_go_again_and_again(monkeypatch):
    """Bounds that coincide hold a parameter; each attempt to move it would be a solution of the whole problem."""
    solved = []
    inner = subproblem._solve
    monkeypatch.setattr(subproblem, "_solve", lambda *given: solved.append(1) or inner(*given))
    rng = np.random.default_rng(2)
    problem = Linear(rng.normal(size=(9, 4)), rng.normal(size=9), 1e-12)
    x = np.ones(4)
    box = Bounds(np.where([1, 1, 0, 0], x, -np.inf), np.where([1, 1, 0, 0], x, np.inf))
    step = bounded_step(problem, x, np.ones(4), box, radius=np.inf, linear=np.zeros(0, np.intp), reflective=False)
    expected = np.linalg.lstsq(problem.a[:, 2:], -problem.b, rcond=None)[0]
    np.testing.assert_allclose(step.d, [0, 0, *expected], atol=1e-12)
    assert len(solved) == 1
