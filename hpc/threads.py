"""The thread budget of a rank: set before numeric imports, enforced on what was imported, and verified."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, Final, Literal

from hpc.quota import quota

VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Every library reads its own; they must be set before it is loaded."""

_LOCAL_SIZE: Final = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_LOCAL_SIZE")

_limits: Any = None  # threadpoolctl undoes its limits when this object dies


def usable_cpus() -> frozenset[int]:
    """Return the CPUs this process may run on: the affinity mask, which is what cpusets leave of the machine."""
    return frozenset(os.sched_getaffinity(0))


def paid_cpus(cpus: int, limit: float | None) -> int:
    """Return how many of some CPUs a quota of CPU time pays for, at least one."""
    return cpus if limit is None else max(1, min(cpus, int(limit)))


def budget(setting: int | Literal["auto"], ranks_here: int | None = None) -> int:
    """Return how many threads this process may use.

    Parameters
    ----------
    setting
        A number, or ``auto``: SLURM's ``--cpus-per-task`` if it was given, else the CPUs of the affinity mask
        divided by the ranks that share the node; never more than a quota of CPU time pays for, see `hpc.quota`.
    ranks_here
        Ranks on this node; None reads it from the launcher's variables.

    Returns
    -------
    int
        At least 1.
    """
    if setting != "auto":
        return setting
    cpus = paid_cpus(len(usable_cpus()), quota())
    if per_task := os.environ.get("SLURM_CPUS_PER_TASK"):
        return max(1, min(int(per_task), cpus))
    if ranks_here is None:
        ranks_here = next((int(os.environ[n]) for n in _LOCAL_SIZE if n in os.environ), 1)
    return max(1, cpus // ranks_here)


def set_environment(threads: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell every numeric library its number of threads; call it before any of them is imported."""
    for name in VARIABLES:
        environment[name] = str(threads)


def enforce(threads: int) -> None:
    """Limit the pools of libraries that are already loaded, whatever the environment said."""
    global _limits  # noqa: PLW0603
    from threadpoolctl import threadpool_limits

    _limits = threadpool_limits(limits=threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def pools() -> dict[str, int]:
    """Return the number of threads of each loaded pool, by library name."""
    from threadpoolctl import threadpool_info

    found = {f"{p['internal_api']}:{p['prefix']}": int(p["num_threads"]) for p in threadpool_info()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = int(torch.get_num_threads())
    return found


def complaints(threads: int, masks: Sequence[frozenset[int]], limit: float | None = None) -> list[str]:
    """Say in numbers what is wrong with the thread budget on one node.

    Parameters
    ----------
    threads
        Budget of each rank.
    masks
        The affinity mask of each rank on this node.
    limit
        The quota of CPU time that these ranks share, in CPUs.

    Returns
    -------
    list of str
        Empty if every pool keeps to the budget and the node is not oversubscribed.
    """
    wrong = [
        f"{name} runs {n} threads although the budget is {threads}; it was loaded before the budget was set"
        for name, n in pools().items()
        if n > threads
    ]
    cpus = len(frozenset[int]().union(*masks)) if masks else 0
    paid = paid_cpus(cpus, limit) if cpus else 0
    allowed = f"{cpus} usable CPUs" if paid == cpus else f"{cpus} usable CPUs, of which a quota pays for {limit:.3g}"
    cpus = paid
    wanted = threads * len(masks)
    if cpus and wanted > cpus:
        wrong.append(
            f"oversubscribed: {len(masks)} ranks x {threads} threads = {wanted} threads on {allowed}; "
            f"set cluster.threads_per_process={max(1, cpus // len(masks))} or start fewer ranks"
        )
    return wrong
