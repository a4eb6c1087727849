"""What the optimizer minimises: the one contract between it, the user's models, XPCS, and the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeAlias

from numpy.typing import NDArray

from tessera.lsq.quadratic import Quadratic, Vector

Order: TypeAlias = Literal[0, 1, 2]
"""How much of a `Quadratic` is needed: 0 the cost, 1 also the gradient, 2 also the Gauss-Newton matrix."""

Sum: TypeAlias = Callable[[int, Callable[[range], Iterator[Mapping[str, NDArray[Any]]]]], dict[str, NDArray[Any]]]
"""``sum(n, contributions)`` adds up the contributions of chunks 0 … n-1 over all ranks, in an order that does not
depend on the ranks: it calls ``contributions(mine)`` once, on each rank, with the contiguous chunks that rank holds,
and consumes one mapping of arrays per chunk as it is made, so that chunks are read and computed a few at a time.
`tessera.lsq.reduce` has the serial one, the one over an MPI communicator and the one of an engine's context."""


class Objective(Protocol):
    """A sum over all data, on all ranks. Collective: every rank asks the same at the same time."""

    @property
    def names(self) -> tuple[str, ...]:
        """One name per parameter."""
        ...

    def evaluate(self, x: Vector, *, order: Order = 2, single: bool = False, scores: bool = False) -> Quadratic:
        """Pass over the data once.

        Parameters
        ----------
        x
            Parameters in the user's units, shape (p,).
        order
            What is needed of the result; less may be cheaper.
        single
            Whether float32 arithmetic will do (warm-up); sums are float64 all the same.
        scores
            Whether the middle of the sandwich covariance is wanted too.

        Returns
        -------
        Quadratic
            The same bits on every rank and for every number of ranks.
        """
        ...
