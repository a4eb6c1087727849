"""The step of one iteration: minimise a quadratic model within a trust region and bounds.

All here is linear algebra on p × p matrices; the data are not touched. Parameters are scaled by the largest norms their
columns of the Jacobian have had (Moré 1978, "The Levenberg-Marquardt algorithm: implementation and theory", eq. 6.2),
so that nothing depends on the user's units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.quadratic import Quadratic, Vector

Matrix = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Box of the parameters, in the same units; infinite where there is none."""

    lower: Vector
    upper: Vector

    def clip(self, x: Vector) -> Vector:
        """Return the nearest point of the box."""
        return np.clip(x, self.lower, self.upper)

    def reflect(self, x: Vector) -> Vector:
        """Mirror what lies outside at the bound it passed; what still lies outside is clipped."""
        inside = np.where(x > self.upper, 2 * self.upper - x, np.where(x < self.lower, 2 * self.lower - x, x))
        return self.clip(inside)


@dataclass(frozen=True, slots=True)
class Linear:
    """``½ |a d + b|²`` over scaled steps d: the local model as a linear least-squares problem.

    Attributes
    ----------
    a, b
        Matrix (m, p) and vector (m,).
    cutoff
        Singular values below this fraction of the largest are rounding error.
    """

    a: Matrix
    b: Vector
    cutoff: float

    def change(self, step: Vector) -> float:
        """Return by how much a scaled step reduces the model."""
        moved = self.a @ step
        return -float(moved @ (self.b + 0.5 * moved))


def linearised(q: Quadratic, scale: Vector, regularization: float) -> Linear:
    """Return the quadratic model as a linear problem in scaled parameters.

    Parameters
    ----------
    q
        The local model.
    scale
        Scaled step = scale * step, shape (p,).
    regularization
        Eigenvalues of the scaled JᵀJ below this fraction of the largest count as zero. Where q has the triangular
        factor of J, singular values of J can be told from zero down to rounding error instead.
    """
    p = scale.size
    if q.root is not None:
        return Linear(q.root[:, :p] / scale, q.root[:, p], 8 * p * _EPS)
    values, vectors = np.linalg.eigh(q.hessian / np.outer(scale, scale))
    least = max(regularization, p * _EPS) * max(float(values[-1]), 0.0)
    roots = np.sqrt(np.where(values > least, values, 0.0))
    load = np.divide(vectors.T @ (q.gradient / scale), roots, out=np.zeros(p), where=roots > 0)
    return Linear(roots[:, None] * vectors.T, load, np.sqrt(max(regularization, p * _EPS)))


def column_scale(q: Quadratic, before: Vector | None = None) -> Vector:
    """Return the norms of the Jacobian's columns, never less than before; 1 for a column of zeros."""
    norms = np.sqrt(np.maximum(np.diagonal(q.hessian), 0.0))
    if before is not None:
        return np.where(norms > before, norms, before)
    return np.where(norms > 0, norms, 1.0)


@dataclass(frozen=True, slots=True)
class Step:
    """A scaled step, its length in the parameters a trust region holds, and the reduction the model predicts."""

    d: Vector
    length: float
    predicted: float


def bounded_step(
    problem: Linear, x: Vector, scale: Vector, box: Bounds, *, radius: float, linear: NDArray[np.intp], reflective: bool
) -> Step:
    """Minimise the model within the trust region and the box.

    Parameters of which the box is hit are fixed at their bound, and the rest is solved again; those that already lie
    at a bound and would leave the box never enter.

    Parameters
    ----------
    problem
        The model, in scaled steps.
    x, scale, box
        Parameters, scale and bounds, in the user's units.
    radius
        Length of the step in scaled parameters, at most; may be infinite.
    linear
        Indices of parameters that the model depends on linearly: the trust region does not hold them.
    reflective
        Whether the mirrored full step competes with the projected one (Branch, Coleman & Li 1999, section 4).
    """
    low, high = (box.lower - x) * scale, (box.upper - x) * scale
    downhill = -(problem.a.T @ problem.b)
    free = ~(((low >= 0) & (downhill < 0)) | ((high <= 0) & (downhill > 0)))
    step = np.zeros(x.size)
    first: Vector | None = None
    for _ in range(x.size + 1):
        part = _solve(problem, step, free, linear, radius)
        first = step + part if first is None else first
        hit = free & ((step + part < low) | (step + part > high))
        if not hit.any():
            step = step + part
            break
        step = np.where(hit, np.clip(step + part, low, high), step)
        free &= ~hit
    candidates = [step]
    if reflective and first is not None and not np.array_equal(first, step):
        candidates.append((box.reflect(x + first / scale) - x) * scale)
    predicted = [problem.change(c) for c in candidates]
    best = int(np.argmax(predicted))
    held = np.ones(x.size, bool)
    held[linear] = False
    return Step(candidates[best], float(np.linalg.norm(candidates[best][held])), predicted[best])


def degenerate(problem: Linear, free: NDArray[np.bool_] | None = None) -> list[int]:
    """Return the indices of parameters that the data do not determine, singly or in some combination."""
    index = np.flatnonzero(free) if free is not None else np.arange(problem.a.shape[1])
    if not index.size:
        return []
    _, s, vt = np.linalg.svd(problem.a[:, index])
    full = np.zeros(index.size)
    full[: s.size] = s
    null = vt[full <= problem.cutoff * max(float(full[0]), np.finfo(float).tiny)]
    return [int(i) for i in index[(np.abs(null) > 0.05).any(axis=0)]]


def _solve(problem: Linear, start: Vector, free: NDArray[np.bool_], linear: NDArray[np.intp], radius: float) -> Vector:
    """Return the step in the free parameters, from a start at which the others stay."""
    b = problem.b + problem.a @ start
    eliminated = np.array([i for i in linear if free[i]], np.intp)
    held = np.array([i for i in np.flatnonzero(free) if i not in set(eliminated.tolist())], np.intp)
    step = np.zeros(start.size)
    a_held, b_held = problem.a[:, held], b
    if eliminated.size:
        basis = np.linalg.qr(problem.a[:, eliminated])[0]
        a_held = a_held - basis @ (basis.T @ a_held)
        b_held = b - basis @ (basis.T @ b)
    if held.size:
        room = max(radius**2 - float(start[held] @ start[held]), 0.0) if np.isfinite(radius) else np.inf
        step[held] = _within(a_held, b_held, np.sqrt(room), problem.cutoff)
    if eliminated.size:
        rest = b + problem.a[:, held] @ step[held]
        step[eliminated] = -np.linalg.lstsq(problem.a[:, eliminated], rest, rcond=problem.cutoff)[0]
    return step


def _within(a: Matrix, b: Vector, radius: float, cutoff: float) -> Vector:
    """Minimise ``|a d + b|`` with ``|d| <= radius`` (within a tenth), by the singular values of a.

    The damping that gives the wanted length is found by Hebden's iteration (Moré 1978, section 5), safeguarded by
    a bracket.
    """
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    keep = s > cutoff * max(float(s[0]), np.finfo(float).tiny) if s.size else np.zeros(0, bool)
    s, vt, load = s[keep], vt[keep], u.T[keep] @ b
    if not s.size:
        return np.zeros(a.shape[1])
    damping, low, high = 0.0, 0.0, float(np.linalg.norm(s * load)) / radius if radius > 0 else np.inf
    if not np.isfinite(high):
        return np.zeros(a.shape[1])
    for _ in range(60):
        shape = s / (s**2 + damping) * load
        length = float(np.linalg.norm(shape))
        if length <= 1.1 * radius and (damping == 0 or length >= 0.9 * radius):
            break
        low, high = (damping, high) if length > radius else (low, damping)
        slope = float(np.sum(shape**2 / (s**2 + damping))) / length
        damping += (length - radius) / radius * length / slope
        if not low < damping < high:
            damping = max(1e-3 * high, np.sqrt(low * high))
    return np.asarray(-(vt.T @ (s / (s**2 + damping) * load)))
