"""What ranks on this machine are started with: their number, threads, mpiexec and variables."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpc.errors import LaunchError
from hpc.quota import quota
from hpc.settings import LocalCluster
from hpc.threads import paid_cpus, set_environment, usable_cpus

_FOREIGN: Final = (
    "PMI_",
    "PMIX_",
    "PMIP_",
    "HYDRA_",
    "HYDI_",
    "MPI_",
    "MPIR_",
    "OMPI_",
    "PRTE_",
    "SLURM_",
    "SRUN_",
    "SBATCH_",
    "SUBMITIT_",
)
"""Variables with which an outer job or mpiexec would make the new ranks believe that they are its own."""

_KEPT: Final = frozenset({"SLURM_CONF"})


_MOST: Final = 256
_CROWD: Final = 32
"""Ranks per CPU that are started at most, and how many anyway: a mistyped number must not fill the process table."""


@dataclass(frozen=True, slots=True)
class Crew:
    """How many ranks, and how many threads each may use."""

    ranks: int
    threads: int


def share_cpus(cluster: LocalCluster) -> Crew:
    """Share the CPUs this process may use among the ranks.

    Returns
    -------
    Crew
        ``auto`` ranks are the usable CPUs (that a quota pays for) divided by the threads (1 if these are ``auto``
        too); ``auto`` threads are the usable CPUs divided by the ranks; both at least 1.

    Raises
    ------
    hpc.errors.LaunchError
        If that many processes would bring the machine down.
    """
    cpus = paid_cpus(len(usable_cpus()), quota())
    if cluster.ranks != "auto" and cluster.ranks > max(_MOST, _CROWD * cpus):
        msg = (
            f"cluster.ranks={cluster.ranks} are too many for the {cpus} CPUs of this machine; give at most "
            f"{max(_MOST, _CROWD * cpus)}, or auto"
        )
        raise LaunchError(msg)
    if cluster.ranks == "auto":
        threads = 1 if cluster.threads_per_process == "auto" else cluster.threads_per_process
        return Crew(max(1, cpus // threads), threads)
    if cluster.threads_per_process == "auto":
        return Crew(cluster.ranks, max(1, cpus // cluster.ranks))
    return Crew(cluster.ranks, cluster.threads_per_process)


def find_mpiexec(setting: str | None) -> list[str]:
    """Return the command that starts ranks, with its options.

    Parameters
    ----------
    setting
        ``cluster.mpiexec``; None takes the one beside this Python, else the one of PATH.

    Raises
    ------
    hpc.errors.LaunchError
        If there is none.
    """
    if setting is not None:
        try:
            words = shlex.split(setting)
        except ValueError as error:
            msg = f"cluster.mpiexec: {setting!r} is no command ({error}); close the quotation, or give null"
            raise LaunchError(msg) from error
        if not words or shutil.which(words[0]) is None:
            msg = f"cluster.mpiexec: there is no command {setting!r}; give its path, or null for the bundled"
            raise LaunchError(msg)
        return words
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if found is None:
        msg = (
            f"cluster.ranks needs mpiexec, which is neither beside {sys.executable} nor on PATH; "
            "pip install mpich, or set cluster.ranks=1"
        )
        raise LaunchError(msg)
    return [found]


def rank_command(program: list[str], ranks: int, mpiexec: str | None) -> list[str]:
    """Return the command line that runs ``program`` (arguments of this Python) on so many ranks.

    With -P, a ``signal.py`` in the working folder does not take the place of the standard library's.
    """
    python = [sys.executable, "-P", "-u", *program]
    return python if ranks == 1 else [*find_mpiexec(mpiexec), "-n", str(ranks), *python]


def without_outer_job(outer: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of the job or mpiexec it belongs to; SLURM_CONF stays."""
    return {k: v for k, v in outer.items() if k in _KEPT or not k.startswith(_FOREIGN)}


def rank_environment(crew: Crew, outer: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the ranks' environment: an outer job's variables removed, the thread budget set.

    Inside a SLURM allocation the bundled mpiexec would start the ranks through srun on all its nodes; ranks
    that are asked for here stay here. ``TESSERA_RANKS`` lets them notice if
    they do not see each other; ``TESSERA_COMMAND`` goes into the run's provenance.
    """
    environment = without_outer_job(outer)
    set_environment(crew.threads, environment)
    environment["TESSERA_RANKS"] = str(crew.ranks)
    if path := environment.pop("PYTHONPATH", ""):  # an empty part, as in ``NEW:$OLD``, would be the working folder
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path.split(os.pathsep) if part)
    environment.setdefault("TESSERA_COMMAND", shlex.join(sys.argv))
    return environment
