"""`tessera.xpcs.fit`: an XPCS model to two-time correlations in memory, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq import hybrid
from tessera.lsq.losses import Loss
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Vector
from tessera.lsq.result import Result
from tessera.xpcs.dataset import ArrayC2, C2Rows
from tessera.xpcs.errors import ParameterError, XpcsInputError
from tessera.xpcs.first_fit import FirstFits
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.start import typical_noise

if TYPE_CHECKING:
    from mpi4py import MPI

CONFIG: Final = HybridStreamingConfig(warmup_iterations=0, max_warmup_iterations=0, gauss_newton_tol=1e-4)
"""No warm-up: the first fit takes its place; the fit ends 1e-4 standard errors from the minimum."""


def fit(
    c2: NDArray[Any] | C2Rows,
    phi: NDArray[Any] | float,
    *,
    q: float,
    dt: float | None = None,
    gap: float | None = None,
    model: str = "laminar_flow",
    p0: Mapping[str, float] | Sequence[float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | tuple[Sequence[float], Sequence[float]] | None = None,
    scaling: str = "auto",
    sigma: float | NDArray[Any] | None = None,
    times: NDArray[Any] | None = None,
    fixed: Mapping[str, float] | None = None,
    config: HybridStreamingConfig = CONFIG,
    comm: MPI.Intracomm | None = None,
    threads: int = 1,
    in_memory: bool = True,
    loss: Loss = "linear",
    loss_scale: float = 1.0,
    sandwich: bool = False,
) -> Result:
    """Fit an XPCS model to two-time correlations.

    Parameters
    ----------
    c2
        g₂(t1, t2) of each angle, shape (n_phi, n_t, n_t); the diagonal is left out, NaN marks missing values.
    phi
        Angle of the wavevector of each matrix, deg, shape (n_phi,).
    q, dt, gap
        Wavevector, 1/Å; time between frames, s; gap between stator and rotor, Å (laminar flow).
    model
        ``static_isotropic``, ``static_anisotropic`` or ``laminar_flow``.
    p0
        Start values, by name (homodyne's for those not named) or of all physical parameters in order; contrast and
        offset need none, and any given are ignored.
    bounds
        Of physical parameters, by name, or all lower and all upper ones in the order of `XpcsObjective.names`.
    scaling
        ``shared``, ``constant``, ``auto``, ``individual`` or ``fourier``, see `tessera.xpcs.scaling.make`.
    sigma
        Standard error of C₂: a number, one per angle, or an array like C₂. Without it the errors of the parameters
        are scaled by the reduced chi².
    times
        Of the frames, s, instead of ``dt``.
    fixed
        Values of physical parameters that are not to be fitted.
    config
        Options of the optimizer.
    comm
        MPI communicator; every rank is given the same arguments.
    threads
        Threads per process.
    in_memory
        Whether each rank keeps its share of C₂ (4 bytes per point of the full squares) or reads it at every pass.
    loss, loss_scale
        ``linear`` (squares), ``soft_l1``, ``huber``, ``cauchy`` or ``arctan``, and the residual, in standard errors,
        from which on it counts less; without ``sigma`` the standard error is measured from differences of neighbours.
        Near the minimum the fit begins by least squares.
    sandwich
        Whether the errors of the parameters come from the sandwich covariance, which holds also where the noise is not
        of one size; not affected by ``sigma``.

    Returns
    -------
    Result
        Physical parameters first, then contrasts and offsets.

    Raises
    ------
    XpcsInputError
        If data, units or options do not fit together; the message names the argument.
    """
    add = None
    if comm is not None:
        from tessera.lsq.reduce import over

        add = over(comm)
    absolute = sigma is not None
    if loss != "linear" and sigma is None:
        sigma = _measured(c2)
    objective = XpcsObjective(
        c2, phi, q=q, dt=dt, times=times, gap=gap, model=model, scaling=scaling, sigma=sigma, fixed=fixed, add=add,
        threads=threads, hold=in_memory, loss=loss, loss_scale=loss_scale,
    )  # fmt: skip
    lower, upper = limits(objective, bounds)
    x0 = start_vector(objective, p0, lower, upper)
    plan = hybrid.Plan(config, objective.linear)
    descents = FirstFits(lower, upper)
    first = descents.begin(objective, [x0])
    while not first.done:
        first = descents.step(first, objective)
    state = hybrid.start(first.x, lower, upper)
    while not hybrid.done(state):
        state = hybrid.step(state, objective, plan)
    result = hybrid.finish(state, objective, plan, absolute_sigma=absolute, sandwich=sandwich)
    telemetry = {**result.telemetry, "first_fit": {"passes": first.passes, "starts": first.starts}}
    return dataclasses.replace(result, telemetry=telemetry)


def _measured(c2: NDArray[Any] | C2Rows) -> float:
    noise = typical_noise(ArrayC2(c2) if isinstance(c2, np.ndarray) else c2)
    if not (np.isfinite(noise) and noise > 0):
        msg = "no noise can be measured (few frames, or none in them), which a robust loss is judged by; give sigma"
        raise XpcsInputError(msg)
    return noise


def limits(
    objective: XpcsObjective,
    bounds: Mapping[str, tuple[float, float]] | tuple[Sequence[float], Sequence[float]] | None,
) -> tuple[Vector, Vector]:
    """Return lower and upper bounds of all parameters of an objective.

    Raises
    ------
    ParameterError
        If a name is not known, the number is wrong, or a lower bound is not below the upper one.
    """
    lower, upper = objective.lower, objective.upper
    names = objective.names
    if isinstance(bounds, Mapping):
        _refuse_unknown(bounds, names, "bounds")
        for name, (low, high) in bounds.items():
            k = names.index(name)
            if k >= len(objective.parameters):
                msg = f"bounds of {name} are {lower[k]} … {upper[k]}: those of contrast and offset cannot be set"
                raise ParameterError(msg)
            lower[k], upper[k] = low, high
    elif bounds is not None:
        lower, upper = (np.array(side, np.float64) for side in bounds)
        if not lower.shape == upper.shape == (len(names),):
            msg = f"bounds have shapes {lower.shape} and {upper.shape}; give one each for {', '.join(names)}"
            raise ParameterError(msg)
    wrong = [k for k in range(len(names)) if not lower[k] < upper[k]]
    if wrong:
        k = wrong[0]
        msg = f"the lower bound of {names[k]}, {lower[k]}, is not below the upper one, {upper[k]}"
        raise ParameterError(msg)
    return lower, upper


def start_vector(
    objective: XpcsObjective, p0: Mapping[str, float] | Sequence[float] | None, lower: Vector, upper: Vector
) -> Vector:
    """Return the start of a fit.

    Raises
    ------
    ParameterError
        If a name is not known, the number is wrong, or a value is outside of its bounds.
    """
    n = len(objective.parameters)
    names = objective.names
    x = np.array([p.start for p in objective.parameters] + [0.0] * (len(names) - n))
    if isinstance(p0, Mapping):
        _refuse_unknown(p0, names, "p0")
        for name, value in p0.items():
            x[names.index(name)] = value
    elif p0 is not None:
        given = np.asarray(p0, np.float64)
        if given.shape not in ((n,), (len(names),)):
            msg = f"p0 has shape {given.shape}; give {n} values: {', '.join(names[:n])}"
            raise ParameterError(msg)
        x[:n] = given[:n]
    for k in range(n):
        if p0 is None:
            x[k] = np.clip(x[k], lower[k], upper[k])
        if not lower[k] <= x[k] <= upper[k]:
            msg = f"the start value of {names[k]}, {x[k]}, is outside of its bounds {lower[k]} … {upper[k]}"
            raise ParameterError(msg)
    x[n:] = np.clip(np.where(np.arange(len(x) - n) < (len(x) - n) // 2, 0.5, 1.0), lower[n:], upper[n:])
    return x


def _refuse_unknown(given: Mapping[str, Any], names: Sequence[str], argument: str) -> None:
    wrong = [name for name in given if name not in names]
    if wrong:
        msg = f"{argument} names {', '.join(wrong)}; the parameters are {', '.join(names)}"
        raise ParameterError(msg)
