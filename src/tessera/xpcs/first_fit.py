"""The first fit: from the start values to near the minimum, on the stand-in of the data and in straight coordinates.

A state machine, one pass a step: a descent from each start in turn until one ends as low as the noise lets it; should
the starts that are given all end higher, from those constant rates that cost least.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq import levenberg
from tessera.lsq.levenberg import LMOptions, LMState
from tessera.lsq.quadratic import Vector
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.physics import Floats, diffusion_factor, shear_factor
from tessera.xpcs.straight import Straight

_TOLERANCE: Final = 1e-2
"""Standard errors from the minimum at which the first fit ends; the steps after it converge quadratically."""

_PASSES: Final = 40
"""Of one start at most."""

_RADIUS: Final = 0.3
"""Length of the first step over that of the start: far from the minimum longer steps lead astray."""

_POOR: Final = 1.02
"""Cost over what noise alone would leave, above which other starts are tried."""

_DECAYS: Final = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""q² ∫D dt over all times, of the constant diffusion coefficients that are looked at if the first start is poor."""

_TURNS: Final = (1.0, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0, 200.0)
"""rad: q L/2π ∫γ̇ dt over all times, of the constant shear rates that are looked at."""

_BEST: Final = 4
"""Of them so many are starts."""


@dataclass(frozen=True)
class FirstFit:
    """How far the first fit is; plain values and arrays, so it can be saved at any pass.

    Attributes
    ----------
    lm
        The descent in straight coordinates; ended where the fit has.
    within
        Whether it keeps the bounds of prefactors and offsets. At first prefactors may have either sign: between
        positive ones with a rising and with a falling curve there is only the flat one, a needle's eye. A curve that
        ends with a negative prefactor is a falling one with a negative exponent.
    waiting
        Starts whose turn is to come, shape (k, p).
    looks, costs
        Constant rates, shape (m, p), and what they cost, shape (m,), NaN until a pass told; empty before they are
        needed.
    x0
        The first start, shape (p,).
    x, cost
        The best end so far, or the first start.
    passes, starts
        Passes made, over the stand-in or, where there is none, the data; descents begun.
    done
        Whether `x` is final.
    """

    lm: LMState
    within: bool
    waiting: Floats
    looks: Floats
    costs: Floats
    x0: Vector
    x: Vector
    cost: float = np.inf
    passes: int = 0
    starts: int = 1
    done: bool = False

    @property
    def looking(self) -> bool:
        """Whether the next pass looks at a constant rate."""
        return bool(np.isnan(self.costs).any())


@dataclass(frozen=True)
class FirstFits:
    """The steps of a first fit of one problem.

    Parameters
    ----------
    lower, upper
        Bounds, in the order of ``objective.names``, shape (p,).
    """

    lower: Vector
    upper: Vector

    def begin(self, objective: XpcsObjective, starts: Sequence[Vector]) -> FirstFit:
        """Return the state before the first pass; the starts are tried in turn."""
        p = len(objective.names)
        return FirstFit(
            lm=self._descent(objective, starts[0], within=False),
            within=False,
            waiting=np.array(starts[1:]).reshape(-1, p),
            looks=np.zeros((0, p)),
            costs=np.zeros(0),
            x0=np.array(starts[0]),
            x=np.clip(starts[0], self.lower, self.upper),
        )

    def step(self, state: FirstFit, objective: XpcsObjective) -> FirstFit:
        """Make one pass. Collective over the ranks of the objective."""
        small = objective.small
        state = replace(state, passes=state.passes + 1)
        if state.looking:
            costs = state.costs.copy()
            k = int(np.argmax(np.isnan(costs)))
            costs[k] = small.evaluate(state.looks[k]).cost
            costs[k] = costs[k] if np.isfinite(costs[k]) else np.inf
            state = replace(state, costs=costs)
            if state.looking:
                return state
            best = np.argsort(costs, kind="stable")[:_BEST]
            return self._next(replace(state, waiting=state.looks[best]), small)
        options = LMOptions(tolerance=_TOLERANCE, max_passes=_PASSES, radius=_RADIUS, linear=small.linear)
        lm = levenberg.step(state.lm, self._straight(small, within=state.within).evaluate, options)
        state = replace(state, lm=lm)
        return self._landed(state, small) if levenberg.done(lm) else state

    def _landed(self, state: FirstFit, small: XpcsObjective) -> FirstFit:
        """Judge the end of a descent."""
        at = state.lm.at
        if at is not None and at.finite():
            straight = self._straight(small, within=state.within)
            found = straight.back(at.x)
            if not ((found >= self.lower) & (found <= self.upper)).all():
                return replace(state, within=True, lm=self._descent(small, straight.turned(at.x), within=True))
            if at.cost < state.cost:
                state = replace(state, x=found, cost=at.cost)
        if np.isfinite(state.cost) and state.cost <= _POOR * small.noise_cost():
            return replace(state, done=True)
        return self._next(state, small)

    def _next(self, state: FirstFit, small: XpcsObjective) -> FirstFit:
        """Go on to the next start, or look for more."""
        if len(state.waiting):
            lm = self._descent(small, state.waiting[0], within=False)
            return replace(state, lm=lm, within=False, waiting=state.waiting[1:], starts=state.starts + 1)
        if state.costs.size:
            return replace(state, done=True)
        looks = _constant_rates(small, state.x0, self.lower, self.upper)
        return replace(state, looks=looks, costs=np.full(len(looks), np.nan))

    def _straight(self, small: XpcsObjective, *, within: bool) -> Straight:
        far = np.full(self.lower.size, np.inf)
        low, high = (self.lower, self.upper) if within else (-far, far)
        return Straight(small, low, high, self.lower, self.upper)

    def _descent(self, objective: XpcsObjective, x: Vector, *, within: bool) -> LMState:
        far = np.full(self.lower.size, np.inf)
        return levenberg.start(self._straight(objective.small, within=within).there(x), -far, far)


def _constant_rates(objective: XpcsObjective, x0: Vector, lower: Vector, upper: Vector) -> Floats:
    """Return parameters of constant diffusion coefficients and shear rates, shape (m, p)."""
    grid, names = objective.grid, [p.name for p in objective.parameters]
    total = grid.dt * (grid.times.size - 1)
    scans = [(("D0", "alpha", "D_offset"), np.array(_DECAYS) / (2 * diffusion_factor(grid.q, total)))]
    if grid.gap is not None and objective.model == "laminar_flow":
        turns = np.array([turn for turn in _TURNS if turn < grid.times.size])
        scans.append((("gamma_dot_t0", "beta", "gamma_dot_t_offset"), turns / shear_factor(grid.q, grid.gap, total)))
    out = []
    for rates in itertools.product(*(values for _, values in scans)):
        x = x0.copy()
        for (law, _), rate in zip(scans, rates, strict=True):
            for name, value in zip(law, (0.5 * rate, 0.0, 0.5 * rate), strict=True):
                if name in names:
                    x[names.index(name)] = value
            if law[0] in names and law[2] in names:
                x[names.index(law[0])] = max(0.5 * rate, lower[names.index(law[0])])
                x[names.index(law[2])] = rate - x[names.index(law[0])]
        out.append(np.clip(x, lower, upper))
    return np.array(out)


_PLAIN: Final = ("within", "waiting", "looks", "costs", "x0", "x", "cost", "passes", "starts", "done")


def to_arrays(state: FirstFit) -> dict[str, NDArray[Any]]:
    """Return the state as named arrays; `from_arrays` gives it back bit by bit."""
    plain = {name: np.asarray(getattr(state, name)) for name in _PLAIN}
    return plain | {f"lm.{name}": value for name, value in levenberg.to_arrays(state.lm).items()}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FirstFit:
    """Return the state that `to_arrays` was given."""
    lm = {name.removeprefix("lm."): value for name, value in arrays.items() if name.startswith("lm.")}
    plain: dict[str, Any] = {name: np.array(arrays[name]) for name in _PLAIN}
    single = {name: value.item() for name, value in plain.items() if value.ndim == 0}
    return FirstFit(lm=levenberg.from_arrays(lm), **plain | single)
