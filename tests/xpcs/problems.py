"""Two-time correlations of a known truth, and the fit's cost written out pair by pair: nothing of the kernel's."""

from __future__ import annotations

import numpy as np

# As in homodyne's templates, but a gap of 20 µm and ten times the shear rate, which is the same phase.
Q, GAP, TOTAL = 0.0054, 2.0e5, 100.0
FLOW = np.array([1500.0, -0.40, 200.0, 3.0e-3, 0.20, 5.0e-4, 4.0])
FLOW_START = np.array([1000.0, -0.20, 100.0, 2.0e-3, 0.30, 0.0, 0.0])
PHI = np.linspace(-90.0, 81.0, 10)
SCALING = (0.30, 1.00)


def times_of(n_t):
    return np.linspace(0.0, TOTAL, n_t)


def noisy(physical, n_t, phi, *, sigma=0.02, seed=0, symmetric=True, contrast=SCALING[0], offset=SCALING[1], gap=GAP):
    """C2 of shape (n_phi, n_t, n_t), by the direct form; contrast and offset are numbers or one per angle."""
    from tessera.xpcs.physics import g1_squared

    rng = np.random.default_rng(seed)
    contrast, offset = np.broadcast_to(contrast, len(phi)), np.broadcast_to(offset, len(phi))
    out = np.empty((len(phi), n_t, n_t))
    for a, angle in enumerate(phi):
        clean = g1_squared(np.asarray(physical, float), times_of(n_t), q=Q, gap=gap, phi=float(angle))
        noise = sigma * rng.standard_normal((n_t, n_t))
        if symmetric:
            noise = np.triu(noise, 1) + np.triu(noise, 1).T
        out[a] = offset[a] + contrast[a] * clean + noise
    return out


def direct_model(physical, n_t, angle, lib=np):
    """homodyne's formulas for one angle and pairs i < j: g1²; with JAX's numpy, or with numpy on complex parameters."""
    t = times_of(n_t)
    dt = t[1] - t[0]
    safe = lib.asarray(np.maximum(t, dt / 2))
    i, j = np.triu_indices(n_t, 1)

    def between(prefactor, exponent, offset):
        rate = prefactor * safe**exponent + offset
        rate = lib.where(rate.real > 1e-10, rate, 1e-10)
        total = lib.concatenate([lib.zeros(1), lib.cumsum(0.5 * (rate[:-1] + rate[1:]))])
        return lib.sqrt((total[j] - total[i]) ** 2 + 1e-12)

    exponent = -0.5 * Q * Q * dt * between(*physical[:3])
    g1 = lib.exp(lib.where(exponent.real > -700, exponent, -700.0))
    if len(physical) > 3:
        x = 0.5 / np.pi * Q * GAP * dt * between(*physical[3:6]) * lib.cos((physical[6] - angle) * (np.pi / 180))
        small = abs(x) < 1e-4
        far = lib.where(small, 1.0, x)
        g1 = g1 * lib.where(small, 1 - x**2 / 6 + x**4 / 120, lib.sin(far) / far) ** 2
    return lib.where(g1.real > 1e-10, g1, 1e-10) ** 2


STEP = 1e-40
"""Of the imaginary part: f(p + ih) = f(p) + ih f'(p) to rounding (Squire & Trapp, SIAM Rev. 40, 110, 1998)."""


def direct_quadratic(c2, phi, physical, contrast, offset, basis, weight=None):
    """Cost, gradient and JᵀJ of half the weighted squares over pairs i < j, in physical parameters and coefficients.

    contrast = basis @ coefficients and likewise offset; the order is physical, contrast, offset.
    """
    n_t, n, m = c2.shape[1], len(physical), basis.shape[1]
    i, j = np.triu_indices(n_t, 1)
    parts = []
    for a, angle in enumerate(phi):
        y = 0.5 * (c2[a] + c2[a].T)[i, j]
        good = np.isfinite(y)
        root = np.sqrt(np.ones_like(y) if weight is None else weight[a][i, j])[good]
        shifted = [np.array(physical, complex) + 1j * STEP * (np.arange(n) == k) for k in range(n)]
        rows = [direct_model(p, n_t, angle)[good] for p in shifted]
        g = rows[0].real
        strength, level = basis[a] @ contrast, basis[a] @ offset
        columns = [strength * row.imag / STEP for row in rows]
        columns += [basis[a, k] * g for k in range(m)] + [np.full_like(g, basis[a, k]) for k in range(m)]
        parts.append((root * (level + strength * g - y[good]), root * np.array(columns)))
    cost = sum(0.5 * r @ r for r, _ in parts)
    return float(cost), sum(j @ r for r, j in parts), sum(j @ j.T for _, j in parts)
