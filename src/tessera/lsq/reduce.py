"""Sums over chunks and ranks, as `tessera.lsq.objective.Sum` wants them: the one file here that knows the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from hpc.ranks import MpiRanks, Ranks, SerialRanks
from hpc.reduce import sum_chunks
from tessera.lsq.objective import Sum
from tessera.lsq.profile import phase

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpc.context import Context


def serial() -> Sum:
    """Return the sum of one process, in the same tree order as that of many."""
    return _over(SerialRanks())


def over(comm: MPI.Intracomm | None) -> Sum:
    """Return the sum over an MPI communicator; `serial` if there is none."""
    return serial() if comm is None else _over(MpiRanks(comm))


def of_context(context: Context) -> Sum:
    """Return the sum over the ranks of an engine's run."""
    return _over(context.ranks)


def _over(ranks: Ranks) -> Sum:
    def add(n: int, contributions: Callable[[range], Iterator[Mapping[str, NDArray[Any]]]]) -> dict[str, NDArray[Any]]:
        mine = range(ranks.rank * n // ranks.size, (ranks.rank + 1) * n // ranks.size)
        with phase("reduction"):
            return sum_chunks(ranks, n, mine, _timed(contributions(mine)))

    return add


def _timed(parts: Iterator[Mapping[str, NDArray[Any]]]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Count the waiting for chunks as its own phase: what is left is the reduction itself."""
    while True:
        with phase("chunks"):
            part = next(parts, None)
        if part is None:
            return
        yield part
