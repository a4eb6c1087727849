"""The joint fit of all sources of a patch in all bands.

Gauss-Newton on positions and shapes shared by the bands, one flux per band and one sky constant per band, with
Levenberg-Marquardt damping for each group of touching sources. The fluxes are linear and always solved
exactly. Pixels are weighted by a variance from the *model* (sky plus the Poisson noise of what is drawn), frozen
within a step: a variance from the data weights down the pixels that scatter high and makes faint sources
several per cent too faint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from tessera.photometry.measure import Progress, measure
from tessera.photometry.problem import Problem, prepare
from tessera.photometry.psf import PsfField
from tessera.photometry.solve import Blocks, Run, linear_step
from tessera.photometry.sources import FitOptions, PatchFit, PatchPixels, Sources
from tessera.photometry.step import Look, State, bounded_step, look, prior_by_group, promised_gain, worth
from tessera.photometry.wings import far_light

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_DEFAULTS: Final = FitOptions()
_FIRST_DAMPING: Final = 1e-3
_LEAST_DAMPING: Final = 1e-6
_POOR: Final = 0.25
_FINE: Final = 0.75
_NO_MOVE: Final = 1e-12


def fit_patch(
    pixels: PatchPixels,
    sources: Sources,
    psfs: Sequence[PsfField],
    options: FitOptions = _DEFAULTS,
    threads: int = 1,
) -> PatchFit:
    """Fit all sources of a patch together.

    Parameters
    ----------
    pixels
        The cut-out, halo included.
    sources
        Its sources, those of the halo included: they are fitted like the others, so that their light is
        not taken for that of their neighbours.
    psfs
        One field a band.
    options
        How long and how freely to fit.
    threads
        Threads that draw sources; the result does not depend on it to the bit.

    Returns
    -------
    PatchFit
        Sources that cannot be measured are NaN and not converged; nothing in the pixels makes it raise.

    Raises
    ------
    ValueError
        If the number of bands differs between pixels, sources and PSFs.
    """
    with _single_threaded_blas(), _runner(threads) as run:
        problem = prepare(pixels, sources, psfs, options, run)
        blocks = Blocks(_typical_weights(problem))
        state = _first_state(problem, sources, blocks, run)
        far = far_light(problem, state, psfs, pixels.x0, pixels.y0)
        if far.any():
            problem = _without(problem, far)
            state = state.moved(_settle(problem, blocks, state, run))
        state, progress = _iterate(problem, options, blocks, state, run)
        # The last look gives all blocks the last weights, for the fluxes and for the errors.
        seen = look(problem, blocks, state, np.ones(len(state.flux), bool), run)
        state = state.moved(linear_step(seen.reduced, seen.normal, np.zeros_like(state.shared)))
        fit = measure(problem, sources, state, seen, progress)
        return replace(fit, model=fit.model + far.astype(np.float32))


def _typical_weights(problem: Problem) -> Floats:
    """Return a weight per band, shape (B,), of the order of those of its pixels."""
    with np.errstate(divide="ignore"):
        weights = (1 / problem.variance).max(axis=(1, 2), initial=0.0)
    return np.where(weights > 0, weights, 1.0)


def _first_state(problem: Problem, sources: Sources, blocks: Blocks, run: Run) -> State:
    """Solve for the fluxes at the first positions, from the guesses where there are some."""
    guess = np.where(problem.usable, sources.flux[problem.rows], 0.0)
    state = State(
        flux=np.where(np.isfinite(guess), guess, 0.0),
        sky=np.zeros(len(problem.data)),
        shared=problem.shared.start,
        stamps=problem.stamps,
        size=problem.data.shape,
    )
    return state.moved(_settle(problem, blocks, state, run))


def _settle(problem: Problem, blocks: Blocks, state: State, run: Run) -> Floats:
    """Return the change of fluxes and sky, shape (B, n + 1), to the best ones where the sources are."""
    seen = look(problem, blocks, state, np.ones(len(state.flux), bool), run)
    return linear_step(seen.reduced, seen.normal, np.zeros_like(state.shared))


def _without(problem: Problem, light: Floats) -> Problem:
    """Return the problem with light that is not fitted taken away; its Poisson noise stays."""
    good = np.isfinite(problem.variance)
    noise = light / problem.gain[:, None, None]
    return replace(problem, data=np.where(good, problem.data - light, 0.0), variance=problem.variance + noise)


def _iterate(problem: Problem, options: FitOptions, blocks: Blocks, state: State, run: Run) -> tuple[State, Progress]:
    """Step until every source is done or the steps are used up."""
    n, layout, group = len(state.flux), problem.shared, problem.group
    damping = np.full(group.max(initial=-1) + 1, _FIRST_DAMPING)
    redrawn, steps = np.ones(n, bool), np.zeros(n, np.int64)
    promise, settled = np.full(n, np.inf), np.zeros(n, bool)
    for step in range(options.n_opt_iters + 1):
        seen = look(problem, blocks, state, redrawn, run)
        damped = damping[group][layout.owner]
        move = bounded_step(seen, layout, state.shared, damped)
        promise = promised_gain(seen, layout, move, damped, n)
        settled = promise < options.dlnp_stop
        if settled.all() or step == options.n_opt_iters:
            break
        steps[~settled] = step + 1
        move[settled[layout.owner]] = 0.0
        moved = np.zeros(n, bool)
        moved[layout.owner[move != 0]] = True
        trial = _redraw(problem, state.moved(linear_step(seen.reduced, seen.normal, move), move), moved, run)
        success = _success(problem, state, trial, seen, np.unique(group[~settled]), run)
        # Written so that a step to NaN is refused too.
        refused = ~(success > 0)
        state = trial.with_sources_of(state, refused[group], layout.owner)
        redrawn = moved & ~refused[group]
        damping = np.maximum(
            damping * np.select([refused, success < _POOR, success > _FINE], [10.0, 4.0, 0.2], 1.0), _LEAST_DAMPING
        )
    return state, Progress(steps, promise, settled)


def _redraw(problem: Problem, state: State, which: Bools, run: Run) -> State:
    indices = np.flatnonzero(which).tolist()
    stamps = list(state.stamps)
    drawn = run(lambda i: problem.draw(i, state.shared, stamps[i]), indices)
    for i, stamp in zip(indices, drawn, strict=True):
        stamps[i] = stamp
    return replace(state, stamps=stamps)


def _success(problem: Problem, state: State, trial: State, seen: Look, groups: NDArray[np.int64], run: Run) -> Floats:
    """Return, for each group, the fall of chi² and priors over the expected one; 1 for those that stay."""
    residual = trial.residual(problem.data)
    count = int(problem.group.max()) + 1
    prior = prior_by_group(problem, state.shared, count) - prior_by_group(problem, trial.shared, count)

    def ratio(g: int) -> float:
        fall, expected = worth(np.flatnonzero(problem.group == g).tolist(), state, trial, seen, residual)
        return (fall + float(prior[g])) / max(expected, _NO_MOVE)

    success = np.ones(count)
    success[groups] = list(run(ratio, groups.tolist()))
    return success


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """Keep BLAS from splitting sums by its thread count, which would change their last bits."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def _runner(threads: int) -> Iterator[Run]:
    if threads <= 1:
        yield lambda function, indices: [function(i) for i in indices]
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map
