"""The coordinates of the first fit, in which the valley of least cost is straighter.

D0 t^alpha + D_offset is nearly the same curve for many triples of parameters; in these the valley of least cost is long
and bent, and Gauss-Newton steps are short. The same curve as m (1 + s ((t/t_m)^alpha - 1)/alpha), with value m and
logarithmic slope s at one time t_m of the data (Box & Cox, J. R. Stat. Soc. B 26, 211, 1964), has a straighter one in
s, alpha and ln m, and alpha near zero is no special place. Bounds hold throughout: what leaves them is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from tessera.lsq.quadratic import Quadratic, Vector
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.physics import RATE_FLOOR, Floats, power_law, safe_times

_LEAST_ALPHA: Final = 1e-2
"""Exponents are kept this far from zero, where prefactor and offset are the same curve."""

_LEAST_VALUE: Final = 1e-3
"""Share of prefactor and offset that the rate at t_m has at least, in the coordinates of the first fit."""

_ANGLE: Final = 10.0
"""deg: what one is to the other coordinates."""

_TURNED: Final = 0.1
"""Least exponent of a curve whose prefactor was given another sign."""

_CUT_OFF: Final = 0.1
"""Share of the times at which a rate may be cut off; with more the cost has kinks that descents get stuck at."""

_MIDDLE: Final = 0.1
"""Where t_m lies between the first and the last time."""


class Straight:
    """An objective in the coordinates of the first fit."""

    def __init__(self, objective: XpcsObjective, lower: Vector, upper: Vector, least: Vector, most: Vector) -> None:
        self._objective = objective
        self._times = safe_times(objective.grid.times)
        self._middle = float(_MIDDLE * self._times[-1])
        names = [p.name for p in objective.parameters]
        laws = (("D0", "alpha", "D_offset"), ("gamma_dot_t0", "beta", "gamma_dot_t_offset"))
        self._laws = [[names.index(name) for name in law] for law in laws if all(name in names for name in law)]
        # Exponents and angle keep their bounds in any case.
        kept = [law[1] for law in self._laws] + [k for k, name in enumerate(names) if name == "phi0"]
        self._lower, self._upper = lower.copy(), upper.copy()
        self._lower[kept], self._upper[kept] = least[kept], most[kept]
        self._unit = np.array([_ANGLE if name == "phi0" else 1.0 for name in objective.names])
        self._damped = np.arange(len(objective.names)) < len(names)

    def there(self, x: Vector) -> Vector:
        """Return the coordinates of some parameters."""
        return self._mapped(x, self._curve)

    def back(self, y: Vector) -> Vector:
        """Return the parameters of some coordinates; of a curve out of bounds the value at t_m is kept."""
        x = np.clip(self._mapped(y, self._law), self._lower, self._upper)
        for law in self._laws:
            value = np.exp(np.clip(y[law[2]], -80.0, 80.0))
            offset = value - x[law[0]] * self._middle ** x[law[1]]
            x[law[2]] = np.clip(offset, self._lower[law[2]], self._upper[law[2]])
        return x

    def turned(self, y: Vector) -> Vector:
        """Return the parameters of nearly the same curves with positive prefactors."""
        y = y.copy()
        for law in self._laws:
            slope, exponent = y[law[:2]]
            y[law[1]] = np.copysign(max(abs(exponent), _TURNED), slope)
        return self._mapped(y, self._law)

    def evaluate(self, y: Vector) -> Quadratic:
        """Pass over the data; where a rate is cut off the cost is no longer smooth, and counts as infinite."""
        x = self.back(y)
        if self._cut_off(x):
            return Quadratic(x=y, cost=np.inf, gradient=np.zeros(y.size), hessian=np.zeros((y.size, y.size)), count=0)
        q = self._objective.evaluate(x)
        turn = np.eye(y.size)
        for law in self._laws:
            turn[np.ix_(law, law)] = self._turn(q.x[law])
        # What is left to gain bounds how far to go: about one in each coordinate, until nothing is left.
        damping = np.where(self._damped, max(q.cost - self._objective.noise_cost(), 0.0) / self._unit**2, 0.0)
        return Quadratic(
            x=self.there(q.x),
            cost=q.cost,
            gradient=turn.T @ q.gradient,
            hessian=turn.T @ q.hessian @ turn + np.diag(damping),
            count=q.count,
            rejected=q.rejected,
            power=q.power,
            spread=q.spread,
        )

    def _cut_off(self, x: Vector) -> bool:
        physical = self._objective.physical(x)
        laws = physical[: len(physical) // 3 * 3].reshape(-1, 3)
        return any((power_law(self._times, *law) <= RATE_FLOOR).mean() > _CUT_OFF for law in laws)

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
