"""What a workload implements: a job is a list of stages, and a stage is a map or a loop.

Nothing in this file knows of MPI, checkpoints or SLURM. A stage gives the engine nothing but results;
who runs what, when to save, when to stop and how to come back is decided in the rest of ``hpc``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hpc.context import Context
    from hpc.inputs import FolderNames
    from hpc.report.view import RunView, Section

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""Named numpy arrays: the result of a unit, or the state of a loop. Scalars are 0-d arrays."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+,=:/-]*")


@dataclass(frozen=True, slots=True)
class Unit:
    """One independent piece of a map.

    Attributes
    ----------
    key
        Stable name, unique within the stage: the result is stored under it and resumed by it. It must
        depend on the configuration and the inputs only, never on ranks or on the order of work.
    cost
        Expected cost relative to the other units of the stage (> 0); larger ones are started first.
    """

    key: str
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            msg = f"unit key {self.key!r} may hold only letters, digits and ._+,=:/- and starts with a letter or digit"
            raise ValueError(msg)
        if not (np.isfinite(self.cost) and self.cost > 0):
            msg = f"unit {self.key!r} has cost {self.cost!r}; a cost is a finite number above zero"
            raise ValueError(msg)


class Results(Protocol):
    """The results of a finished map: a lazy mapping from unit key to arrays, in key order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __getitem__(self, key: str, /) -> dict[str, NDArray[Any]]: ...
    def items(self) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
        """Yield ``(key, arrays)`` in key order."""
        ...

    def save(self, path: Path) -> None:
        """Write all results into one HDF5 file, streaming; its layout is described in `hpc.store.compact`."""


class Map(ABC):
    """A stage of many independent units."""

    name: str
    """Short name, unique within the job: the stage's folder under ``checkpoints/``."""

    @abstractmethod
    def units(self, ctx: Context) -> Sequence[Unit]:
        """List the units. Called on rank 0 only; the list is broadcast."""

    @abstractmethod
    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Compute one unit: a pure function of the configuration, the inputs and the unit."""

    def merge(self, results: Results, ctx: Context) -> None:
        """Turn all results into files under ``ctx.results_dir``; by default ``NAME.h5`` with everything.

        Called on rank 0 only, and again if the run was killed meanwhile.
        """
        results.save(ctx.results_dir / f"{self.name}.h5")


class Loop(ABC):
    """A stage of collective steps on one state, which is the same on every rank."""

    name: str
    """Short name, unique within the job: the stage's folder under ``checkpoints/``."""

    @abstractmethod
    def start(self, ctx: Context) -> Arrays:
        """Return the first state. Collective."""

    @abstractmethod
    def step(self, state: Arrays, ctx: Context) -> Arrays:
        """Advance the state by one step. Collective; the ranks meet in ``ctx.sum_chunks``."""

    @abstractmethod
    def done(self, state: Arrays) -> bool:
        """Say whether this state is final. A pure function of the state."""

    def steps(self, state: Arrays) -> tuple[int, int]:
        """Return ``(steps done, steps expected)`` for the progress bar; ``(0, 0)`` if it cannot be known."""
        del state
        return 0, 0

    def figures(self, state: Arrays) -> Mapping[str, float | str]:
        """Return a few numbers and words about the state for `tessera status`: ``{"cost": 1.2}``. Rank 0 only."""
        del state
        return {}

    def finish(self, state: Arrays, ctx: Context) -> None:
        """Write the result under ``ctx.results_dir``. Rank 0 only; repeated after a kill."""


Stage: TypeAlias = Map | Loop


_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def stages_of(job: Job) -> list[Stage]:
    """Return a job's stages, each with a name of its own that can be a folder's.

    Raises
    ------
    ValueError
        If a name is used twice, or is no plain file name: it would lead to another folder.
    """
    stages = list(job.stages())
    names = [stage.name for stage in stages]
    for name in names:
        if not _STAGE_NAME.fullmatch(name):
            msg = f"stage name {name!r} may hold only letters, digits and ._- and starts with a letter or digit"
            raise ValueError(msg)
        if names.count(name) > 1:
            msg = f"two stages are called {name!r}; stage names must be unique within the job"
            raise ValueError(msg)
    return stages


class Job(ABC):
    """A workload: options, stages, and the pictures of its report.

    The engine builds ``Options`` from the ``job`` section of the configuration (see `hpc.options`) and
    calls ``Job(options)``, on the login side for `check` and on every rank for the rest.
    """

    Options: ClassVar[type]
    """Frozen dataclass of the job's options; every field is a key of ``conf/job/NAME.yaml``."""

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    def check(self) -> None:
        """Check what can be checked before anything starts, cheaply and without MPI.

        Raises
        ------
        hpc.errors.InputError
            If an input is missing or unusable; the message names the file and the remedy.
        """

    def inputs(self) -> Iterable[Path | FolderNames]:
        """Name every file that decides the results: what the options name, and what those files name in turn.

        A folder stands for all files below it, `hpc.inputs.FolderNames` for the names of the folders in it. Asked on
        one process without MPI, before `setup` and again when a run goes on or ends: the engine refuses to go on with
        others than at the first start. What a job reads and does not name here may change unnoticed.

        Raises
        ------
        hpc.errors.InputError
            If a file that names others cannot be read.
        OSError
            If a folder cannot be listed now.
        """
        return ()

    def code(self) -> Iterable[Path]:
        """Name Python files, or folders of packages, that the job runs besides its own package: the user's model."""
        return ()

    def setup(self, ctx: Context) -> None:
        """Load the inputs. Collective, called on every rank at every start, resumes included."""
        del ctx

    def kernels(self) -> Mapping[str, str]:
        """Return which code of its own the job runs, by part, where that depends on the machine: ``{"sums": "v3"}``.

        A run whose attempts differ in it says that its bits may differ. Code that has a choice follows the environment
        variable that `hpc.kernels.LEVEL` names.
        """
        return {}

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Return the stages in the order in which they run."""

    def complaint(self, ctx: Context) -> str | None:
        """Say why finished results are not what was asked for, with the remedy; None if they are.

        Called on rank 0 after the last stage, again if the run is resumed then. A complaint ends the run as failed, so
        that what waits for it does not start; results and report stay.
        """
        del ctx
        return None

    def report(self, run: RunView) -> Sequence[Section]:
        """Return the workload's sections of the report page, made from files under the run directory."""
        del run
        return ()
