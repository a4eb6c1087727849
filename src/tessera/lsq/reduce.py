"""Sums over chunks and ranks, as `tessera.lsq.objective.Sum` wants them: the one file here that knows the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from hpc.ranks import MpiRanks, Ranks, SerialRanks
from hpc.reduce import sum_chunks
from tessera.lsq.errors import DataError, FitInputError
from tessera.lsq.objective import Sum
from tessera.lsq.profile import phase

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpc.context import Context

T = TypeVar("T")


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
            if ranks.size == 1:
                return sum_chunks(ranks, n, mine, _timed(contributions(mine)))
            agreed: Any = _Agreed(ranks)  # as much of a communicator as a sum needs
            try:
                return sum_chunks(agreed, n, mine, _timed(contributions(mine)))
            except (FitInputError, OSError):
                if not agreed.asked:
                    agreed.all_well(1)
                raise

    return add


class _Agreed:
    """A communicator whose ranks ask each other how it went before they wait for what the others have.

    A chunk that one rank cannot read or use would leave the others waiting for its sums for ever.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.rank, self.size = ranks, ranks.rank, ranks.size
        self.asked = False

    def all_well(self, failed: int) -> bool:
        """Say whether no rank failed. Collective."""
        self.asked = True
        self.ranks.barrier()  # waits without spinning; what follows is then quick
        return self.ranks.allmax(failed) == 0

    def fold(self, value: T, join: Callable[[T, T], T]) -> T | None:
        """Join what all ranks have, if all have it."""
        if not self.all_well(0):
            msg = "another rank could not use its data; its own message says what is wrong"
            raise DataError(msg)
        return self.ranks.fold(value, join)

    def bcast_arrays(self, arrays: dict[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """Return rank 0's arrays."""
        return self.ranks.bcast_arrays(arrays)


def _timed(parts: Iterator[Mapping[str, NDArray[Any]]]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Count the waiting for chunks as its own phase: what is left is the reduction itself."""
    while True:
        with phase("chunks"):
            part = next(parts, None)
        if part is None:
            return
        yield part
