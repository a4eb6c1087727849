"""The phases of a fit as one state machine: sample, warm-up, Gauss-Newton, result. One call of `step` is one pass.

1. *First pass* at the start values: cost, gradient and curvature, from which all later phases go on.
2. *Warm-up* (Adam or L-BFGS, float32 if allowed), unless the start is good: it is if the cost is low there, or if
   Gauss-Newton steps from it are accepted. A gradient step is the better one only where they are not, and may end in
   another valley.
3. *Sample*: where there are many chunks, the fit is first made on a fixed sample of them, at a fraction of the price
   of a pass; so are the two phases above.
4. *Gauss-Newton* (Levenberg-Marquardt) on all data. Should it fail, it is tried once more from the start values: no
   shortcut of the phases before may cost a fit.

Normalisation belongs to the warm-up; parameters are always in the user's units here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tessera.lsq import levenberg, warmup
from tessera.lsq.covariance import covariance
from tessera.lsq.levenberg import LMOptions, LMState
from tessera.lsq.normalize import normalised
from tessera.lsq.objective import Objective
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.profile import phase
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.lsq.result import Result, Status
from tessera.lsq.subproblem import column_scale, degenerate, linearised
from tessera.lsq.warmup import WarmupState

PHASES: Final = ("first", "warm-up", "sample", "gauss-newton", "done")

_SAMPLES: Final = 3  # chunks a sample has at least: fewer may miss a part of the data
_EVERY: Final = 16  # of so many chunks one is in the sample, at most
_SAMPLE_TOLERANCE: Final = 1e-2  # standard errors of the sample's fit
_SAMPLE_PASSES: Final = 60  # of the sample's fit; one that takes more tells of parameters that the sample leaves open
_REFUSED: Final = 3  # steps refused at the start before a warm-up is called for
_UNLIKE: Final = 1.5  # cost per point of all data over that of the sample, above which the sample was none


@runtime_checkable
class Sampled(Protocol):
    """An objective of which every so many-th chunk makes a smaller one."""

    @property
    def chunks(self) -> range:
        """The chunks that take part."""
        ...

    def sample(self, every: int) -> Objective:
        """Return the objective of every so many-th chunk."""
        ...


@dataclass(frozen=True, slots=True)
class FitState:
    """Everything a fit needs to go on at any pass.

    Attributes
    ----------
    x0, lower, upper
        Start and bounds, in the user's units, shape (p,).
    phase
        Index into `PHASES`.
    first
        The local model at x0 (of the sample, if there is one); None before the first pass.
    warm, lm
        State of the warm-up, and of the present Gauss-Newton phase; None before they start.
    sampled
        Cost per point where the sample's fit ended; NaN without a sample.
    passes
        Passes made, over the sample or all data.
    restarted
        Whether the Gauss-Newton phase was tried again from x0.
    """

    x0: Vector
    lower: Vector
    upper: Vector
    phase: int = 0
    first: Quadratic | None = None
    warm: WarmupState | None = None
    lm: LMState | None = None
    sampled: float = np.nan
    passes: int = 0
    restarted: bool = False

    @property
    def name(self) -> str:
        """The present phase."""
        return PHASES[self.phase]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fit is to do besides its state: options, and which parameters are linear."""

    config: HybridStreamingConfig = dataclasses.field(default_factory=HybridStreamingConfig)
    linear: tuple[int, ...] = ()

    @property
    def lm(self) -> LMOptions:
        """Options of the Gauss-Newton phase."""
        c = self.config
        return LMOptions(
            tolerance=c.gauss_newton_tol,
            max_passes=c.gauss_newton_max_iterations,
            radius=c.trust_region_initial,
            regularization=c.regularization_factor,
            reflective=c.bounds_method == "reflective",
            linear=self.linear,
            cg_from=c.cg_param_threshold,
            cg_iterations=c.cg_max_iterations,
            cg_tolerance=c.cg_relative_tolerance,
        )


def start(x0: Vector, lower: Vector, upper: Vector) -> FitState:
    """Return the state before the first pass."""
    return FitState(np.array(x0, float), np.array(lower, float), np.array(upper, float))


def done(state: FitState) -> bool:
    """Say whether the fit has ended."""
    return state.name == "done"


def step(state: FitState, objective: Objective, plan: Plan) -> FitState:
    """Make one pass (of the sample, or of all data) and take what it says into account."""
    small = sample_of(objective)
    before = small if small is not None else objective
    state = dataclasses.replace(state, passes=state.passes + 1)
    if state.first is None:
        state = dataclasses.replace(state, first=before.evaluate(state.x0))
        return _onward(_after_first(state, plan, small is not None))
    if state.name == "warm-up":
        assert state.warm is not None  # noqa: S101 - for the type checker
        with phase("warm-up"):
            warm = warmup.step(state.warm, lambda x: before.evaluate(x, order=1, single=True))
        state = dataclasses.replace(state, warm=warm)
        if not warmup.done(warm):
            return state
        lm = levenberg.start(warmup.best(warm), state.lower, state.upper)
        return dataclasses.replace(state, lm=lm, phase=_gauss_newton(small is not None))
    assert state.lm is not None  # noqa: S101 - for the type checker
    return _onward(_advance(state, before if state.name == "sample" else objective, plan))


def sample_of(objective: Objective) -> Objective | None:
    """Return the sample a fit starts with; None if there are too few chunks for one to be worth while."""
    if not isinstance(objective, Sampled):
        return None
    every = min(len(objective.chunks) // _SAMPLES, _EVERY)
    return objective.sample(every) if every > 1 else None


def finish(
    state: FitState, objective: Objective, plan: Plan, *, absolute_sigma: bool = False, sandwich: bool = False
) -> Result:
    """Return the result of a fit that has ended. Makes a pass only for the sandwich covariance.

    Parameters
    ----------
    state, objective, plan
        The last state, and what led to it.
    absolute_sigma
        Whether the errors of the data are absolute.
    sandwich
        Whether to take the sandwich covariance instead of the inverse of JᵀJ.
    """
    assert state.lm is not None and state.lm.at is not None  # noqa: S101, PT018 - ended means both
    q, passes = state.lm.at, state.passes
    if sandwich:
        q, passes = objective.evaluate(q.x, scores=True), passes + 1
    status = Status.of(state.lm.status)
    regularization = plan.config.regularization_factor
    with phase("solve"):
        matrix = covariance(q, absolute=absolute_sigma, regularization=regularization)
    freedom = q.count - q.x.size
    return Result(
        names=tuple(objective.names),
        x=q.x,
        covariance=matrix,
        errors=np.sqrt(np.maximum(np.diagonal(matrix), 0.0)),
        cost=q.cost,
        chi2=2 * q.cost,
        reduced=2 * q.cost / freedom if freedom > 0 else np.nan,
        count=q.count,
        rejected=q.rejected,
        status=status,
        message=_message(status, q, state, objective.names, regularization),
        success=status.success,
        iterations=state.lm.accepted,
        evaluations=passes,
        history=state.lm.history,
        telemetry=_telemetry(state, plan.config),
    )


def _gauss_newton(has_sample: bool) -> int:
    return PHASES.index("sample" if has_sample else "gauss-newton")


def _after_first(state: FitState, plan: Plan, has_sample: bool) -> FitState:
    """Choose between warm-up and Gauss-Newton by the first pass."""
    q = state.first
    assert q is not None  # noqa: S101 - for the type checker
    after = _gauss_newton(has_sample)
    with phase("normalisation"):
        space = normalised(state.x0, state.lower, state.upper, plan.config, q)
    warm = warmup.start(q, space, plan.config, q.spread)
    if not warmup.done(warm) and not plan.config.enable_warm_start_detection:
        return dataclasses.replace(state, warm=warm, phase=PHASES.index("warm-up"))
    lm = levenberg.start_at(q, state.lower, state.upper, _options(plan, after))
    return dataclasses.replace(state, warm=warm, lm=lm, phase=after)


def _options(plan: Plan, phase_index: int) -> LMOptions:
    if PHASES[phase_index] != "sample":
        return plan.lm
    passes = min(plan.lm.max_passes, _SAMPLE_PASSES)
    return dataclasses.replace(plan.lm, tolerance=max(plan.lm.tolerance, _SAMPLE_TOLERANCE), max_passes=passes)


def _astray(lm: LMState) -> bool:
    """Say whether Gauss-Newton fails at the start itself."""
    return lm.accepted == 0 and (lm.refused >= _REFUSED or Status.of(lm.status) is Status.STAGNATED)


def _advance(state: FitState, objective: Objective, plan: Plan) -> FitState:
    """Make a pass of the Gauss-Newton phase; should the warm-up have ended worse than the start, go back to it."""
    assert state.lm is not None and state.first is not None  # noqa: S101, PT018 - for the type checker
    options = _options(plan, state.phase)
    lm = levenberg.step(state.lm, objective.evaluate, options)
    worse = lm.at is not None and lm.passes == 1 and not lm.at.cost <= state.first.cost
    if worse and not np.isfinite(state.sampled) and not state.restarted:
        lm = levenberg.start_at(state.first, state.lower, state.upper, options)
    return dataclasses.replace(state, lm=lm)


def _onward(state: FitState) -> FitState:
    """Go to the next phase if this one has ended, or to the warm-up if the start turns out to need one."""
    if state.lm is not None and state.warm is not None and _astray(state.lm) and not warmup.done(state.warm):
        return dataclasses.replace(state, lm=None, phase=PHASES.index("warm-up"))
    if state.name == "sample":
        return _after_sample(state)
    return _after_gauss_newton(state) if state.name == "gauss-newton" else state


def _after_sample(state: FitState) -> FitState:
    assert state.lm is not None  # noqa: S101 - for the type checker
    if not levenberg.done(state.lm):
        return state
    q = state.lm.at
    good = q is not None and q.finite() and Status.of(state.lm.status) is not Status.MAX_PASSES
    x = state.lm.x if good else state.x0
    sampled = q.cost / max(q.count, 1) if good and q is not None else np.nan
    lm = levenberg.start(x, state.lower, state.upper)
    # Without a use for the sample's end this is the second beginning; `first` is of the sample and not of all data.
    again = state.restarted or not good
    return dataclasses.replace(state, lm=lm, sampled=sampled, restarted=again, phase=PHASES.index("gauss-newton"))


def _after_gauss_newton(state: FitState) -> FitState:
    """End, or begin again at the start values if what went before has led astray."""
    lm = state.lm
    assert lm is not None and lm.at is not None  # noqa: S101, PT018 - a pass was made
    sampled, warmed = np.isfinite(state.sampled), state.warm is not None and state.warm.tally.passes > 0
    unlike = sampled and lm.passes == 1 and not lm.at.cost / max(lm.at.count, 1) <= _UNLIKE * state.sampled
    failed = levenberg.done(lm) and not Status.of(lm.status).success
    if (unlike or failed) and (sampled or warmed) and not state.restarted:
        again = levenberg.start(state.x0, state.lower, state.upper)
        return dataclasses.replace(state, lm=again, restarted=True)
    return dataclasses.replace(state, phase=PHASES.index("done")) if levenberg.done(lm) else state


def _message(status: Status, q: Quadratic, state: FitState, names: tuple[str, ...], regularization: float) -> str:
    """Return the text of the status, with the names of the parameters it is about."""
    if status is Status.SINGULAR:
        lost = degenerate(linearised(q, column_scale(q), regularization))
        return f"{status.text} (not determined: {', '.join(names[i] for i in lost)})"
    if status is Status.AT_BOUND and state.lm is not None:
        where = np.flatnonzero(levenberg.at_bound(q, state.lm.box))
        return f"{status.text} (at a bound: {', '.join(names[i] for i in where)})"
    return status.text


def _telemetry(state: FitState, config: HybridStreamingConfig) -> dict[str, Any]:
    if config.telemetry == "off":
        return {}
    return {
        "passes": state.passes,
        "gauss_newton_passes": 0 if state.lm is None else state.lm.passes,
        "sampled": bool(np.isfinite(state.sampled)),
        "restarted": state.restarted,
        "warmup": {} if state.warm is None else warmup.telemetry(state.warm),
    }


def to_arrays(state: FitState) -> dict[str, NDArray[Any]]:
    """Return the state as named arrays; `from_arrays` gives it back bit by bit."""
    arrays = {n: np.asarray(getattr(state, n)) for n in ("x0", "lower", "upper", "phase", "sampled", "passes")}
    arrays["restarted"] = np.asarray(state.restarted)
    if state.first is not None:
        arrays |= {f"first.{k}": v for k, v in levenberg.quadratic_arrays(state.first).items()}
    if state.warm is not None:
        arrays |= {f"warm.{k}": np.asarray(v) for k, v in warmup.to_arrays(state.warm).items()}
    if state.lm is not None:
        arrays |= {f"lm.{k}": v for k, v in levenberg.to_arrays(state.lm).items()}
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]], plan: Plan) -> FitState:
    """Return the state that `to_arrays` was given, under the same plan."""

    def part(prefix: str) -> dict[str, NDArray[Any]]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    x0, lower, upper = (np.array(arrays[n]) for n in ("x0", "lower", "upper"))
    first_arrays, warm, lm = part("first."), part("warm."), part("lm.")
    first = levenberg.quadratic_from(first_arrays) if first_arrays else None
    space = normalised(x0, lower, upper, plan.config, first)
    return FitState(
        x0=x0,
        lower=lower,
        upper=upper,
        phase=int(arrays["phase"]),
        first=first,
        warm=warmup.from_arrays(warm, space, plan.config) if warm else None,
        lm=levenberg.from_arrays(lm) if lm else None,
        sampled=float(arrays["sampled"]),
        passes=int(arrays["passes"]),
        restarted=bool(arrays["restarted"]),
    )
