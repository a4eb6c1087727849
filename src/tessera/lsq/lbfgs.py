"""Limited-memory BFGS whose line search is a state, so that every trial is one pass over the data and can be saved.

Directions by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4); the line search brackets a point that
satisfies the weak Wolfe conditions by bisection (Lewis & Overton 2013, algorithm 2.6) or, as ``backtracking``, only the
Armijo condition. Parameters at a bound that the gradient presses against are held for the length of a search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.quadratic import Vector

_ARMIJO: Final = 1e-4
_CURVATURE: Final = 0.9
_TRIES: Final = 20
"""Trials of one line search, as in NLSQ."""


@dataclass(frozen=True, slots=True)
class Lbfgs:
    """Memory of curvature, and the line search in progress.

    Attributes
    ----------
    steps, changes
        Pairs of step and change of gradient, newest last, shape (pairs, p).
    direction
        Of the search, shape (p,).
    slope
        Of the loss along it, at its start (< 0).
    length, low, high
        Trial multiple of the direction, and the bracket around the wanted one.
    tries
        Trials made in this search.
    """

    steps: NDArray[np.float64]
    changes: NDArray[np.float64]
    direction: Vector
    slope: float
    length: float = 1.0
    low: float = 0.0
    high: float = math.inf
    tries: int = 0

    @classmethod
    def start(cls, gradient: Vector, free: NDArray[np.bool_], step: float) -> Lbfgs:
        """Return a search of first length ``step`` (normalised) down the gradient of the free parameters."""
        downhill = np.where(free, -gradient, 0.0)
        norm = float(np.linalg.norm(downhill))
        direction = downhill * (step / norm) if norm > 0 else downhill
        return cls(np.empty((0, gradient.size)), np.empty((0, gradient.size)), direction, float(direction @ gradient))

    @property
    def step(self) -> Vector:
        """The trial step."""
        return self.length * self.direction

    @property
    def stuck(self) -> bool:
        """Whether there is no way down, or none was found."""
        return not self.slope < 0 or self.tries >= _TRIES

    def judge(
        self, moved: Vector, start: tuple[float, Vector], trial: tuple[float, Vector], *, wolfe: bool, longest: bool
    ) -> tuple[bool, Lbfgs]:
        """Say whether the trial is taken, and return the search for the next one if it is not.

        Parameters
        ----------
        moved
            What the trial really moved, bounds and clipping considered, shape (p,).
        start, trial
            Loss and gradient at the start of the search and at the trial.
        wolfe
            Whether curvature is asked for too.
        longest
            Whether a longer trial would be the same one: it was clipped.
        """
        low, high = self.low, self.high
        if not trial[0] <= start[0] + _ARMIJO * float(start[1] @ moved):
            high = self.length
            length = _shorter(low, high, self.slope * self.length, trial[0] - start[0])
        elif wolfe and not longest and float(trial[1] @ self.direction) < _CURVATURE * self.slope:
            low = self.length
            length = 2 * low if math.isinf(high) else (low + high) / 2
        else:
            return True, self
        return False, replace(self, length=length, low=low, high=high, tries=self.tries + 1)

    def onward(self, moved: Vector, change: Vector, gradient: Vector, free: NDArray[np.bool_], history: int) -> Lbfgs:
        """Return the search from the point just taken, having learnt from the step to it."""
        steps, changes = self.steps, self.changes
        curved = float(moved @ change)
        if curved > 1e-10 * float(np.linalg.norm(moved) * np.linalg.norm(change)):
            steps = np.vstack([steps, moved])[-history:]
            changes = np.vstack([changes, change])[-history:]
        direction = -_two_loop(steps, changes, gradient, free)
        slope = float(direction @ gradient)
        if not slope < 0:  # curvature learnt with other parameters free misleads: forget it
            downhill = np.where(free, -gradient, 0.0)
            return Lbfgs(steps[:0], changes[:0], downhill, float(downhill @ gradient))
        return Lbfgs(steps, changes, direction, slope)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state as named arrays."""
        numbers = np.array([self.slope, self.length, self.low, self.high, self.tries])
        return {"steps": self.steps, "changes": self.changes, "direction": self.direction, "search": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Lbfgs:
        """Return the state that `to_arrays` described."""
        slope, length, low, high, tries = (float(v) for v in arrays["search"])
        return cls(arrays["steps"], arrays["changes"], arrays["direction"], slope, length, low, high, int(tries))


def _shorter(low: float, high: float, slope: float, rise: float) -> float:
    """Return the next trial in a bracket: the parabola's minimum where it is well inside, else the middle."""
    if low == 0 and math.isfinite(rise) and rise > slope:
        parabola = -slope / (2 * (rise - slope)) * high
        return min(max(parabola, 0.1 * high), 0.5 * high)
    return (low + high) / 2


def _two_loop(
    steps: NDArray[np.float64], changes: NDArray[np.float64], gradient: Vector, free: NDArray[np.bool_]
) -> Vector:
    """Return the inverse Hessian's estimate, restricted to the free parameters, times the gradient."""
    q = np.where(free, gradient, 0.0)
    pairs = [(s, y) for s, y in zip(steps * free, changes * free, strict=True) if float(s @ y) > 0]
    weights = []
    for s, y in reversed(pairs):
        weights.append(float(s @ q) / float(s @ y))
        q = q - weights[-1] * y
    if pairs:
        s, y = pairs[-1]
        q = q * (float(s @ y) / float(y @ y))
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - float(y @ q) / float(s @ y)) * s
    return q
