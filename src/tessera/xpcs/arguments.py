"""What an XPCS objective is given, checked: angles, times, units, errors of the data, fixed parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.losses import LOSSES
from tessera.xpcs.dataset import ArrayC2, C2Rows
from tessera.xpcs.errors import ParameterError, XpcsInputError
from tessera.xpcs.physics import Floats, Parameter


def check_geometry(c2: C2Rows, phi: Floats, q: float, gap: float | None, model: str) -> None:
    """Refuse angles, wavevector or gap that do not fit the data or the model.

    Raises
    ------
    XpcsInputError
        Naming the argument.
    """
    if phi.shape != (c2.n_phi,):
        msg = f"phi has shape {phi.shape} and c2 {c2.n_phi} angles; give one angle, in degrees, per matrix"
        raise XpcsInputError(msg)
    if c2.n_t < 3:
        msg = f"c2 has {c2.n_t} frames; at least 3 are needed"
        raise XpcsInputError(msg)
    if not np.isfinite(phi).all():
        msg = f"phi[{int(np.argmin(np.isfinite(phi)))}] is not finite; give the angles in degrees"
        raise XpcsInputError(msg)
    if not (np.isfinite(q) and q > 0):
        msg = f"q is {q}; give the wavevector in 1/Å, above zero"
        raise XpcsInputError(msg)
    if model == "laminar_flow" and not (gap is not None and np.isfinite(gap) and gap > 0):
        msg = f"gap is {gap}; laminar flow needs the gap between stator and rotor in Å, above zero"
        raise XpcsInputError(msg)


def time_grid(n_t: int, dt: float | None, times: NDArray[Any] | None) -> Floats:
    """Return the times of the frames, s.

    Raises
    ------
    XpcsInputError
        If there are none, or they are not evenly spaced.
    """
    if times is None:
        if dt is None or not (np.isfinite(dt) and dt > 0):
            msg = f"dt is {dt}; give the time between frames in s, above zero, or the times"
            raise XpcsInputError(msg)
        return np.asarray(dt * np.arange(n_t))
    grid = np.asarray(times, np.float64)
    if grid.shape != (n_t,):
        msg = f"times has shape {grid.shape} and c2 {n_t} frames; give one time, in s, per frame"
        raise XpcsInputError(msg)
    steps = np.diff(grid)
    if not (steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0)):
        msg = "times are not evenly spaced and increasing; the integrals over time need one step between all frames"
        raise XpcsInputError(msg)
    return grid


def check_names(given: Collection[str], parameters: Sequence[Parameter]) -> None:
    """Refuse fixed values of parameters that the model does not have.

    Raises
    ------
    ParameterError
        Naming them.
    """
    known = [p.name for p in parameters]
    wrong = [name for name in given if name not in known]
    if wrong:
        msg = (
            f"fixed names {', '.join(wrong)}; the physical parameters of the model are {', '.join(known)}. Contrast "
            "and offset are fixed by scaling='constant'"
        )
        raise ParameterError(msg)


def check_loss(loss: str, loss_scale: float) -> None:
    """Refuse a loss that there is not, or a scale that is none.

    Raises
    ------
    ParameterError
        Naming the losses.
    """
    if loss not in LOSSES or not (np.isfinite(loss_scale) and loss_scale > 0):
        msg = (
            f"no loss {loss!r} with scale {loss_scale!r}; losses are {', '.join(LOSSES)}, and the scale, in standard "
            "errors, is positive"
        )
        raise ParameterError(msg)


def errors_of(sigma: float | NDArray[Any] | None, c2: C2Rows) -> tuple[Floats, C2Rows | None]:
    """Return 1/σ² of each angle, shape (n_phi,), and the weights of single values, if they differ.

    Raises
    ------
    XpcsInputError
        If sigma is not above zero, or of another shape, or not symmetric.
    """
    ones = np.ones(c2.n_phi)
    if sigma is None:
        return ones, None
    values = np.asarray(sigma, np.float64)
    bad = ~(values > 0)
    if bad.any():
        where = tuple(int(k) for k in np.argwhere(bad)[0])
        msg = f"sigma{list(where) if where else ''} is {values[where]}; standard errors must be above zero"
        raise XpcsInputError(msg)
    if values.ndim == 0 or values.shape == (c2.n_phi,):
        return ones / values**2, None
    if values.shape != (c2.n_phi, c2.n_t, c2.n_t):
        msg = (
            f"sigma has shape {values.shape}; give one number, one per angle ({c2.n_phi},), or an array like c2, "
            f"({c2.n_phi}, {c2.n_t}, {c2.n_t})"
        )
        raise XpcsInputError(msg)
    if not np.allclose(values, values.transpose(0, 2, 1), rtol=1e-6):
        msg = "sigma is not symmetric in the two times; give both halves of c2 the same errors"
        raise XpcsInputError(msg)
    return ones, ArrayC2(1.0 / values**2)
