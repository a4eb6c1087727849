"""The XPCS models: parameters with their units, bounds and start values, and g₂ as homodyne's formulas give it.

This is the direct form, a few operations per pair of times: for maps, for data made from a known truth, and as the
reference of the factorised form that `tessera.xpcs.kernel` fits with. Formulas: homodyne 2.23 ``core/physics_utils.py``
and ``core/jax_backend.py``; He et al., PNAS 121 e2401162121 (2024), for the laminar flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs.errors import ParameterError

Floats: TypeAlias = NDArray[np.float64]
Model: TypeAlias = Literal["static_isotropic", "static_anisotropic", "laminar_flow"]

RATE_FLOOR: Final = 1e-10
"""Smallest D(t), Å²/s, and shear rate, 1/s: both are cut off here, so that their integrals increase with time."""

SMOOTHING: Final = 1e-12
"""Added to the square of each integral, in steps, before the root is taken."""

G1_FLOOR: Final = 1e-10
"""Smallest g₁."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A physical parameter, or contrast or offset.

    Attributes
    ----------
    name, unit
        homodyne's.
    start, lower, upper
        Start value and bounds of homodyne's registry, in ``unit``.
    meaning
        For tables.
    """

    name: str
    unit: str
    start: float
    lower: float
    upper: float
    meaning: str


DIFFUSION: Final = (
    Parameter("D0", "Å²/s", 1000.0, 100.0, 1e5, "prefactor of the diffusion coefficient D0 t^alpha + D_offset"),
    Parameter("alpha", "", 0.5, -2.0, 2.0, "exponent of the diffusion coefficient"),
    Parameter("D_offset", "Å²/s", 10.0, -1e5, 1e5, "diffusion coefficient that does not change with time"),
)
SHEAR: Final = (
    Parameter("gamma_dot_t0", "1/s", 0.01, 1e-6, 0.5, "prefactor of the shear rate gamma_dot_t0 t^beta + offset"),
    Parameter("beta", "", 0.5, -2.0, 2.0, "exponent of the shear rate"),
    Parameter("gamma_dot_t_offset", "1/s", 0.0, -0.1, 0.1, "shear rate that does not change with time"),
    Parameter("phi0", "deg", 0.0, -10.0, 10.0, "angle of the flow"),
)
CONTRAST: Final = Parameter("contrast", "", 0.5, 0.0, 1.0, "speckle contrast: g2 - offset at equal times")
OFFSET: Final = Parameter("offset", "", 1.0, 0.5, 1.5, "g2 at times far apart")


def parameters_of(model: str) -> tuple[Parameter, ...]:
    """Return the physical parameters of a model, in the order of its parameter vector.

    Raises
    ------
    ParameterError
        If there is no such model.
    """
    if model not in get_args(Model):
        msg = f"there is no model {model!r}; choose one of {', '.join(get_args(Model))}"
        raise ParameterError(msg)
    return DIFFUSION + SHEAR if model == "laminar_flow" else DIFFUSION


def safe_times(times: Floats) -> Floats:
    """Return times with t=0 replaced by half a step, so that negative exponents stay finite; s, shape (n_t,)."""
    return np.asarray(np.maximum(times, max(0.5 * (times[1] - times[0]), 1e-8)))


def power_law(times: Floats, prefactor: float, exponent: float, offset: float) -> Floats:
    """Return prefactor t^exponent + offset at `safe_times`, cut off at `RATE_FLOOR`; shape (n_t,)."""
    return np.asarray(np.maximum(prefactor * times**exponent + offset, RATE_FLOOR))


def cumulative(values: Floats) -> Floats:
    """Return the cumulative trapezoid of values along the last axis, in units of steps; it starts at zero."""
    out = np.zeros_like(values)
    np.cumsum(0.5 * (values[..., :-1] + values[..., 1:]), axis=-1, out=out[..., 1:])
    return out


def diffusion_factor(q: float, dt: float) -> float:
    """Return q² dt/2: g₁ falls by this, in its exponent, per step and unit of the diffusion coefficient."""
    return 0.5 * q * q * dt


def shear_factor(q: float, gap: float, dt: float) -> float:
    """Return q L dt/(2π): the phase, rad, per step and unit of the shear rate along the flow."""
    return 0.5 / np.pi * q * gap * dt


def g1_squared(
    physical: Floats, times: Floats, *, q: float, gap: float | None = None, phi: float = 0.0, rows: slice | None = None
) -> Floats:
    """Return g₁² for all pairs of times by the direct form.

    Parameters
    ----------
    physical
        Three parameters (no flow) or seven, as `parameters_of` lists them.
    times
        Evenly spaced, s, shape (n_t,).
    q
        Wavevector, 1/Å.
    gap
        Between stator and rotor, Å; needed with seven parameters.
    phi
        Angle of the wavevector, deg.
    rows
        First times to take; all by default.

    Returns
    -------
    numpy.ndarray
        Shape (number of rows, n_t): max(g₁, 1e-10)² with g₁ = exp(-q²dt/2 I_D) sinc²(q L dt/2π cos(φ₀-φ) I_γ).
    """
    t, dt = safe_times(times), float(times[1] - times[0])
    rows = rows or slice(None)
    g1 = np.exp(np.maximum(-diffusion_factor(q, dt) * _between(power_law(t, *physical[:3]), rows), -700.0))
    if len(physical) > len(DIFFUSION):
        if gap is None:
            msg = "laminar flow needs the gap between stator and rotor, in Å"
            raise ParameterError(msg)
        across = np.cos(np.deg2rad(physical[6] - phi))
        phase = shear_factor(q, gap, dt) * _between(power_law(t, *physical[3:6]), rows) * across
        g1 *= np.sinc(phase / np.pi) ** 2
    return np.asarray(np.maximum(g1, G1_FLOOR) ** 2)


def _between(rate: Floats, rows: slice) -> Floats:
    integral = cumulative(rate)
    return np.asarray(np.sqrt((integral[rows, None] - integral) ** 2 + SMOOTHING))
