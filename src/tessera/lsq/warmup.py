"""The warm-up: gradient descent within the bounds, fenced by four layers, before the Gauss-Newton phase.

A state machine over passes: `ask` says where the next pass over the data is wanted, `tell` takes what it found. The
four layers are those of NLSQ's adaptive hybrid optimizer: (1) a good start skips the warm-up, (2) the quality of the
start sets the first step, (3) a rising loss ends it with the best point, (4) no update is longer than a limit. The loss
is the mean squared residual over the variance of the data, so thresholds mean the same in any units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.adam import Adam
from tessera.lsq.lbfgs import Lbfgs
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.lsq.space import Space

Reason: TypeAlias = Literal[
    "", "skipped", "max_iter", "gradient", "plateau", "cost_guard", "line_search", "not_finite", "off"
]
"""Why the warm-up ended; empty while it goes on."""

_REASONS: Final[tuple[Reason, ...]] = (
    "",
    "skipped",
    "max_iter",
    "gradient",
    "plateau",
    "cost_guard",
    "line_search",
    "not_finite",
    "off",
)
_GOOD: Final = 0.1
_FAIR: Final = 1.0
"""Relative losses up to which a start is refined, or improved with care (layer 2)."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the layers did: passes, points taken, updates clipped (layer 4), losses above the guard (layer 3)."""

    passes: int = 0
    taken: int = 0
    clipped: int = 0
    guarded: int = 0


@dataclass(frozen=True, slots=True)
class WarmupState:
    """Everything the warm-up knows between two passes.

    Attributes
    ----------
    config, space
        Options and normalisation; given again when a state is restored.
    variance
        Of the data, weighted; the unit of the loss.
    count
        Data points that took part at the start; a pass with fewer found no finite model for some.
    z, loss, gradient
        The point last taken (normalised), its relative loss and that loss's gradient.
    trial
        Where the next pass is wanted (normalised).
    first, best_loss, best
        Loss of the start, the least loss so far, and where it was (user's units).
    method
        The optimizer's memory.
    step
        Its first step or its rate, as layer 2 chose it.
    reason
        Why it ended.
    history
        One row per pass: loss, norm of the gradient, length of the update, then with detailed telemetry the parameters.
    """

    config: HybridStreamingConfig
    space: Space
    variance: float
    count: int
    z: Vector
    loss: float
    gradient: Vector
    trial: Vector
    first: float
    best_loss: float
    best: Vector
    method: Adam | Lbfgs
    step: float
    reason: Reason
    tally: Tally
    history: NDArray[np.float64]


def start(
    quadratic: Quadratic, space: Space, config: HybridStreamingConfig, variance: float | None = None
) -> WarmupState:
    """Return the state at the start values; it is already done if no warm-up is called for.

    Parameters
    ----------
    quadratic
        A pass at the start values, with gradient.
    space
        Normalisation and bounds.
    config
        Options.
    variance
        Weighted variance of the data, Σ w² (y - ȳ)² / n, in the units of 2 cost / n. None: unknown; then the loss is
        relative to the start's and layer 1 never skips.
    """
    count = max(quadratic.count, 1)
    mean = 2 * quadratic.cost / count
    unit = mean if variance is None or variance <= 0 else variance
    loss = mean / unit if unit != 0 else 0.0
    z, gradient = space.to_z(quadratic.x), _gradient(quadratic, space, unit, config)
    step = _first_step(loss, config)
    skip = config.enable_warm_start_detection and variance is not None and loss < config.warm_start_threshold
    reason: Reason = "skipped" if skip else "off" if config.max_warmup_iterations == 0 else ""
    if not (math.isfinite(loss) and np.isfinite(gradient).all()):
        reason = "not_finite"
    elif not reason and _small(space, z, gradient, config):
        reason = "gradient"
    method: Adam | Lbfgs
    if config.warmup_optimizer == "adam":
        method = Adam.start(z.size, step)
    else:
        method = Lbfgs.start(gradient, space.free(z, gradient), step)
    columns = 3 + (z.size if config.telemetry == "detailed" else 0)
    state = WarmupState(
        config=config,
        space=space,
        variance=unit,
        count=quadratic.count,
        z=z,
        loss=loss,
        gradient=gradient,
        trial=z,
        first=loss,
        best_loss=loss,
        best=quadratic.x,
        method=method,
        step=step,
        reason=reason,
        tally=Tally(),
        history=np.empty((0, columns)),
    )
    return state if reason else _aim(state)


def done(state: WarmupState) -> bool:
    """Say whether the warm-up has ended."""
    return bool(state.reason)


def ask(state: WarmupState) -> Vector:
    """Return where the next pass is wanted, in the user's units."""
    return state.space.to_x(state.trial)


def step(state: WarmupState, evaluate: Callable[[Vector], Quadratic]) -> WarmupState:
    """Make one pass; ``evaluate`` returns a `Quadratic` with cost and gradient."""
    return tell(state, evaluate(ask(state)))


def tell(state: WarmupState, quadratic: Quadratic) -> WarmupState:
    """Return the state that knows what the pass at `ask` found."""
    loss = 2 * quadratic.cost / max(quadratic.count, 1) / state.variance
    gradient = _gradient(quadratic, state.space, state.variance, state.config)
    usable = math.isfinite(loss) and bool(np.isfinite(gradient).all()) and quadratic.count >= state.count
    loss = loss if usable else math.inf
    tally = replace(
        state.tally,
        passes=state.tally.passes + 1,
        guarded=state.tally.guarded + (loss > _ceiling(state)),
    )
    state = replace(state, tally=tally, history=_noted(state, loss, gradient))
    if loss < state.best_loss:
        state = replace(state, best_loss=loss, best=quadratic.x)
    if isinstance(state.method, Adam):
        state = _tell_adam(state, loss, gradient)
    else:
        state = _tell_lbfgs(state, state.method, loss, gradient)
    return state if state.reason else _aim(state)


def best(state: WarmupState) -> Vector:
    """Return the point of least loss so far, the start included, in the user's units."""
    return state.best


def telemetry(state: WarmupState) -> dict[str, Any]:
    """Return what the warm-up and its four layers did, as plain values."""
    config, tally = state.config, state.tally
    if config.telemetry == "off":
        return {}
    known = config.enable_warm_start_detection
    return {
        "optimizer": config.warmup_optimizer,
        "passes": tally.passes,
        "taken": tally.taken,
        "switch_reason": state.reason,
        "first_loss": state.first,
        "best_loss": state.best_loss,
        "final_loss": state.loss,
        "layer1_warm_start": {"enabled": known, "relative_loss": state.first, "skipped": state.reason == "skipped"},
        "layer2_step": {
            "enabled": config.enable_adaptive_warmup_lr,
            "start": _quality(state.first),
            "step": state.step,
        },
        "layer3_cost_guard": {
            "enabled": config.enable_cost_guard,
            "above": tally.guarded,
            "aborted": state.reason == "cost_guard",
        },
        "layer4_step_clip": {"enabled": config.enable_step_clipping, "clipped": tally.clipped},
        "trigger_rates": {  # per cent of passes, as NLSQ's get_trigger_rates
            "cost_guard": 100 * tally.guarded / max(tally.passes, 1),
            "step_clip": 100 * tally.clipped / max(tally.passes, 1),
        },
    }


def to_arrays(state: WarmupState) -> dict[str, NDArray[Any]]:
    """Return all of the state but config and space as named arrays; `from_arrays` restores the same bits."""
    tally = state.tally
    return {
        "z": state.z,
        "gradient": state.gradient,
        "trial": state.trial,
        "best": state.best,
        "history": state.history,
        "numbers": np.array([state.variance, state.loss, state.first, state.best_loss, state.step]),
        "counts": np.array(
            [state.count, _REASONS.index(state.reason), tally.passes, tally.taken, tally.clipped, tally.guarded]
        ),
        **{f"method.{name}": value for name, value in state.method.to_arrays().items()},
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]], space: Space, config: HybridStreamingConfig) -> WarmupState:
    """Return the state that `to_arrays` described, for the same space and options."""
    variance, loss, first, best_loss, first_step = (float(v) for v in arrays["numbers"])
    count, reason, *tally = (int(v) for v in arrays["counts"])
    inner = {name.removeprefix("method."): v for name, v in arrays.items() if name.startswith("method.")}
    method = Adam.from_arrays(inner) if config.warmup_optimizer == "adam" else Lbfgs.from_arrays(inner)
    return WarmupState(
        config=config,
        space=space,
        variance=variance,
        count=count,
        z=arrays["z"],
        loss=loss,
        gradient=arrays["gradient"],
        trial=arrays["trial"],
        first=first,
        best_loss=best_loss,
        best=arrays["best"],
        method=method,
        step=first_step,
        reason=_REASONS[reason],
        tally=Tally(*tally),
        history=arrays["history"],
    )


def _gradient(quadratic: Quadratic, space: Space, unit: float, config: HybridStreamingConfig) -> Vector:
    """Return the gradient of the relative loss in normalised parameters, clipped as the user wants."""
    factor = 2 / (max(quadratic.count, 1) * unit) if unit > 0 else 0.0
    gradient = factor * space.scale * quadratic.gradient
    norm = float(np.linalg.norm(gradient))
    limit = config.gradient_clip_value
    return gradient * (limit / norm) if limit is not None and norm > limit else gradient


def _quality(loss: float) -> str:
    return "refinement" if loss < _GOOD else "careful" if loss < _FAIR else "exploration"


def _first_step(loss: float, config: HybridStreamingConfig) -> float:
    """Layer 2: the first step (L-BFGS) or the learning rate (Adam) for a start of this loss."""
    adam = config.warmup_optimizer == "adam"
    if not config.enable_adaptive_warmup_lr:
        return config.warmup_learning_rate if adam else config.lbfgs_initial_step_size
    rates = {
        "refinement": (config.lbfgs_refinement_step_size, config.warmup_lr_refinement),
        "careful": (0.5, config.warmup_lr_careful),
        "exploration": (config.lbfgs_exploration_step_size, config.warmup_learning_rate),
    }
    return rates[_quality(loss)][int(adam)]


def _small(space: Space, z: Vector, gradient: Vector, config: HybridStreamingConfig) -> bool:
    if "gradient" not in config.active_switching_criteria or config.warmup_iterations > 0:
        return False
    return float(np.linalg.norm(gradient[space.free(z, gradient)])) < config.gradient_norm_threshold


def _ceiling(state: WarmupState) -> float:
    """Layer 3: the loss that is too much."""
    return state.first * (1 + state.config.cost_increase_tolerance)


def _aim(state: WarmupState) -> WarmupState:
    """Set the next trial: the method's update, no longer than layer 4 allows, within the bounds."""
    if isinstance(state.method, Adam):
        held = np.where(state.space.free(state.z, state.gradient), state.gradient, 0.0)
        update, method = state.method.update(held, state.config)
        state = replace(state, method=method)
    elif state.method.stuck:
        return replace(state, reason="line_search")
    else:
        update = state.method.step
    limit, norm = state.config.max_warmup_step_size, float(np.linalg.norm(update))
    if state.config.enable_step_clipping and norm > limit:
        update = update * (limit / norm)
        state = replace(state, tally=replace(state.tally, clipped=state.tally.clipped + 1))
    return replace(state, trial=state.space.clip(state.z + update))


def _tell_adam(state: WarmupState, loss: float, gradient: Vector) -> WarmupState:
    if not math.isfinite(loss):
        return replace(state, reason="not_finite")
    previous = state.loss
    state = _taken(state, loss, gradient)
    if state.config.enable_cost_guard and loss > _ceiling(state):
        return replace(state, reason="cost_guard")
    return replace(state, reason=_switch(state, previous))


def _tell_lbfgs(state: WarmupState, search: Lbfgs, loss: float, gradient: Vector) -> WarmupState:
    config, moved = state.config, state.trial - state.z
    # A trial that clipping or a bound cut short is the longest there is along this direction.
    longest = float(np.linalg.norm(moved)) < 0.999 * float(np.linalg.norm(search.step))
    taken, search = search.judge(
        moved,
        (state.loss, state.gradient),
        (loss, gradient),
        wolfe=config.lbfgs_line_search == "wolfe",
        longest=longest,
    )
    if not taken:
        if longest and search.high < math.inf:  # shorten what was really tried, not what was wished for
            reach = float(np.linalg.norm(moved)) / max(float(np.linalg.norm(search.direction)), 1e-300)
            if reach < search.length:
                search = replace(search, high=reach, length=reach / 2)
        out = state.tally.passes >= config.max_warmup_iterations
        return replace(state, method=search, reason="max_iter" if out else "")
    previous, change = state.loss, gradient - state.gradient
    state = _taken(state, loss, gradient)
    search = search.onward(moved, change, gradient, state.space.free(state.z, gradient), config.lbfgs_history_size)
    return replace(state, method=search, reason=_switch(state, previous))


def _taken(state: WarmupState, loss: float, gradient: Vector) -> WarmupState:
    tally = replace(state.tally, taken=state.tally.taken + 1)
    return replace(state, z=state.trial, loss=loss, gradient=gradient, tally=tally)


def _switch(state: WarmupState, previous: float) -> Reason:
    """Return which criterion calls for the Gauss-Newton phase, if any."""
    config, active = state.config, state.config.active_switching_criteria
    if state.tally.passes >= config.max_warmup_iterations:
        return "max_iter"
    if state.tally.passes < config.warmup_iterations:
        return ""
    free = state.space.free(state.z, state.gradient)
    if "gradient" in active and float(np.linalg.norm(state.gradient[free])) < config.gradient_norm_threshold:
        return "gradient"
    change = abs(previous - state.loss) / max(previous, 1e-300)
    return "plateau" if "plateau" in active and change < config.loss_plateau_threshold else ""


def _noted(state: WarmupState, loss: float, gradient: Vector) -> NDArray[np.float64]:
    if state.config.telemetry == "off":
        return state.history
    row = [loss, float(np.linalg.norm(gradient)), float(np.linalg.norm(state.trial - state.z))]
    if state.config.telemetry == "detailed":
        row.extend(ask(state))
    return np.vstack([state.history, row])
