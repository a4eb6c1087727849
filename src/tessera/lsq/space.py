"""Normalised parameters and the box they live in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.quadratic import Vector


@dataclass(frozen=True, slots=True)
class Space:
    """The normalisation x = scale * z + offset, and the box in x; each of shape (p,), scale > 0."""

    lower: Vector
    upper: Vector
    scale: Vector
    offset: Vector

    def to_x(self, z: Vector) -> Vector:
        """Return parameters in the user's units, exactly within the bounds."""
        return np.clip(self.scale * z + self.offset, self.lower, self.upper)

    def to_z(self, x: Vector) -> Vector:
        """Return normalised parameters."""
        return (x - self.offset) / self.scale

    def clip(self, z: Vector) -> Vector:
        """Return the nearest normalised parameters within the bounds."""
        return np.clip(z, self.to_z(self.lower), self.to_z(self.upper))

    def free(self, z: Vector, gradient: Vector) -> NDArray[np.bool_]:
        """Say which parameters may go downhill: those not pressed against a bound."""
        blocked = (z <= self.to_z(self.lower)) & (gradient > 0) | (z >= self.to_z(self.upper)) & (gradient < 0)
        return np.asarray(~blocked & (gradient != 0))
