"""Levenberg-Marquardt with a trust region, as a state machine: one call of `step` is one pass over the data.

A pass yields cost, gradient and Gauss-Newton matrix together, so an accepted step needs no second traversal and a
rejected one costs one pass. Convergence is judged by the *decrement*: how far, in standard errors, the next
Gauss-Newton step would go. That does not depend on units, on the number of points or on the scale of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.cg import steihaug
from tessera.lsq.profile import phase
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.lsq.result import HISTORY, Status
from tessera.lsq.subproblem import Bounds, Step, bounded_step, column_scale, degenerate, linearised

Evaluate = Callable[[Vector], Quadratic]
"""A pass over the data of order 2."""

_EPS: Final = float(np.finfo(np.float64).eps)
_ACCEPT: Final = 1e-4  # least ratio of actual to predicted reduction
_FINE: Final = 1e-9  # where not even the full step reduces the cost by this fraction, rounding errors matter
_EXACT: Final = 1e-24  # fraction of the first cost that is rounding error
_SETTLED: Final = 1e-4  # decrement, in standard errors, at which a rejected step means rounding error
_SHORT: Final = 1e-3  # decrement, in standard errors, below which a last step needs no pass to confirm it
_FAST: Final = 0.1  # ratio of successive decrements that shows quadratic convergence
_SEPARATED: Final = 0.5  # share of a step's gain the linear parameters may still hold before a pass is spent on them


@dataclass(frozen=True, slots=True)
class LMOptions:
    """What steers the iteration.

    Attributes
    ----------
    tolerance
        Converged when the next step is shorter than this many standard errors, or the one after it would be.
    max_passes
        Passes over the data at most.
    radius
        First trust radius in units of the length of the scaled start.
    regularization
        Eigenvalues of the scaled JᵀJ below this fraction of the largest count as zero.
    reflective
        Whether steps that leave the bounds may be mirrored at them.
    linear
        Indices of the parameters the model depends on linearly.
    cg_from, cg_iterations, cg_tolerance
        Number of parameters from which on steps are found by conjugate gradients (where there are no bounds), and how
        exactly: the decomposition of JᵀJ otherwise takes p³ operations a pass.
    """

    tolerance: float = 1e-8
    max_passes: int = 100
    radius: float = 1.0
    regularization: float = 1e-14
    reflective: bool = True
    linear: tuple[int, ...] = ()
    cg_from: int = 2000
    cg_iterations: int = 100
    cg_tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class LMState:
    """Everything the iteration needs to go on; plain values and arrays, so it can be saved at any pass.

    Attributes
    ----------
    trial
        Where the next pass is to be made, shape (p,).
    lower, upper
        Bounds, shape (p,).
    at
        The local model at the best point so far; None before the first pass.
    scale
        Largest column norms of the Jacobian so far, shape (p,).
    radius, predicted, length
        Trust radius; predicted reduction and scaled length of the step to `trial`.
    decrement
        Length in standard errors of the unrestricted step from the best point.
    settle
        Whether the trial only sets the linear parameters to their optimum.
    passes, accepted, refused
        Passes made; steps accepted; trials rejected in a row.
    status
        Code of `Status`.
    history
        One row per pass, columns as `HISTORY`.
    """

    trial: Vector
    lower: Vector
    upper: Vector
    at: Quadratic | None = None
    scale: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    radius: float = 0.0
    predicted: float = 0.0
    length: float = 0.0
    decrement: float = np.inf
    settle: bool = False
    passes: int = 0
    accepted: int = 0
    refused: int = 0
    status: int = Status.RUNNING.code
    history: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros((0, len(HISTORY))))

    @property
    def x(self) -> Vector:
        """The best parameters so far."""
        return self.trial if self.at is None else self.at.x

    @property
    def box(self) -> Bounds:
        """The bounds."""
        return Bounds(self.lower, self.upper)


def start(x0: Vector, lower: Vector, upper: Vector) -> LMState:
    """Return the state before the first pass, which will be at x0 (within the bounds, shape (p,))."""
    return LMState(np.array(x0, float), np.array(lower, float), np.array(upper, float))


def start_at(q: Quadratic, lower: Vector, upper: Vector, options: LMOptions) -> LMState:
    """Return the state after a first pass that was made already; the next pass will be the first step."""
    state = LMState(q.x, np.array(lower, float), np.array(upper, float), passes=1)
    return _first(state, q, options)


def done(state: LMState) -> bool:
    """Say whether the iteration has ended."""
    return state.status != Status.RUNNING.code


def step(state: LMState, evaluate: Evaluate, options: LMOptions = LMOptions()) -> LMState:
    """Make one pass over the data and take what it says into account."""
    q = evaluate(state.trial)
    state = dataclasses.replace(state, passes=state.passes + 1)
    with phase("solve"):
        return _first(state, q, options) if state.at is None else _judge(state, state.at, q, options)


def _first(state: LMState, q: Quadratic, options: LMOptions) -> LMState:
    if not q.finite():
        return dataclasses.replace(state, at=q, scale=np.ones(q.x.size), status=Status.NOT_FINITE.code)
    scale = column_scale(q)
    held = _held(q.x.size, options.linear)
    size = float(np.linalg.norm((q.x * scale)[held]))
    radius = options.radius * (size if size > 0 else float(np.linalg.norm(np.ones(q.x.size))))
    state = dataclasses.replace(state, at=q, scale=scale, radius=radius, history=_row(state, q.cost, 0, 0, True))
    return _propose(state, q, options)


def _judge(state: LMState, at: Quadratic, q: Quadratic, options: LMOptions) -> LMState:
    """Accept or reject the trial and set the radius by how well the model predicted it."""
    ratio = _ratio(state, at, q, options) if q.finite() else -np.inf
    good = ratio > _ACCEPT
    changes: dict[str, Any] = {
        "radius": _radius(state, at, q, ratio),
        "history": _row(state, q.cost, state.length, ratio, good),
        "refused": 0 if good else state.refused + 1,
    }
    if good:
        state = dataclasses.replace(
            state, at=q, scale=column_scale(q, state.scale), accepted=state.accepted + 1, **changes
        )
        return _propose(state, q, options)
    state = dataclasses.replace(state, **changes)
    if _at_rounding(state, at):
        return _end(state, at, options, Status.ROUNDING)
    smallest = _EPS * float(np.linalg.norm(state.scale * at.x)) + np.finfo(float).tiny
    if state.radius <= smallest or state.refused > 60:
        ended = Status.STAGNATED if np.isfinite(ratio) else Status.NOT_FINITE
        return dataclasses.replace(state, status=ended.code)
    return _propose(state, at, options)


def _propose(state: LMState, q: Quadratic, options: LMOptions) -> LMState:
    """Find out whether the best point is the minimum, and if not where to look next."""
    linear = np.array(options.linear, np.intp)
    within = _solver(state, q, options)
    full = within(np.inf)
    decrement = np.sqrt(max(2 * full.predicted, 0.0))
    noise = _noise(q)
    before, state = state.decrement, dataclasses.replace(state, decrement=decrement / noise if noise > 0 else np.inf)
    if _foregone(state, before, options):
        q = _moved(q, state.box.clip(q.x + full.d / state.scale), full.predicted)
        return _end(dataclasses.replace(state, at=q), q, options, Status.CONVERGED)
    if decrement <= options.tolerance * noise:
        return _end(state, q, options, Status.CONVERGED)
    if decrement <= 4 * _EPS * np.sqrt(q.power) or q.cost == 0:
        return _end(state, q, options, Status.ROUNDING)
    if state.passes >= options.max_passes:
        return dataclasses.replace(state, status=Status.MAX_PASSES.code)
    gain = _linear_gain(linear, q, state, options) if linear.size and not state.settle else None
    if gain is not None and decrement > noise and gain.predicted > _SEPARATED * full.predicted:
        chosen, settle = gain, True
    else:
        chosen, settle = (full if full.length <= state.radius else within(state.radius)), False
    trial = state.box.clip(q.x + chosen.d / state.scale)
    if np.array_equal(trial, q.x):
        return _end(state, q, options, Status.ROUNDING)
    return dataclasses.replace(state, trial=trial, predicted=chosen.predicted, length=chosen.length, settle=settle)


def _foregone(state: LMState, before: float, options: LMOptions) -> bool:
    """Say whether the next step is sure to be the last: short, and steps shrink so fast that none is left after it.

    It is then taken without a pass to confirm it.
    """
    rate = state.decrement / before if before > 0 else np.inf
    fast = state.accepted > 1 and state.refused == 0 and rate <= _FAST
    return bool(fast and state.decrement <= _SHORT and state.decrement * rate <= options.tolerance)


def _moved(q: Quadratic, x: Vector, gain: float) -> Quadratic:
    """Return the local model at another point, by the model itself."""
    return dataclasses.replace(q, x=x, cost=q.cost - gain, gradient=q.gradient + q.hessian @ (x - q.x))


def _solver(state: LMState, q: Quadratic, options: LMOptions) -> Callable[[float], Step]:
    """Return the function that gives the best step within a radius."""
    boxed = np.isfinite(state.lower).any() or np.isfinite(state.upper).any()
    if q.x.size >= options.cg_from and not boxed and not options.linear:
        return lambda radius: _conjugate(state, q, options, radius)
    problem = linearised(q, state.scale, options.regularization)
    linear = np.array(options.linear, np.intp)

    def within(radius: float) -> Step:
        return bounded_step(
            problem, q.x, state.scale, state.box, radius=radius, linear=linear, reflective=options.reflective
        )

    return within


def _conjugate(state: LMState, q: Quadratic, options: LMOptions, radius: float) -> Step:
    gradient = q.gradient / state.scale

    def product(v: Vector) -> Vector:
        return np.asarray(q.hessian @ (v / state.scale) / state.scale)

    d = steihaug(product, gradient, radius, tolerance=options.cg_tolerance, most=options.cg_iterations)
    return Step(d, float(np.linalg.norm(d)), -float(d @ (gradient + 0.5 * product(d))))


def _linear_gain(linear: NDArray[np.intp], q: Quadratic, state: LMState, options: LMOptions) -> Step:
    """Return the step that sets the linear parameters alone to their optimum."""
    problem = linearised(q, state.scale, options.regularization)
    others = ~_held(q.x.size, tuple(int(i) for i in linear))
    low, high = np.where(others, state.lower, q.x), np.where(others, state.upper, q.x)
    return bounded_step(problem, q.x, state.scale, Bounds(low, high), radius=np.inf, linear=linear, reflective=False)


def _ratio(state: LMState, at: Quadratic, q: Quadratic, options: LMOptions) -> float:
    """Return actual over predicted reduction."""
    if state.predicted <= 0:
        return -np.inf
    if state.decrement**2 <= _FINE * max(at.count - at.x.size, 1):
        # The difference of two costs is rounding error here; the mean of the slopes at both ends is not.
        actual = -0.5 * float((at.gradient + q.gradient) @ (q.x - at.x))
        return actual / state.predicted
    actual, predicted = at.cost - q.cost, state.predicted
    if options.linear and not state.settle:
        # Costs are compared with the linear parameters at their optimum: only the others are on trial.
        linear = np.array(options.linear, np.intp)
        before = _gain(at, linear)
        if before < 0.9 * predicted:
            actual, predicted = actual + _gain(q, linear) - before, predicted - before
    return actual / predicted


def _gain(q: Quadratic, linear: NDArray[np.intp]) -> float:
    block, slope = q.hessian[np.ix_(linear, linear)], q.gradient[linear]
    return 0.5 * float(slope @ np.linalg.lstsq(block, slope, rcond=None)[0])


def _radius(state: LMState, at: Quadratic, q: Quadratic, ratio: float) -> float:
    """Return the next trust radius: MINPACK's rule, with faster growth where the model is nearly exact.

    Right after a rejection it does not grow at all: that would only bring the next one, in curved valleys half of all
    passes.
    """
    if state.settle or (ratio >= 0.75 and state.refused):
        return state.radius
    if ratio >= 0.75:
        return max(state.radius, (4.0 if ratio >= 0.95 else 2.0) * state.length)
    if ratio > 0.25:
        return state.radius
    slope = float(at.gradient @ (q.x - at.x))
    gain = at.cost - q.cost
    shrink = 0.5 * slope / (slope + gain) if np.isfinite(gain) and gain < 0 and slope < 0 else 0.25
    return float(np.clip(shrink, 0.1, 0.5)) * min(state.radius, state.length)


def _noise(q: Quadratic) -> float:
    """Return the standard error of a residual as the fit itself shows it."""
    return float(np.sqrt(2 * q.cost / max(q.count - q.x.size, 1)))


def _at_rounding(state: LMState, at: Quadratic) -> bool:
    """Say whether the model asks for a step too small for the cost to tell, or nothing is left of the cost."""
    if at.cost <= _EXACT * state.history[0, HISTORY.index("cost")]:
        return True
    floor = 1e3 * _EPS * np.sqrt(at.power) / max(_noise(at), np.finfo(float).tiny)
    return bool(state.decrement <= max(_SETTLED, floor))


def _end(state: LMState, q: Quadratic, options: LMOptions, how: Status) -> LMState:
    problem = linearised(q, state.scale, options.regularization)
    if degenerate(problem):
        how = Status.SINGULAR
    elif at_bound(q, state.box).any():
        how = Status.AT_BOUND
    return dataclasses.replace(state, status=how.code, trial=q.x)


def at_bound(q: Quadratic, box: Bounds) -> NDArray[np.bool_]:
    """Return which parameters lie at a bound that the cost pushes them through."""
    return ((q.x <= box.lower) & (q.gradient > 0)) | ((q.x >= box.upper) & (q.gradient < 0))


def _held(p: int, linear: tuple[int, ...]) -> NDArray[np.bool_]:
    held = np.ones(p, bool)
    held[list(linear)] = False
    return held


def _row(state: LMState, cost: float, length: float, ratio: float, accepted: bool) -> NDArray[np.float64]:
    row = np.array([[cost, state.decrement, state.radius, length, ratio, float(accepted)]])
    return np.concatenate([state.history, row])


_QUADRATIC: Final = tuple(f.name for f in dataclasses.fields(Quadratic))
_STATE: Final = tuple(f.name for f in dataclasses.fields(LMState) if f.name != "at")


def to_arrays(state: LMState) -> dict[str, NDArray[Any]]:
    """Return the state as named arrays; `from_arrays` gives it back bit by bit."""
    arrays = {name: np.asarray(getattr(state, name)) for name in _STATE}
    known = {} if state.at is None else quadratic_arrays(state.at)
    return arrays | {f"at.{name}": value for name, value in known.items()}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> LMState:
    """Return the state that `to_arrays` was given."""
    known = {k.removeprefix("at."): v for k, v in arrays.items() if k.startswith("at.")}
    state = LMState(**{name: _restored(arrays[name]) for name in _STATE})
    return dataclasses.replace(state, at=quadratic_from(known) if known else None)


def quadratic_arrays(q: Quadratic) -> dict[str, NDArray[Any]]:
    """Return a local model as named arrays."""
    return {n: np.asarray(v) for n in _QUADRATIC if (v := getattr(q, n)) is not None}


def quadratic_from(arrays: Mapping[str, NDArray[Any]]) -> Quadratic:
    """Return the local model that `quadratic_arrays` was given."""
    return Quadratic(**{name: _restored(value) for name, value in arrays.items()})


def _restored(array: NDArray[Any]) -> Any:
    return array.item() if np.ndim(array) == 0 else np.array(array)
