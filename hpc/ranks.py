"""The communicator: one process without MPI, or the ranks of an MPI world, behind the same few calls.

Waiting is polite everywhere: MPI's own blocking calls spin on the CPU, which a rank that shares its cores
with others cannot afford while it waits for a straggler.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

from hpc import leftovers
from hpc.errors import LaunchError

if TYPE_CHECKING:  # the ranks meet before numpy may be loaded, see hpc/kernels.py
    from mpi4py import MPI
    from numpy.typing import DTypeLike, NDArray

Fill: TypeAlias = "Callable[[NDArray[Any], int, int], None]"
T = TypeVar("T")

_LAUNCHER_SIGNS: Final = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
"""Variables by which mpiexec or srun tell a process that it is one of several ranks."""

_FOLD: Final = 74

_FAREWELL: Final = 15
"""Seconds that MPI_Finalize may take; by then all results are safe."""


class Ranks(Protocol):
    """What the engine asks of a communicator."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def barrier(self) -> None:
        """Wait, without burning CPU, until every rank has come here."""

    def bcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, in rank order, on rank 0; None elsewhere."""

    def fold(self, value: T, join: Callable[[T, T], T]) -> T | None:
        """Join the values of all ranks in pairs along a tree, lower ranks left; rank 0 gets the result, others None."""

    def neighbours(self, value: T) -> dict[int, T]:
        """Return what the ranks of this node give, by rank; this one among them."""

    def allmax(self, value: int) -> int:
        """Return the largest of all ranks' values on every rank."""

    def bcast_arrays(self, arrays: dict[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """Return rank 0's named arrays on every rank, without pickling their content."""

    def shared(self, shape: Sequence[int], dtype: DTypeLike, fill: Fill) -> NDArray[Any]:
        """Return a read-only array held once per node, filled by its ranks together."""

    def leave(self) -> None:
        """End MPI after the work is done; if that does not succeed soon, die of SIGALRM. Main thread only."""

    def abort(self, code: int) -> NoReturn:
        """End all ranks at once; never waits for anybody."""


class SerialRanks:
    """One process; mpi4py is not imported."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def barrier(self) -> None:
        """Return at once."""

    def bcast(self, value: Any) -> Any:
        """Return ``value``."""
        return value

    def gather(self, value: Any) -> list[Any] | None:
        """Return ``[value]``."""
        return [value]

    def fold(self, value: T, join: Callable[[T, T], T]) -> T | None:
        """Return ``value``."""
        del join
        return value

    def neighbours(self, value: T) -> dict[int, T]:
        """Return ``value`` of rank 0."""
        return {0: value}

    def allmax(self, value: int) -> int:
        """Return ``value``."""
        return value

    def bcast_arrays(self, arrays: dict[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """Return ``arrays``."""
        return arrays or {}

    def shared(self, shape: Sequence[int], dtype: DTypeLike, fill: Fill) -> NDArray[Any]:
        """Return an ordinary array, filled in one part."""
        import numpy as np

        array = np.zeros(tuple(shape), dtype)
        fill(array, 0, 1)
        array.flags.writeable = False
        return array

    def leave(self) -> None:
        """Do nothing."""

    def abort(self, code: int) -> NoReturn:
        """Leave without cleaning up."""
        os._exit(code)


class MpiRanks:
    """The ranks of an MPI communicator.

    Parameters
    ----------
    comm
        Duplicated at once: the engine's messages never meet those of a workload.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            msg = (
                "this MPI library does not give THREAD_MULTIPLE, which the engine needs for its heartbeat; "
                "on Cray set MPICH_MAX_THREAD_SAFETY=multiple, with Open MPI use a build with thread support, "
                "or install the bundled MPI with: pip install mpich"
            )
            raise LaunchError(msg)
        self.comm = comm.Dup()
        self.rank = comm.rank
        self.size = comm.size
        self._node = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
        self.local_rank = self._node.rank
        self.local_size = self._node.size
        if self.local_rank == 0:  # all ranks of the node have met in Split_type: MPI has started on each
            leftovers.unname()
        self._windows: list[MPI.Win] = []

    def barrier(self) -> None:
        """Wait with a growing sleep, 5 ms at most."""
        _wait(self.comm.Ibarrier())

    def bcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        self.barrier()
        return self.comm.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks on rank 0."""
        self.barrier()
        return self.comm.gather(value, root=0)

    def fold(self, value: T, join: Callable[[T, T], T]) -> T | None:
        """Join along a binomial tree: as many rounds as the number of ranks has binary digits."""
        self.barrier()
        step = 1
        while step < self.size:
            if self.rank & step:
                self.comm.send(value, dest=self.rank - step, tag=_FOLD)
                return None
            if self.rank + step < self.size:
                value = join(value, self.comm.recv(source=self.rank + step, tag=_FOLD))
            step *= 2
        return value

    def neighbours(self, value: T) -> dict[int, T]:
        """Return the values of this node's ranks by their number among all."""
        self.barrier()
        return dict(self._node.allgather((self.rank, value)))

    def allmax(self, value: int) -> int:
        """Return the largest value; the ranks are in step here, so MPI's fast spinning call is right."""
        from mpi4py import MPI

        return int(self.comm.allreduce(value, op=MPI.MAX))

    def bcast_arrays(self, arrays: dict[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """Broadcast names, types and shapes first, then each array's bytes in pieces below MPI's 2 GiB limit."""
        import numpy as np

        heads = [(k, v.dtype.str, v.shape) for k, v in arrays.items()] if arrays is not None else None
        result = {}
        for name, dtype, shape in self.bcast(heads):
            if self.rank == 0 and arrays is not None:
                array = np.ascontiguousarray(arrays[name]).reshape(shape)
            else:
                array = np.empty(shape, dtype)
            raw = array.reshape(-1).view(np.uint8)
            for start in range(0, raw.size, 1 << 30):
                self.comm.Bcast(raw[start : start + (1 << 30)], root=0)
            result[name] = array
        return result

    def shared(self, shape: Sequence[int], dtype: DTypeLike, fill: Fill) -> NDArray[Any]:
        """Allocate an MPI shared-memory window on each node and let its ranks fill it."""
        import numpy as np
        from mpi4py import MPI

        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        complaint = _no_room(nbytes) if self.local_rank == 0 else None
        if complaint := self._node.bcast(complaint, root=0):
            raise LaunchError(complaint)
        window = MPI.Win.Allocate_shared(nbytes if self.local_rank == 0 else 0, dtype.itemsize, comm=self._node)
        self._windows.append(window)
        memory, _ = window.Shared_query(0)
        raw: NDArray[Any] = np.asarray(memory)  # the window as bytes
        array: NDArray[Any] = raw[:nbytes].view(dtype).reshape(tuple(shape))
        fill(array, self.local_rank, self.local_size)
        _wait(self._node.Ibarrier())
        array.flags.writeable = False
        return array

    def leave(self) -> None:
        """Call MPI_Finalize, which waits for ever if the slurmstepd of another node was killed."""
        from mpi4py import MPI

        # No thread could do it: MPI_Finalize holds the interpreter lock.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_FAREWELL)
        MPI.Finalize()
        signal.alarm(0)

    def abort(self, code: int) -> NoReturn:
        """Call MPI_Abort, which ends every rank without waiting for writer threads or peers."""
        signal.alarm(_FAREWELL)  # it may wait for a launcher on the other side of a network that is cut
        self.comm.Abort(code)
        os._exit(code)


def _wait(request: MPI.Request) -> None:
    """Wait without spinning. It oversleeps by a twentieth of what it waited: the others wait for it then."""
    start = time.monotonic()
    while not request.Test():
        time.sleep(min(max(2e-5, 0.05 * (time.monotonic() - start)), 5e-3))


def _no_room(nbytes: int) -> str | None:
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108 - where MPI's shared windows live
        free = room.f_bavail * room.f_frsize
    except OSError:
        return None
    if nbytes < free:
        return None
    return (
        f"a node-shared array needs {nbytes / 2**20:.0f} MiB but /dev/shm has {free / 2**20:.0f} MiB free; "
        "enlarge it (containers: --shm-size), or use nodes with more memory"
    )


def launched_with_mpi() -> bool:
    """Say whether an MPI launcher started this process, without importing MPI."""
    return any(name in os.environ for name in _LAUNCHER_SIGNS)


def _expected_size() -> int:
    """Return how many ranks were started, from whoever started them: our launcher, mpiexec, or srun."""
    names = ["TESSERA_RANKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"]
    if "SLURM_PROCID" in os.environ:  # without it SLURM_NTASKS is only what the allocation was asked for
        names.append("SLURM_NTASKS")
    return next((int(os.environ[n]) for n in names if n in os.environ), 1)


def world() -> Ranks:
    """Return the ranks this process belongs to, after checking that they are as many as the scheduler started.

    Raises
    ------
    hpc.errors.LaunchError
        If SLURM started several tasks that do not see each other (the wrong ``srun --mpi``), or if MPI was
        started but cannot be imported.
    """
    if launched_with_mpi():
        leftovers.clear()
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            msg = (
                f"this process was started as an MPI rank but mpi4py cannot be loaded: {error}; "
                "install it with its MPI into this environment: pip install mpi4py mpich"
            )
            raise LaunchError(msg) from error
        ranks: Ranks = MpiRanks(MPI.COMM_WORLD) if MPI.COMM_WORLD.size > 1 else SerialRanks()
    else:
        ranks = SerialRanks()
    expected = _expected_size()
    if ranks.size != expected:
        msg = (
            f"{expected} ranks were started but this one sees a world of {ranks.size}: the launcher and MPI "
            "do not speak the same PMI. With the bundled MPICH set cluster.mpi=pmi2 (in a script of your own: "
            "srun --mpi=pmi2), with Open MPI 5 pmix; `tessera doctor` tries them"
        )
        raise LaunchError(msg)
    return ranks
