"""With which ``srun --mpi`` two ranks on two nodes find each other: by really starting them."""

from __future__ import annotations

from hpc.doctor.finding import Finding
from hpc.doctor.mpi import PROBE
from hpc.doctor.slurm import FLAVOURS, mpi_flavours
from hpc.doctor.srun import Answer, on_nodes
from hpc.settings import SlurmCluster

_NAME = "srun --mpi"


def check(cluster: SlurmCluster, nodes: int) -> Finding:
    """Start one rank per node with every flavour this SLURM has.

    Parameters
    ----------
    cluster
        Whose partition and account are used, and whose ``mpi`` has to work.
    nodes
        How many to use.
    """
    results: dict[str, str] = {}
    works: list[str] = []
    for flavour in [f for f in FLAVOURS if f in mpi_flavours()]:
        answer = on_nodes(cluster, ["-c", PROBE], mpi=flavour, nodes=nodes)
        if answer.busy:
            return Finding(
                _NAME, "skipped", "no free nodes within half a minute", "try again, or name a debug partition"
            )
        results[flavour] = outcome(answer, nodes)
        if results[flavour] == "works":
            works.append(flavour)
    text = (
        "; ".join(f"{flavour} {result}" for flavour, result in results.items()) or "no MPI flavour in srun --mpi=list"
    )
    if cluster.mpi in {"mpiexec", "none"} or cluster.mpi in works:
        return Finding(_NAME, "ok", f"{text}; cluster.mpi={cluster.mpi}")
    if works:
        return Finding(_NAME, "fail", text, f"cluster.mpi={works[0]}")
    remedy = (
        "the MPI that mpi4py loads and this SLURM speak no common PMI: use the bundled one (pip install mpich) with "
        "pmi2, or start ranks inside the allocation with cluster.mpi=mpiexec"
    )
    return Finding(_NAME, "fail", text, remedy)


def outcome(answer: Answer, ranks: int) -> str:
    """Say in words how two ranks fared."""
    sizes = {size for size, *_ in answer.facts}
    if answer.facts and sizes == {ranks} and not answer.complaint:
        return "works"
    if sizes == {1}:
        return f"started {ranks} lonely worlds of 1 rank"
    return f"fails ({answer.complaint or 'no answer'})"
