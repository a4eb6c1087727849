"""One step of the joint fit: where it stands, the linearised problem there, and the way to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.problem import Problem, Shared
from tessera.photometry.render import Stamp
from tessera.photometry.solve import Blocks, Eliminated, Normal, Run, assemble, eliminate, shared_step

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class State:
    """The parameters and what they look like.

    Attributes
    ----------
    flux, sky, shared
        Shapes (n, B), (B,) and (m,).
    stamps
        Pictures of the sources at ``shared``.
    size
        ``(B, h, w)`` of the patch.
    """

    flux: Floats
    sky: Floats
    shared: Floats
    stamps: list[Stamp]
    size: tuple[int, ...]

    @cached_property
    def image(self) -> Floats:
        """The sources without the sky, shape (B, h, w)."""
        image = np.zeros(self.size)
        for flux, stamp in zip(self.flux, self.stamps, strict=True):
            image[stamp.box] += flux.astype(np.float32)[:, None, None] * stamp.maps[:, 0]
        return image

    def residual(self, data: Floats) -> Floats:
        """Return what the sources and the sky leave of the data, shape (B, h, w)."""
        return np.asarray(data - self.image - self.sky[:, None, None])

    def moved(self, linear: Floats, shared: Floats | None = None) -> State:
        """Return the state after a step of fluxes and sky, shape (B, n + 1), and of the shared parameters."""
        return replace(
            self,
            flux=self.flux + linear[:, :-1].T,
            sky=self.sky + linear[:, -1],
            shared=self.shared if shared is None else self.shared + shared,
        )

    def with_sources_of(self, other: State, which: Bools, owner: NDArray[np.int64]) -> State:
        """Return this state with some sources, shape (n,), as they are in another."""
        if not which.any():
            return self
        pairs = zip(self.stamps, other.stamps, which, strict=True)
        return State(
            flux=np.where(which[:, None], other.flux, self.flux),
            sky=self.sky,
            shared=np.where(which[owner], other.shared, self.shared),
            stamps=[theirs if taken else mine for mine, theirs, taken in pairs],
            size=self.size,
        )


@dataclass(frozen=True)
class Look:
    """The problem around a state.

    Attributes
    ----------
    weights, residual
        Shape (B, h, w); the weight is 0 on pixels that are not used.
    normal, reduced
        The normal equations, whole and with the bands eliminated.
    free
        Shape (m,), False where a parameter rests on its bound and pulls outwards.
    """

    weights: Floats
    residual: Floats
    normal: Normal
    reduced: Eliminated
    free: Bools


def pixel_weights(problem: Problem, image: Floats) -> Floats:
    """Return 1 / variance with the Poisson noise of the drawn sources, 0 on pixels that are not used."""
    return np.asarray(1.0 / (problem.variance + np.maximum(image, 0.0) / problem.gain[:, None, None]))


def look(problem: Problem, blocks: Blocks, state: State, redrawn: Bools, run: Run) -> Look:
    """Linearise the problem at a state, of which some sources, shape (n,), are redrawn since the last look."""
    weights = pixel_weights(problem, state.image)
    residual = state.residual(problem.data)
    blocks.refresh(state.stamps, weights, redrawn, run)
    pull = weights * residual
    fitted = float(problem.fit_sky)
    normal = assemble(
        blocks,
        fitted * weights.sum(axis=(1, 2)),
        _gradients(state.stamps, pull, run),
        fitted * pull.sum(axis=(1, 2)),
        state.flux,
        _prior(problem.shared, state.shared),
    )
    reduced = eliminate(normal)
    return Look(weights, residual, normal, reduced, _free(problem.shared, state.shared, reduced.gradient))


def _gradients(stamps: Sequence[Stamp], pull: Floats, run: Run) -> list[Floats]:
    scale = np.abs(pull).max(axis=(1, 2))
    scale[scale == 0] = 1.0
    relative = (pull / scale[:, None, None]).astype(np.float32)

    def gradient(i: int) -> Floats:
        stamp = stamps[i]
        return np.asarray(np.einsum("bkyx,byx->bk", stamp.maps, relative[stamp.box]) * scale[:, None])

    return list(run(gradient, range(len(stamps))))


def _prior(layout: Shared, shared: Floats) -> tuple[Floats, Floats]:
    return layout.prior_curvature, layout.prior_curvature * (layout.prior_mean - shared)


def _free(layout: Shared, shared: Floats, gradient: Floats) -> Bools:
    outwards = ((shared <= layout.low) & (gradient < 0)) | ((shared >= layout.high) & (gradient > 0))
    return np.asarray(~(outwards | (layout.low == layout.high)))


def bounded_step(seen: Look, layout: Shared, shared: Floats, damping: Floats) -> Floats:
    """Return the step of the shared parameters, within its largest length and the bounds.

    Parameters
    ----------
    seen
        The problem around the current state.
    layout
        Bounds and largest steps.
    shared
        Shape (m,), the current values.
    damping
        Shape (m,), Levenberg-Marquardt factor on the diagonal.
    """
    curvature = np.maximum(np.diag(seen.reduced.schur), 0.0)
    step = shared_step(seen.reduced, damping * curvature + layout.floor, seen.free)
    step = np.clip(step, -layout.max_step, layout.max_step)
    return np.asarray(np.clip(shared + step, layout.low, layout.high) - shared)


def promised_gain(seen: Look, layout: Shared, step: Floats, damping: Floats, n: int) -> Floats:
    """Return each source's part, shape (n,), of the rise of ln P that a step promises.

    Half the Newton decrement, gradient times step, of its flux, position and shape. Damping shortens a step
    and its promise, not what is left to gain: it is taken out again.
    """
    linear = np.einsum("bij,bj->bi", seen.reduced.inverse, seen.normal.linear_gradient)
    gain = np.einsum("bi,bi->i", linear, seen.normal.linear_gradient)[:n]
    gain += np.bincount(layout.owner, weights=(1 + damping) * step * seen.reduced.gradient, minlength=n)
    return np.asarray(np.abs(gain) / 2)


def worth(members: Sequence[int], before: State, after: State, seen: Look, residual: Floats) -> tuple[float, float]:
    """Return what the move of some sources is worth, given that all others moved too.

    In the linearised problem the joint step is the minimum of chi²: taking back a part ``d`` of the change of the
    picture would raise chi² by ``sum w d²``, and neighbours cannot make a good move look bad.

    Parameters
    ----------
    members
        The sources.
    before, after
        The states.
    seen
        The problem around ``before``; its weights are used.
    residual
        Shape (B, h, w), of ``after``.

    Returns
    -------
    fall
        By how much chi² is lower than if these sources had stayed.
    expected
        The same if the problem were linear.
    """
    stamps = [(state.flux[i], sign, state.stamps[i]) for i in members for state, sign in ((after, 1), (before, -1))]
    top = min(stamp.rows.start for *_, stamp in stamps)
    left = min(stamp.cols.start for *_, stamp in stamps)
    bottom = max(stamp.rows.stop for *_, stamp in stamps)
    right = max(stamp.cols.stop for *_, stamp in stamps)
    change = np.zeros((len(residual), bottom - top, right - left))
    for flux, sign, stamp in stamps:
        rows = slice(stamp.rows.start - top, stamp.rows.stop - top)
        cols = slice(stamp.cols.start - left, stamp.cols.stop - left)
        change[:, rows, cols] += (sign * flux).astype(np.float32)[:, None, None] * stamp.maps[:, 0]
    box = slice(None), slice(top, bottom), slice(left, right)
    weighted = seen.weights[box] * change
    expected = float(np.sum(weighted * change))
    return expected + 2 * float(np.sum(weighted * residual[box])), expected


def prior_by_group(problem: Problem, shared: Floats, groups: int) -> Floats:
    """Return what the priors on each group's sources add to its chi², shape (groups,)."""
    layout = problem.shared
    cost = layout.prior_curvature * (shared - layout.prior_mean) ** 2
    return np.bincount(problem.group[layout.owner], weights=cost, minlength=groups).astype(np.float64)
