"""The first fit: from the start values to near the minimum, on the stand-in of the data and in coordinates that suit.

D0 t^alpha + D_offset is nearly the same curve for many triples of parameters; in these the valley of least cost is long
and bent, and Gauss-Newton steps are short. The same curve as m (1 + s ((t/t_m)^alpha - 1)/alpha), with value m and
logarithmic slope s at one time t_m of the data (Box & Cox, J. R. Stat. Soc. B 26, 211, 1964), has a straighter one in
s, alpha and ln m, and alpha near zero is no special place. Bounds hold throughout: what leaves them is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from tessera.lsq import levenberg
from tessera.lsq.levenberg import LMOptions, LMState
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.physics import RATE_FLOOR, Floats, safe_times

_TOLERANCE: Final = 1e-2
"""Standard errors from the minimum at which the first fit ends; the steps after it converge quadratically."""

_PASSES: Final = 60
"""Of one start at most."""

_LEAST_ALPHA: Final = 1e-2
"""Exponents are kept this far from zero, where prefactor and offset are the same curve."""

_LEAST_VALUE: Final = 1e-3
"""Share of prefactor and offset that the rate at t_m has at least, in the coordinates of the first fit."""

_RADIUS: Final = 0.3
"""Length of the first step over that of the start: far from the minimum longer steps lead astray."""

_MIDDLE: Final = 0.1
"""Where t_m lies between the first and the last time."""

_POOR: Final = 1.02
"""Cost over what noise alone would leave, above which other starts are tried."""

_OTHERS: Final = (0.2, 5.0, 0.04, 25.0, 0.008, 125.0)
"""Factors on the rates of those other starts."""


@dataclass(frozen=True)
class FirstFit:
    """Where the first fit ended, and the passes over the stand-in (or, where there is none, the data) it took."""

    x: Vector
    passes: int
    starts: int


def first_fit(objective: XpcsObjective, x0: Vector, lower: Vector, upper: Vector) -> FirstFit:
    """Return parameters near the minimum. Collective over the ranks of the objective.

    Parameters
    ----------
    objective
        The fit.
    x0, lower, upper
        Start and bounds, in the order of ``objective.names``, shape (p,).
    """
    small = objective.small
    straight = _Straight(small, lower, upper)
    best, passes, starts = None, 0, 0
    for start in (x0, *_other_starts(objective, x0, lower, upper)):
        state = _descend(straight, start, small.linear)
        passes, starts = passes + state.passes, starts + 1
        if state.at is not None and state.at.finite() and (best is None or state.at.cost < best.cost):
            best = state.at
        if best is not None and best.cost <= _POOR * small.noise_cost():
            break
    return FirstFit(x0 if best is None else straight.back(best.x), passes, starts)


def _descend(straight: _Straight, x: Vector, linear: tuple[int, ...]) -> LMState:
    free = np.full(x.size, np.inf)
    state = levenberg.start(straight.there(x), -free, free)
    options = LMOptions(tolerance=_TOLERANCE, max_passes=_PASSES, radius=_RADIUS, linear=linear)
    while not levenberg.done(state):
        state = levenberg.step(state, straight.evaluate, options)
    return state


def _other_starts(objective: XpcsObjective, x0: Vector, lower: Vector, upper: Vector) -> Iterator[Vector]:
    """Yield starts with other rates: they set the time scale, without which no step finds the way."""
    rates = [k for k, p in enumerate(objective.parameters) if p.unit in ("Å²/s", "1/s")]
    for factor in _OTHERS:
        x = x0.copy()
        x[rates] *= factor
        yield np.clip(x, lower, upper)


class _Straight:
    """An objective in the coordinates of the first fit."""

    def __init__(self, objective: XpcsObjective, lower: Vector, upper: Vector) -> None:
        self._objective, self._lower, self._upper = objective, lower, upper
        times = safe_times(objective.grid.times)
        self._middle = float(_MIDDLE * times[-1])
        names = [p.name for p in objective.parameters]
        laws = (("D0", "alpha", "D_offset"), ("gamma_dot_t0", "beta", "gamma_dot_t_offset"))
        self._laws = [[names.index(name) for name in law] for law in laws if all(name in names for name in law)]

    def there(self, x: Vector) -> Vector:
        """Return the coordinates of some parameters."""
        return self._mapped(x, self._curve)

    def back(self, y: Vector) -> Vector:
        """Return the parameters of some coordinates."""
        return np.clip(self._mapped(y, self._law), self._lower, self._upper)

    def evaluate(self, y: Vector) -> Quadratic:
        """Pass over the data."""
        q = self._objective.evaluate(self.back(y))
        turn = np.eye(y.size)
        for law in self._laws:
            turn[np.ix_(law, law)] = self._turn(q.x[law])
        return Quadratic(
            x=self.there(q.x),
            cost=q.cost,
            gradient=turn.T @ q.gradient,
            hessian=turn.T @ q.hessian @ turn,
            count=q.count,
            rejected=q.rejected,
            power=q.power,
            spread=q.spread,
        )

    def _mapped(self, x: Vector, function: Callable[[Floats], Floats]) -> Vector:
        out = x.copy()
        for law in self._laws:
            out[law] = function(x[law])
        return out

    def _curve(self, law: Floats) -> Floats:
        """Return slope, exponent and log value at the middle of prefactor, exponent and offset."""
        prefactor, exponent, offset = law
        at_middle = prefactor * self._middle**exponent
        value = max(at_middle + offset, _LEAST_VALUE * (abs(at_middle) + abs(offset)), RATE_FLOOR)
        return np.array([exponent * at_middle / value, exponent, np.log(value)])

    def _law(self, curve: Floats) -> Floats:
        slope, exponent, value = curve
        exponent = _away_from_zero(exponent)
        value = np.exp(np.clip(value, -80.0, 80.0))
        # Exponents beyond any bound are put back by `back`; here they must only not overflow.
        middle = self._middle ** np.clip(exponent, -20.0, 20.0)
        return np.array([slope * value / (exponent * middle), exponent, value * (1 - slope / exponent)])

    def _turn(self, law: Floats) -> Floats:
        """Return the derivatives of `_law` where it yields these parameters."""
        prefactor, exponent, offset = law
        exponent = _away_from_zero(exponent)
        middle = self._middle**exponent
        value = prefactor * middle + offset
        return np.array(
            [
                [value / (exponent * middle), -prefactor * (1 / exponent + np.log(self._middle)), prefactor],
                [0.0, 1.0, 0.0],
                [-value / exponent, prefactor * middle / exponent, offset],
            ]
        )


def _away_from_zero(exponent: float) -> float:
    return float(np.copysign(max(abs(exponent), _LEAST_ALPHA), exponent))
