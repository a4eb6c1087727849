"""Contrast and offset per angle: linear parameters, set to their optimum wherever the physical ones are.

Variable projection (Golub & Pereyra, SIAM J. Numer. Anal. 10, 413, 1973): the cost is quadratic in contrasts and
offsets, so one pass at given physical parameters yields their optimum and the cost there. The modes are homodyne's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np

from tessera.xpcs.errors import ParameterError
from tessera.xpcs.physics import CONTRAST, OFFSET, Floats

Mode: TypeAlias = Literal["shared", "constant", "auto", "individual", "fourier"]

FOURIER_ORDER: Final = 2
FEW_ANGLES: Final = 3
"""``auto`` fits each angle's own contrast and offset below this number of angles, one of each from there on."""


@dataclass(frozen=True)
class Scaling:
    """Contrast and offset of each angle as a linear function of a few coefficients.

    Attributes
    ----------
    mode
        The mode, ``auto`` resolved.
    basis
        contrast = fixed[:, 0] + basis @ (first half of the coefficients), offset = fixed[:, 1] + basis @ (second half);
        shape (n_phi, m).
    fixed
        Shape (n_phi, 2).
    names
        Of the 2m coefficients.
    lower, upper
        Bounds of the coefficients, shape (2m,).
    """

    mode: Mode
    basis: Floats
    fixed: Floats
    names: tuple[str, ...]
    lower: Floats
    upper: Floats

    def at(self, coefficients: Floats) -> Floats:
        """Return contrast and offset of each angle, shape (n_phi, 2)."""
        m = self.basis.shape[1]
        return np.asarray(self.fixed + self.basis @ coefficients.reshape(2, m).T)

    def optimum(self, normal: Floats, right: Floats) -> Floats:
        """Return the coefficients of least cost within the bounds.

        Parameters
        ----------
        normal
            Σw [[g², g], [g, 1]] of each angle, shape (n_phi, 2, 2).
        right
            Σw y [g, 1] of each angle, shape (n_phi, 2).

        Returns
        -------
        numpy.ndarray
            Shape (2m,).
        """
        m = self.basis.shape[1]
        right = right - np.einsum("apq,aq->ap", normal, self.fixed)
        if self.mode == "individual":
            each = [_boxed(normal[a], right[a], self.lower[a::m], self.upper[a::m]) for a in range(m)]
            return np.asarray(np.array(each).T.ravel())
        if self.mode == "fourier":
            whole = np.einsum("am,apq,an->pmqn", self.basis, normal, self.basis).reshape(2 * m, 2 * m)
            target = np.einsum("am,ap->pm", self.basis, right).ravel()
            return np.asarray(np.linalg.lstsq(whole, target, rcond=1e-14)[0])
        return _boxed(normal.sum(0), right.sum(0), self.lower, self.upper) if m else np.zeros(0)


def make(mode: str, phi: Floats, fixed: Floats | None) -> Scaling:
    """Return the scaling of a mode.

    Parameters
    ----------
    mode
        ``shared``: one contrast and one offset; ``individual``: one of each per angle; ``fourier``: a Fourier series of
        order two in phi; ``constant``: the values in ``fixed``, not fitted; ``auto``: shared, or individual for
        fewer than three angles.
    phi
        deg, shape (n_phi,).
    fixed
        Contrast and offset of each angle for ``constant``, shape (n_phi, 2).

    Raises
    ------
    ParameterError
        For another mode, or too few angles for a series.
    """
    n = phi.size
    if mode not in get_args(Mode):
        msg = f"there is no scaling {mode!r}; choose one of {', '.join(get_args(Mode))}"
        raise ParameterError(msg)
    if mode == "auto":
        mode = "individual" if n < FEW_ANGLES else "shared"
    none = np.zeros((n, 2))
    if mode == "constant":
        empty = np.zeros(0)
        return Scaling("constant", np.zeros((n, 0)), none if fixed is None else fixed, (), empty, empty)
    if mode == "individual":
        return _bounded("individual", np.eye(n), none, tuple(f"_{a}" for a in range(n)))
    if mode == "shared":
        return _bounded("shared", np.ones((n, 1)), none, ("",))
    if n < 2 * FOURIER_ORDER + 1:
        msg = (
            f"scaling 'fourier' has {2 * FOURIER_ORDER + 1} coefficients for contrast and as many for offset, and "
            f"there are {n} angles; use 'individual'"
        )
        raise ParameterError(msg)
    angle = np.deg2rad(phi)
    waves = [wave(k * angle) for k in range(1, FOURIER_ORDER + 1) for wave in (np.cos, np.sin)]
    ends = ("_c0", *(f"_{letter}{k}" for k in range(1, FOURIER_ORDER + 1) for letter in "cs"))
    basis = np.stack([np.ones(n), *waves], axis=1)
    names = tuple(f"{p.name}{e}" for p in (CONTRAST, OFFSET) for e in ends)
    free = np.full(len(names), np.inf)
    return Scaling("fourier", basis, none, names, -free, free)


def _bounded(mode: Mode, basis: Floats, fixed: Floats, ends: tuple[str, ...]) -> Scaling:
    names = tuple(f"{p.name}{e}" for p in (CONTRAST, OFFSET) for e in ends)
    lower = np.repeat([CONTRAST.lower, OFFSET.lower], len(ends))
    upper = np.repeat([CONTRAST.upper, OFFSET.upper], len(ends))
    return Scaling(mode, basis, fixed, names, lower, upper)


def _boxed(normal: Floats, right: Floats, lower: Floats, upper: Floats) -> Floats:
    """Return the least-squares contrast and offset of one normal matrix within a box."""
    if not np.isfinite(normal).all():
        return np.asarray(np.clip(np.zeros(2), lower, upper))
    free = np.linalg.lstsq(normal, right, rcond=1e-14)[0]
    if ((free >= lower) & (free <= upper)).all():
        return np.asarray(free)
    candidates = []
    for k in (0, 1):
        other = 1 - k
        for bound in (lower[k], upper[k]):
            point = np.empty(2)
            point[k] = bound
            best = (right[other] - normal[other, k] * bound) / normal[other, other] if normal[other, other] > 0 else 0.0
            point[other] = np.clip(best, lower[other], upper[other])
            candidates.append(point)
    return np.asarray(min(candidates, key=lambda v: float(0.5 * v @ normal @ v - right @ v)))
