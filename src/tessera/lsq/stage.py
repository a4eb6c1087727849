"""A fit as a loop of the engine: every pass over the data is a step, so it can be stopped, killed and resumed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hpc.errors import InputError
from hpc.job import Arrays, Loop
from hpc.store.atomic import write_bytes
from tessera.lsq import hybrid, multistart
from tessera.lsq.errors import FitInputError
from tessera.lsq.hybrid import FitState, Plan
from tessera.lsq.multistart import Advance, Tournament
from tessera.lsq.objective import Objective, Sum
from tessera.lsq.profile import Phase, recorded
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.lsq.reduce import of_context
from tessera.lsq.result import Result
from tessera.lsq.subproblem import column_scale
from tessera.lsq.threads import one_blas_thread

if TYPE_CHECKING:
    from hpc.context import Context

_NEAR: Final = 1e-8
"""Standard errors to the minimum at which a fit ends, usually."""
_FURTHEST: Final = 20
"""Passes that are foretold at most."""
_TRACED: Final = 3
"""Passes of which the JAX profiler makes a trace: the first compiles, the others are alike."""


class First(Protocol):
    """A fit before the fit, which finds its start: one pass over the data a step. States are what is saved."""

    def begin(self, objective: Objective, x: Vector) -> Arrays:
        """Return the state before the first pass, given the start that is configured or won the tournament."""
        ...

    def step(self, objective: Objective, state: Arrays) -> Arrays:
        """Make one pass. Collective."""
        ...

    def found(self, state: Arrays) -> Vector | None:
        """Return the start that was found, if the last pass is made."""
        ...

    def figures(self, state: Arrays) -> Mapping[str, float | str]:
        """Return what a user wants to see of the state."""
        ...


@dataclass(frozen=True)
class Problem:
    """What a fit needs besides its state.

    Attributes
    ----------
    build
        Makes the objective, given the sum over some ranks. Not collective.
    x0, lower, upper
        Start within bounds, in the user's units, shape (p,).
    plan
        Options of the optimizer.
    absolute_sigma, sandwich
        As in `tessera.lsq.covariance.covariance`.
    first
        Finds a better start; None if the fit begins with the one that is given.
    last
        Called with objective and parameters after the fit; what it returns is handed to the stage's ``finish``.
        Collective.
    """

    build: Callable[[Sum], Objective]
    x0: Vector
    lower: Vector
    upper: Vector
    plan: Plan
    absolute_sigma: bool = False
    sandwich: bool = False
    first: First | None = None
    last: Callable[[Objective, Vector], Mapping[str, NDArray[Any]]] | None = None


class FitStage(Loop):
    """Multi-start, warm-up and Gauss-Newton as one loop; the last step takes the covariance and what else is wanted.

    Parameters
    ----------
    prepare
        Makes the problem from what the job's ``setup`` loaded; called once on every rank, not collective.
    finish
        Writes the results: called on rank 0 with the result and what ``Problem.last`` returned.
    profile
        Whether to write a timing tree and traces under ``results/profile``.
    name
        Of the stage.
    """

    def __init__(
        self,
        prepare: Callable[[Context], Problem],
        finish: Callable[[Result, Mapping[str, NDArray[Any]], Context], None],
        *,
        profile: bool = False,
        name: str = "fit",
    ) -> None:
        self.name = name
        self._prepare, self._finish, self._profile = prepare, finish, profile
        self._made: tuple[Problem, Objective] | None = None
        self._advance: Advance | None = None
        self._known: tuple[Arrays, FitState] | None = None
        self._tree = Phase("fit")
        self._speed = 0.0

    @one_blas_thread()
    def start(self, ctx: Context) -> Arrays:
        """Return the state before the first pass."""
        problem, objective = self._problem(ctx)
        config = problem.plan.config
        if not config.enable_multistart:
            return self._begin(problem, objective, problem.x0, 0)
        points = multistart.starts(problem.x0, problem.lower, problem.upper, config, ctx.seed)
        return _tournament_arrays(multistart.begin(points, problem.lower, problem.upper))

    @one_blas_thread()
    def step(self, state: Arrays, ctx: Context) -> Arrays:
        """Make one pass over the data (of each start, while there are several)."""
        problem, objective = self._problem(ctx)
        passes = self.steps(state)[0]
        began = time.perf_counter()
        with explained(), self._recorded(passes, ctx):
            if "before.passes" in state and problem.first is not None:
                return self._find(state, problem, objective)
            if "start.clock" in state:
                return self._play(state, problem, objective, ctx)
            fit = self._fit(state)
            if hybrid.done(fit):
                return {**state, **_last(problem, objective, fit)}
            fit = hybrid.step(fit, objective, problem.plan)
        self._speed = _points(fit) / max(time.perf_counter() - began, 1e-9)
        return self._arrays(fit)

    def done(self, state: Arrays) -> bool:
        """Say whether the covariance has been taken."""
        return "last.covariance" in state

    def steps(self, state: Arrays) -> tuple[int, int]:
        """Return passes made, and passes expected where the convergence so far tells (else 0)."""
        if "before.passes" in state:
            return int(state["before.passes"]), 0
        if "start.clock" in state:
            return multistart.from_arrays(_part(state, "start.")).passes, 0
        passes = int(state["fit.passes"])
        return passes, passes if self.done(state) else passes + _left(state)

    def figures(self, state: Arrays) -> Mapping[str, float | str]:
        """Return phase, cost, length of the step, gradient, radius and points per second."""
        if "before.passes" in state:
            first = None if self._made is None else self._made[0].first
            return {"phase": "first fit", **({} if first is None else first.figures(_part(state, "first.")))}
        if "start.clock" in state:
            play = multistart.from_arrays(_part(state, "start."))
            return {
                "phase": f"multi-start round {play.round + 1}",
                "starts": int(play.alive.sum()),
                "cost": play.costs.min(),
            }
        if self._made is None:  # just restored
            return {}
        fit = self._fit(state)
        ended = hybrid.done(fit) and not self.done(state)  # what is left is the covariance, and what the job wants
        told: dict[str, float | str] = {"phase": "results" if ended else fit.name} | _cost(fit)
        if fit.name == "warm-up" and fit.warm is not None:
            told["gradient"] = float(np.linalg.norm(fit.warm.gradient))
        elif fit.lm is not None and fit.lm.at is not None:
            told |= {"step": fit.lm.length, "gradient": cosine(fit.lm.at)}
            told |= {"radius": fit.lm.radius, "decrement": fit.lm.decrement}
        return told | ({"points/s": self._speed} if self._speed else {})

    @one_blas_thread()
    def finish(self, state: Arrays, ctx: Context) -> None:
        """Hand the result to the job; write the profile."""
        problem, objective = self._problem(ctx)
        result = hybrid.finish(self._fit(state), objective, problem.plan, absolute_sigma=problem.absolute_sigma)
        covariance = np.asarray(state["last.covariance"])
        errors = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
        result = replace(result, covariance=covariance, errors=errors, evaluations=self.steps(state)[0])
        (ctx.log.info if result.success else ctx.log.warning)("%s: %s", result.status.name, result.message)
        self._finish(result, _part(state, "extra."), ctx)
        if self._profile:
            _write_profile(self._tree, ctx, self.name)

    def _problem(self, ctx: Context) -> tuple[Problem, Objective]:
        if self._made is None:
            with explained(), self._recorded(_TRACED, ctx):
                problem = self._prepare(ctx)
                self._made = problem, problem.build(of_context(ctx))
        return self._made

    def _play(self, state: Arrays, problem: Problem, objective: Objective, ctx: Context) -> Arrays:
        """Make a pass of the tournament; at its end the fit starts from the winner."""
        play, config = multistart.from_arrays(_part(state, "start.")), problem.plan.config
        if self._advance is None:
            self._advance = _advance(problem, objective, ctx)
        play = multistart.step(play, self._advance, config)
        if not multistart.done(play, config):
            return _tournament_arrays(play)
        return self._begin(problem, objective, multistart.winner(play), play.passes)

    def _begin(self, problem: Problem, objective: Objective, x: Vector, passes: int) -> Arrays:
        """Return the state from which a start is to be improved, or the fit to go on."""
        if problem.first is not None:
            return _first_arrays(problem.first.begin(objective, x), passes)
        return self._arrays(replace(hybrid.start(x, problem.lower, problem.upper), passes=passes))

    def _find(self, state: Arrays, problem: Problem, objective: Objective) -> Arrays:
        """Make a pass of the fit before the fit; at its end the fit starts from what it found."""
        first, passes = problem.first, int(state["before.passes"]) + 1
        assert first is not None  # noqa: S101 - for the type checker
        after = first.step(objective, _part(state, "first."))
        x = first.found(after)
        if x is None:
            return _first_arrays(after, passes)
        return self._arrays(replace(hybrid.start(x, problem.lower, problem.upper), passes=passes))

    def _fit(self, state: Arrays) -> FitState:
        if self._known is not None and self._known[0] is state:
            return self._known[1]
        assert self._made is not None  # noqa: S101 - start, step or finish came first
        return hybrid.from_arrays(_part(state, "fit."), self._made[0].plan)

    def _arrays(self, fit: FitState) -> Arrays:
        state = {f"fit.{k}": v for k, v in hybrid.to_arrays(fit).items()}
        self._known = state, fit
        return state

    def _recorded(self, passes: int, ctx: Context) -> AbstractContextManager[Any]:
        if not self._profile or ctx.rank > 0:
            return nullcontext()
        folder = ctx.results_dir / "profile" / f"trace-pass-{passes:03d}"
        traced = passes < _TRACED and "jax" in sys.modules
        return recorded(self._tree, folder if traced else None)


@contextmanager
def explained() -> Iterator[None]:
    """Hand errors about the inputs to the engine as what they are, without a traceback for the user."""
    try:
        yield
    except FitInputError as error:
        raise InputError(str(error)) from error


def _advance(problem: Problem, objective: Objective, ctx: Context) -> Advance:
    """Return how the tournament's passes are made: in groups of ranks, on a sample where there are many chunks."""
    comm = getattr(ctx.ranks, "comm", None)
    if comm is not None:
        return multistart.in_groups(comm, partial(_small, problem.build), problem.plan.lm)
    return multistart.in_turn(hybrid.sample_of(objective) or objective, problem.plan.lm)


def _small(build: Callable[[Sum], Objective], add: Sum) -> Objective:
    objective = build(add)
    return hybrid.sample_of(objective) or objective


def _last(problem: Problem, objective: Objective, fit: FitState) -> dict[str, NDArray[Any]]:
    """Make what passes the result needs after the minimum is found."""
    result = hybrid.finish(
        fit, objective, problem.plan, absolute_sigma=problem.absolute_sigma, sandwich=problem.sandwich
    )
    extra = {} if problem.last is None else problem.last(objective, result.x)
    return {"last.covariance": result.covariance, **{f"extra.{k}": v for k, v in extra.items()}}


def _first_arrays(state: Arrays, passes: int) -> Arrays:
    return {**{f"first.{k}": v for k, v in state.items()}, "before.passes": np.asarray(passes)}


def _tournament_arrays(play: Tournament) -> Arrays:
    return {f"start.{k}": v for k, v in multistart.to_arrays(play).items()}


def _part(state: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _points(fit: FitState) -> int:
    """Return how many points the last pass went over."""
    at = fit.lm.at if fit.lm is not None and fit.lm.at is not None else fit.first
    return 0 if at is None else at.count + at.rejected


def _cost(fit: FitState) -> dict[str, float]:
    """Return the cost of the best point of this phase."""
    if fit.lm is not None and fit.lm.at is not None:
        return {"cost": fit.lm.at.cost}
    if fit.warm is not None and fit.first is not None and fit.warm.first > 0:
        return {"cost": fit.warm.best_loss / fit.warm.first * fit.first.cost}
    return {} if fit.first is None else {"cost": fit.first.cost}


def _left(state: Arrays) -> int:
    """Return the passes still to come if the decrement goes on falling as in the last two; 0 if that cannot be told."""
    history = state.get("fit.lm.history")
    if history is None or not len(history):
        return 0
    before, now = float(history[-1, 1]), float(state["fit.lm.decrement"])
    if not 0 < now < before < math.inf:
        return 0
    return min(_FURTHEST, max(1, math.ceil(math.log(_NEAR / now) / math.log(now / before)))) if now > _NEAR else 1


def cosine(q: Quadratic) -> float:
    """Return the largest cosine between the residuals and a column of the Jacobian (MINPACK's gnorm)."""
    scale = column_scale(q) * math.sqrt(2 * q.cost)
    return float(np.max(np.abs(q.gradient) / np.where(scale > 0, scale, 1.0), initial=0.0))


def _write_profile(tree: Phase, ctx: Context, stage: str) -> None:
    """Write the timing tree of rank 0's last attempt; checkpoints are the engine's and counted there."""
    saved = tree.part("checkpoint")
    saved.calls, saved.seconds = 1, ctx.timings.seconds.get(f"checkpoint {stage}", 0.0)
    tree.seconds += saved.seconds
    folder = ctx.results_dir / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "timing.json", json.dumps(tree.as_dict(), indent=1).encode())
    write_bytes(folder / "timing.txt", ("\n".join(tree.lines()) + "\n").encode())
