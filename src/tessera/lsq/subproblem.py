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

    An active-set method (Stark & Parker 1995, "Bounded-variable least squares"): from the present point straight
    towards the minimum in the free parameters; where a bound is in the way, go that far and hold the parameter there;
    let go of it once the model falls towards the inside. Every leg reduces the model, so the step does.

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
    slope = problem.a.T @ problem.b
    movable = low < high
    free = movable & ~(((low >= 0) & (slope > 0)) | ((high <= 0) & (slope < 0)))
    held = np.ones(x.size, bool)
    held[linear] = False
    step = np.zeros(x.size)
    mirrored: Vector | None = None
    for _ in range(3 * x.size + 1):
        target = _solve(problem, step, free, held, radius)
        fraction, hit = _room(step, target, low, high, free)
        if fraction >= 1.0:
            step = target
            slope = problem.a.T @ (problem.a @ step + problem.b)
            inward = movable & ~free & (((step <= low) & (slope < 0)) | ((step >= high) & (slope > 0)))
            if np.isfinite(radius) or not inward.any():
                break
            free[np.argmax(np.where(inward, np.abs(slope), -1.0))] = True
            continue
        mirrored = target if mirrored is None else mirrored
        step = np.clip(step + fraction * (target - step), low, high)
        step[hit] = np.where(target[hit] > step[hit], high[hit], low[hit])
        free = free & ~hit
    if reflective and mirrored is not None:
        other = (box.reflect(x + mirrored / scale) - x) * scale
        step = other if problem.change(other) > problem.change(step) else step
    return Step(step, float(np.linalg.norm(step[held])), problem.change(step))


def _room(
    step: Vector, target: Vector, low: Vector, high: Vector, free: NDArray[np.bool_]
) -> tuple[float, NDArray[np.bool_]]:
    """Return which fraction of the way to the target lies in the box, and whose bounds end it."""
    way = target - step
    limit = np.where(way > 0, high, low)
    ahead = free & (way != 0) & np.isfinite(limit)
    fractions = np.full(step.size, np.inf)
    fractions[ahead] = np.maximum((limit[ahead] - step[ahead]) / way[ahead], 0.0)
    least = float(fractions.min(initial=np.inf))
    return least, fractions <= least


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


def _solve(problem: Linear, step: Vector, free: NDArray[np.bool_], held: NDArray[np.bool_], radius: float) -> Vector:
    """Return the best step in the free parameters where the others stay as they are.

    Linear ones (not ``held``) are eliminated by an orthogonal projection: the trust region is one of the others.
    """
    inner, outer = np.flatnonzero(free & held), np.flatnonzero(free & ~held)
    target = np.where(free, 0.0, step)
    b = problem.b + problem.a @ target
    a_inner, b_inner = problem.a[:, inner], b
    if outer.size:
        basis = np.linalg.qr(problem.a[:, outer])[0]
        a_inner, b_inner = a_inner - basis @ (basis.T @ a_inner), b - basis @ (basis.T @ b)
    if inner.size:
        room = radius**2 - float(np.sum(target[held] ** 2)) if np.isfinite(radius) else np.inf
        target[inner] = _within(a_inner, b_inner, np.sqrt(max(room, 0.0)), problem.cutoff)
    if outer.size:
        rest = b + problem.a[:, inner] @ target[inner]
        target[outer] = -np.linalg.lstsq(problem.a[:, outer], rest, rcond=problem.cutoff)[0]
    return target


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
