"""Integrals of diffusion coefficient and shear rate over time, and their derivatives: all that is not per pair.

g₂ depends on two times t_i < t_j only through the differences E_j - E_i and A_j - A_i of two increasing functions on
the time grid, and so do its derivatives: each is a factor of the pair times a difference of one vector per parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessera.xpcs.physics import (
    RATE_FLOOR,
    SMOOTHING,
    Floats,
    cumulative,
    diffusion_factor,
    power_law,
    safe_times,
    shear_factor,
)


@dataclass(frozen=True)
class Grid:
    """Where the transport is integrated.

    Attributes
    ----------
    times
        Evenly spaced, s, shape (n_t,).
    phi
        Angles, deg, shape (n_phi,).
    q
        Wavevector, 1/Å.
    gap
        Between stator and rotor, Å; None without flow.
    """

    times: Floats
    phi: Floats
    q: float
    gap: float | None

    @property
    def dt(self) -> float:
        """Time between frames, s."""
        return float(self.times[1] - self.times[0])


@dataclass(frozen=True)
class Diffusion:
    """g₁² = exp(-(decay_j - decay_i)) of pairs i < j.

    Attributes
    ----------
    decay
        q² ∫D dt on the grid, shape (n_t,).
    slopes
        -d decay/d (D0, alpha, D_offset), shape (3, n_t): d g/d p = g (slope_j - slope_i).
    """

    decay: Floats
    slopes: Floats


@dataclass(frozen=True)
class Shear:
    """sinc⁴(across (phase_j - phase_i)) of pairs i < j.

    Attributes
    ----------
    phase
        q L/(2π) ∫γ̇ dt on the grid, rad, shape (n_t,).
    slopes
        d phase/d (gamma_dot_t0, beta, gamma_dot_t_offset), and phase itself, which stands for phi0; shape (4, n_t).
    across
        cos(phi0 - phi), shape (n_phi,); never exactly zero.
    turning
        d ln(across)/d phi0, 1/deg, shape (n_phi,).
    smoothing
        Square of the phase that smooths the root, rad².
    """

    phase: Floats
    slopes: Floats
    across: Floats
    turning: Floats
    smoothing: float


def diffusion(grid: Grid, physical: Floats) -> Diffusion:
    """Integrate D(t) for the first three physical parameters."""
    rate, slopes = _rate(grid.times, physical[:3])
    factor = 2 * diffusion_factor(grid.q, grid.dt)
    return Diffusion(factor * cumulative(rate), -factor * cumulative(slopes))


def shear(grid: Grid, physical: Floats) -> Shear:
    """Integrate the shear rate for physical parameters 3 … 6."""
    rate, slopes = _rate(grid.times, physical[3:6])
    factor = shear_factor(grid.q, 0.0 if grid.gap is None else grid.gap, grid.dt)
    phase = factor * cumulative(rate)
    angle = np.deg2rad(physical[6] - grid.phi)
    across = np.cos(angle)
    across = np.where(np.abs(across) < _TINY, _TINY, across)
    return Shear(
        phase=phase,
        slopes=np.concatenate([factor * cumulative(slopes), phase[None]]),
        across=across,
        turning=-np.sin(angle) / across * np.deg2rad(1.0),
        smoothing=factor * factor * SMOOTHING,
    )


_TINY = 1e-60
"""Stands for a cosine of zero: its square is still a normal number, and what is divided by it is proportional to it."""


def _rate(times: Floats, law: Floats) -> tuple[Floats, Floats]:
    """Return a power law on the grid, (n_t,), and its derivatives, (3, n_t), which vanish where it is cut off."""
    t = safe_times(times)
    power = t ** law[1]
    slopes = np.stack([power, law[0] * power * np.log(t), np.ones_like(t)])
    slopes[:, law[0] * power + law[2] <= RATE_FLOOR] = 0.0
    return power_law(t, *law), slopes
