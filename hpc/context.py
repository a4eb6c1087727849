"""What the engine gives a stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hpc.job import Arrays, Results
from hpc.ranks import SerialRanks
from hpc.reduce import sum_chunks
from hpc.rng import generator
from hpc.timing import Timings

if TYPE_CHECKING:
    from hpc.ranks import Ranks


def _no_results(stage: str) -> Results:
    msg = f"no results of stage {stage!r} in this context"
    raise KeyError(msg)


@dataclass(frozen=True)
class Context:
    """The engine's side of a stage: ranks, threads, random numbers, earlier results, node-shared arrays.

    ``Context()`` is a complete serial one, for notebooks and unit tests.

    Attributes
    ----------
    ranks
        The communicator: ``rank``, ``size`` and the collectives.
    threads
        Threads this process may use; numeric libraries are already limited to it.
    device
        ``cpu`` or ``cuda:N`` (N is the rank's index on its node modulo the GPUs there).
    seed
        The job's seed.
    results_dir
        ``RUN/results``.
    log
        Logger of this rank (``RUN/logs/rank-NNNNN.log``).
    """

    ranks: Ranks = field(default_factory=SerialRanks)
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    results_dir: Path = Path("results")
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("tessera"))
    timings: Timings = field(default_factory=Timings)
    results_of: Callable[[str], Results] = _no_results
    stopping: Callable[[], bool] = field(default=lambda: False)

    @property
    def rank(self) -> int:
        """The number of this process, 0 … size-1."""
        return self.ranks.rank

    @property
    def size(self) -> int:
        """How many ranks run the job."""
        return self.ranks.size

    def rng(self, key: str) -> np.random.Generator:
        """Return the random stream of a unit: a function of the job's seed and the key alone."""
        return generator(self.seed, key)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Add the wall time of a ``with`` block to the run's timing table under ``name``."""
        return self.timings.timed(name)

    def results(self, stage: str) -> Results:
        """Return the results of an earlier map of this job, lazily, on any rank."""
        return self.results_of(stage)

    def shared(
        self, shape: Sequence[int], dtype: DTypeLike, fill: Callable[[NDArray[Any], int, int], None]
    ) -> NDArray[Any]:
        """Return a read-only array held once per node; its ranks fill it together. Collective.

        Parameters
        ----------
        shape, dtype
            Of the array.
        fill
            ``fill(array, part, parts)`` is called on each of the ``parts`` ranks of the node with its
            number ``part`` and writes that rank's share.

        Returns
        -------
        numpy.ndarray
            The filled array, the same memory on all ranks of a node.
        """
        return self.ranks.shared(shape, dtype, fill)

    def my_chunks(self, n: int) -> range:
        """Return which of ``n`` chunks this rank holds: a contiguous, even share."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def sum_chunks(self, n: int, contributions: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        """Add the contributions of all ``n`` chunks in an order that does not depend on the ranks. Collective.

        Parameters
        ----------
        n
            Number of chunks over all ranks.
        contributions
            One mapping of arrays for each chunk of ``my_chunks(n)``, in that order.

        Returns
        -------
        dict
            The sums, bit-identical on every rank and for every number of ranks.
        """
        return sum_chunks(self.ranks, n, self.my_chunks(n), contributions)
