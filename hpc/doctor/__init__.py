"""Will MPI, SLURM, threads, GPUs and the file system do what a run expects? One check per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpc.doctor import filesystem, gpu, mpi, nodes, packages, slurm, slurm_mpi, threads
from hpc.doctor.finding import Finding
from hpc.settings import ClusterSettings, LocalCluster, SlurmCluster

__all__ = ["Finding", "examine"]


def examine(directory: Path, cluster: ClusterSettings | None = None) -> Iterator[Finding]:
    """Run all checks in order and yield each finding when it is known.

    Parameters
    ----------
    directory
        Where runs will lie: its file system is tried out, and nothing is left behind.
    cluster
        What runs will be started with; for SLURM a few tasks are really started on nodes.
    """
    yield packages.check()
    yield threads.check()
    yield mpi.check(cluster.mpiexec if isinstance(cluster, LocalCluster) else None)
    yield filesystem.check(directory)
    yield gpu.check()
    found = slurm.check()
    yield found
    if isinstance(cluster, SlurmCluster):
        yield from _on_nodes(cluster, directory)
    elif found.status in {"ok", "warn"}:
        yield Finding("nodes", "skipped", "give cluster=slurm to start a few tasks on nodes and look at them")


def _on_nodes(cluster: SlurmCluster, directory: Path) -> Iterator[Finding]:
    used = min(2, slurm.node_count())
    if not used:
        yield Finding("nodes", "fail", "SLURM shows no nodes", "check SLURM_CONF and sinfo")
        return
    yield slurm_mpi.check(cluster, used)
    yield from nodes.check(cluster, directory, used)
