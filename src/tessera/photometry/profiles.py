"""Galaxy profiles in Fourier space, and the parameters of their shapes.

A profile with elliptical contours is a round one seen through a linear map, so that its Fourier transform
is a function of one number per frequency, ``u = (2 pi)² k·C·k`` with C the map's square (pixel²,
half-light radius 1 for the round profile): a table of ``g(u)`` and ``g'(u)`` is all a renderer needs for the
picture and for its derivatives with respect to any parameter of C.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tessera.photometry.sources import DEV, EXP

Floats = NDArray[np.float64]
Real = NDArray[np.floating]

EXP_RADIUS: Final = 1.6783469900166605
"""Half-light radius of an exponential disk in scale lengths: the root of ``(1 + b) exp(-b) = 1/2``."""

_DEV_B: Final = 7.66924944
_DEV_SOFTENING: Final = 4e-4
_DEV_TAPER: Final = (7.0, 8.0)


def de_vaucouleurs(r: Floats) -> Floats:
    """Return the surface brightness of the de Vaucouleurs profile at radii in half-light radii, 1 at r = 0.

    Softened in the core (``r² + 0.0004``) and brought to zero between 7 and 8 half-light radii, as the SDSS
    and the Legacy Surveys draw it (Hogg & Lang 2013, PASP 125, 719, their "luv").
    """
    soft = np.exp(-_DEV_B * ((r**2 + _DEV_SOFTENING) ** 0.125 - _DEV_SOFTENING**0.125))
    start, end = _DEV_TAPER
    fade = np.clip((r - start) / (end - start), 0.0, 1.0)
    return np.asarray(soft * (1 - fade**2) ** 2)


@lru_cache(maxsize=1)
def de_vaucouleurs_mixture() -> tuple[Floats, Floats]:
    """Return the weights (sum 1) and variances of round Gaussians that add up to `de_vaucouleurs`.

    Non-negative least squares on logarithmically spaced widths (after Hogg & Lang 2013), of the light per
    logarithmic ring, which is what a wrong flux is made of. The cut at 8 radii comes out soft: 0.8 % of the
    light is beyond it.
    """
    r = np.geomspace(1e-3, 9.0, 400)
    sigma = np.geomspace(4e-3, 4.0, 28)
    target = r**2 * de_vaucouleurs(r)
    rings = r[:, None] ** 2 / (2 * np.pi * sigma**2) * np.exp(-0.5 * (r[:, None] / sigma) ** 2)
    weights, _ = nnls(rings, target / target.max())
    used = weights > 0
    return weights[used] / weights.sum(), sigma[used] ** 2


def exponential_transform(u: Real) -> tuple[Real, Real]:
    """Return ``g(u)`` and ``g'(u)`` of the infinite exponential disk: ``(1 + u / b²)^(-3/2)``.

    The two-dimensional Fourier transform of ``exp(-r / h) / (2 pi h²)`` with ``h = 1 / b`` (Freeman 1970).
    """
    s = u.dtype.type(1 / EXP_RADIUS**2)
    inverse = 1 / (1 + s * u)
    g = inverse * np.sqrt(inverse)
    return g, u.dtype.type(-1.5) * s * g * inverse


def de_vaucouleurs_transform(u: Real) -> tuple[Real, Real]:
    """Return ``g(u)`` and ``g'(u)`` of `de_vaucouleurs_mixture`: ``sum w exp(-u s² / 2)``."""
    g, slope = np.zeros_like(u), np.zeros_like(u)
    for weight, variance in zip(*de_vaucouleurs_mixture(), strict=True):
        half = u.dtype.type(variance / 2)
        term = u.dtype.type(weight) * np.exp(-half * u)
        g += term
        slope -= half * term
    return g, slope


def transform(kind: int, u: Real) -> tuple[Real, Real]:
    """Return ``g(u)`` and ``g'(u)`` of a galaxy of this `Kind`; u has any shape.

    Raises
    ------
    ValueError
        If the kind has no profile.
    """
    if kind == EXP:
        return exponential_transform(u)
    if kind == DEV:
        return de_vaucouleurs_transform(u)
    msg = f"source kind {kind} has no profile; valid: {EXP.value} (EXP), {DEV.value} (DEV)"
    raise ValueError(msg)


def shape_parameters(re: float, ab: float, theta: float) -> Floats:
    """Return ``(ln r, eta1, eta2)`` of an ellipse, the parameters that are fitted.

    r is the geometric mean of the half-light radii and eta the conformal shear ``ln(a/b) (cos 2t, sin 2t)``
    (Bernstein & Jarvis 2002, AJ 123, 583): unlike the major axis and any function of b/a alone, they
    are smooth where a galaxy is round and need no bounds to keep b/a in (0, 1].
    """
    stretch = -math.log(ab)
    angle = 2 * math.radians(theta)
    return np.array([math.log(re) - stretch / 2, stretch * math.cos(angle), stretch * math.sin(angle)])


def ellipse(shape: Floats) -> tuple[Floats, Floats]:
    """Return ``(re, ab, theta)`` of the parameters ``(ln r, eta1, eta2)``, and the Jacobian, shape (3, 3).

    At a round shape the angle is undefined: its derivatives are then very large.
    """
    log_r, e1, e2 = shape
    stretch = math.hypot(e1, e2)
    angle = math.atan2(e2, e1)
    c, s = math.cos(angle), math.sin(angle)
    re, ab = math.exp(log_r + stretch / 2), math.exp(-stretch)
    turn = math.degrees(0.5 / max(stretch, 1e-9))
    jacobian = np.array([[re, re * c / 2, re * s / 2], [0.0, -ab * c, -ab * s], [0.0, -turn * s, turn * c]])
    return np.array([re, ab, math.degrees(angle / 2)]), jacobian


def covariance(shape: Floats) -> tuple[Floats, Floats]:
    """Return ``(Cxx, Cxy, Cyy)`` of the parameters, pixel², and its derivatives, shape (3 parameters, 3).

    ``C = r² exp(eta1 [[1, 0], [0, -1]] + eta2 [[0, 1], [1, 0]])``.
    """
    log_r, e1, e2 = shape
    r2 = math.exp(2 * log_r)
    square = e1 * e1 + e2 * e2
    stretch = math.sqrt(square)
    # sinh(x) / x and (cosh(x) - sinh(x) / x) / x², by their series where the quotients lose digits.
    if stretch > 1e-2:
        s1 = math.sinh(stretch) / stretch
        s2 = (math.cosh(stretch) - s1) / square
    else:
        s1, s2 = 1 + square / 6, 1 / 3 + square / 30
    ch = math.cosh(stretch)
    c = r2 * np.array([ch + s1 * e1, s1 * e2, ch - s1 * e1])
    d1 = r2 * np.array([s1 * e1 + s2 * e1 * e1 + s1, s2 * e1 * e2, s1 * e1 - s2 * e1 * e1 - s1])
    d2 = r2 * np.array([s1 * e2 + s2 * e2 * e1, s2 * e2 * e2 + s1, s1 * e2 - s2 * e2 * e1])
    return c, np.stack([2 * c, d1, d2])
