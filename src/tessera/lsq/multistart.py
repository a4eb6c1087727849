"""Several starts: drawn from a space-filling design, and thinned out by a tournament of Levenberg-Marquardt passes.

Each start is a fit of its own, so over many ranks the starts go to groups of ranks that each pass over all data. Sums
do not depend on the number of ranks that make them, hence neither does the tournament.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.lsq import levenberg
from tessera.lsq.errors import StartError
from tessera.lsq.levenberg import LMOptions, LMState
from tessera.lsq.objective import Objective, Sum
from tessera.lsq.options import HybridStreamingConfig, Sampler
from tessera.lsq.quadratic import Vector

if TYPE_CHECKING:
    from mpi4py import MPI

Advance: TypeAlias = Callable[[Mapping[int, LMState]], dict[int, LMState]]
"""Makes one pass for each of some entrants, by number."""

_PRIMES: Final = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


@dataclass(frozen=True, slots=True)
class Tournament:
    """The entrants that are still in, and how far they are.

    Attributes
    ----------
    entrants
        State of each start, by number; those that were eliminated keep their last one.
    alive
        Which are still in, shape (n,).
    round, turn
        Rounds finished, and passes made in this one.
    """

    entrants: tuple[LMState, ...]
    alive: NDArray[np.bool_]
    round: int = 0
    turn: int = 0

    @property
    def passes(self) -> int:
        """Passes made by all entrants."""
        return sum(e.passes for e in self.entrants)

    @property
    def costs(self) -> Vector:
        """Least cost of each entrant so far, infinite where the model is not finite, shape (n,)."""
        known = [e.at.cost if e.at is not None and e.at.finite() else math.inf for e in self.entrants]
        return np.array(known)


def design(sampler: Sampler, n: int, p: int, seed: int = 0) -> NDArray[np.float64]:
    """Return n points of the unit cube in p dimensions, shape (n, p), a function of the arguments alone.

    ``lhs`` is a Latin hypercube (McKay et al. 1979); ``sobol`` and ``halton`` are the sequences of these names, shifted
    modulo 1 (Cranley & Patterson 1976).

    Raises
    ------
    StartError
        If ``halton`` is asked for in more than 20 dimensions, where it no longer fills the space.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    if sampler == "lhs":
        strata = np.stack([rng.permutation(n) for _ in range(p)], axis=1)
        return np.asarray((strata + rng.random((n, p))) / n)
    if sampler == "sobol":
        from scipy.stats import qmc

        points = qmc.Sobol(p, scramble=False).random_base2(max(n - 1, 1).bit_length())[:n]
    elif p > len(_PRIMES):
        msg = f"halton fills no space of {p} dimensions; set multistart_sampler to lhs or sobol"
        raise StartError(msg)
    else:
        points = np.stack([_radical_inverse(n, prime) for prime in _PRIMES[:p]], axis=1)
    return np.asarray((points + rng.random(p)) % 1.0)


def starts(
    x0: Vector, lower: Vector, upper: Vector, config: HybridStreamingConfig, seed: int = 0
) -> NDArray[np.float64]:
    """Return the starts, shape (n_starts, p); the first is x0 itself.

    Raises
    ------
    StartError
        If starts over the whole box are wanted and it is not finite.
    """
    cube = design(config.multistart_sampler, config.n_starts, x0.size, seed)
    boxed = np.isfinite(lower) & np.isfinite(upper)
    width = np.where(boxed, np.where(boxed, upper, 0.0) - np.where(boxed, lower, 0.0), 0.0)
    if config.center_on_p0:
        reach = config.scale_factor * np.where(boxed, width / 2, np.abs(x0) + 0.1)
        low, high = np.maximum(x0 - reach, lower), np.minimum(x0 + reach, upper)
    elif boxed.all():
        low, high = lower, upper
    else:
        msg = "center_on_p0=false draws starts from the whole box; give every parameter finite bounds"
        raise StartError(msg)
    points = low + cube * (high - low)
    points[0] = x0
    return np.asarray(points)


def begin(points: NDArray[np.float64], lower: Vector, upper: Vector) -> Tournament:
    """Return the tournament before its first pass."""
    entrants = tuple(levenberg.start(x, lower, upper) for x in points)
    return Tournament(entrants, np.ones(len(entrants), bool))


def done(tournament: Tournament, config: HybridStreamingConfig) -> bool:
    """Say whether all rounds are over."""
    return tournament.round >= max(config.elimination_rounds, 1)


def step(tournament: Tournament, advance: Advance, config: HybridStreamingConfig) -> Tournament:
    """Make one pass for each entrant that is still in; at the end of a round the worst go."""
    running = {i: e for i, e in enumerate(tournament.entrants) if tournament.alive[i] and not levenberg.done(e)}
    moved = advance(running) if running else {}
    entrants = tuple(moved.get(i, e) for i, e in enumerate(tournament.entrants))
    now = dataclasses.replace(tournament, entrants=entrants, turn=tournament.turn + 1)
    over = all(levenberg.done(e) for i, e in enumerate(entrants) if tournament.alive[i])
    if now.turn < config.batches_per_round and not over:
        return now
    return dataclasses.replace(now, alive=_survivors(now, config), round=now.round + 1, turn=0)


def winner(tournament: Tournament) -> Vector:
    """Return the parameters of least cost, shape (p,); of equal ones those of the first start."""
    return tournament.entrants[int(np.argmin(tournament.costs))].x


def in_turn(objective: Objective, options: LMOptions) -> Advance:
    """Return how all ranks together make the passes, one entrant after the other."""

    def advance(entrants: Mapping[int, LMState]) -> dict[int, LMState]:
        return {i: levenberg.step(e, objective.evaluate, options) for i, e in entrants.items()}

    return advance


def in_groups(comm: MPI.Intracomm, build: Callable[[Sum], Objective], options: LMOptions) -> Advance:
    """Return how the ranks make the passes in as many groups as there are entrants, or ranks. Collective.

    Parameters
    ----------
    comm
        All ranks.
    build
        Makes an objective for a group, given the sum over its ranks.
    options
        Of the passes.
    """
    from mpi4py import MPI

    from tessera.lsq.reduce import over

    made: dict[int, Advance] = {}

    def advance(entrants: Mapping[int, LMState]) -> dict[int, LMState]:
        groups = min(comm.size, len(entrants))
        mine = comm.rank * groups // comm.size
        if groups not in made:
            group = MPI.Intracomm(comm.Split(mine, comm.rank))
            made[groups] = in_turn(build(over(group)), options)
        share = {i: e for k, (i, e) in enumerate(entrants.items()) if k % groups == mine}
        moved = made[groups](share)
        everyone = comm.allgather({i: levenberg.to_arrays(e) for i, e in moved.items()})
        return {i: levenberg.from_arrays(arrays) for part in everyone for i, arrays in part.items()}

    return advance


def choose(
    points: NDArray[np.float64], lower: Vector, upper: Vector, advance: Advance, config: HybridStreamingConfig
) -> Vector:
    """Hold the whole tournament and return the parameters to go on from, shape (p,). Collective where advance is."""
    tournament = begin(points, lower, upper)
    while not done(tournament, config):
        tournament = step(tournament, advance, config)
    return winner(tournament)


def to_arrays(tournament: Tournament) -> dict[str, NDArray[Any]]:
    """Return the tournament as named arrays; `from_arrays` gives it back bit by bit."""
    arrays = {f"{i}.{k}": v for i, e in enumerate(tournament.entrants) for k, v in levenberg.to_arrays(e).items()}
    arrays["alive"] = tournament.alive
    arrays["clock"] = np.array([tournament.round, tournament.turn])
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Tournament:
    """Return the tournament that `to_arrays` was given."""
    alive = np.array(arrays["alive"])
    parts: list[dict[str, NDArray[Any]]] = [{} for _ in alive]
    for name, value in arrays.items():
        number, dot, rest = name.partition(".")
        if dot:
            parts[int(number)][rest] = value
    turn = [int(v) for v in arrays["clock"]]
    return Tournament(tuple(levenberg.from_arrays(p) for p in parts), alive, *turn)


def _survivors(tournament: Tournament, config: HybridStreamingConfig) -> NDArray[np.bool_]:
    """Return who is in the next round: the better share, one at least; of equal ones the first."""
    costs = np.where(tournament.alive, tournament.costs, np.inf)
    count = int(tournament.alive.sum())
    keep = max(1, math.ceil(count * (1 - config.elimination_fraction)))
    alive = np.zeros_like(tournament.alive)
    ranking = [i for i in np.argsort(costs, kind="stable") if tournament.alive[i]]
    alive[ranking[:keep]] = True
    return alive


def _radical_inverse(n: int, base: int) -> NDArray[np.float64]:
    """Return the first n numbers of the van der Corput sequence."""
    index, result, digit = np.arange(n), np.zeros(n), 1.0 / base
    while index.any():
        result += digit * (index % base)
        index, digit = index // base, digit / base
    return result
