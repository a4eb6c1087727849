"""What submitit carries to the nodes: the path of a run, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Payload:
    """Runs on every task: one rank of a run.

    Attributes
    ----------
    run
        The run directory.
    """

    run: str

    def __call__(self) -> NoReturn:
        """Become a rank; leave with its exit code, which submitit would replace by 0 if it were returned."""
        from hpc.rank import live

        live([self.run])
