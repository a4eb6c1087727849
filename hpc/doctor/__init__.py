"""Will MPI, SLURM, threads, GPUs and the file system do what a run expects? One check per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpc.doctor import filesystem, gpu, mpi, packages, slurm, threads
from hpc.doctor.finding import Finding

__all__ = ["Finding", "examine"]


def examine(directory: Path) -> Iterator[Finding]:
    """Run all checks in order and yield each finding when it is known.

    Parameters
    ----------
    directory
        Where runs will lie: its file system is tried out, and nothing is left behind.
    """
    yield packages.check()
    yield threads.check()
    yield mpi.check()
    yield filesystem.check(directory)
    yield gpu.check()
    yield slurm.check()
