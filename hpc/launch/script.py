"""From the configuration to the text of a batch script: pure functions, so that every line can be tested.

submitit submits, so the lines come from submitit's own maker: what is shown here is what is submitted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpc.settings import SlurmCluster
from hpc.threads import set_environment
from hpc.watch.queued import SAID

_SAME_NAME: Final = (
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "nodelist",
    "mem",
    "mem_per_cpu",
    "gres",
    "gpus_per_node",
    "mail_user",
    "mail_type",
    "comment",
)
"""Fields that submitit calls as this package does."""


_FAILED: Final = (
    'code=$?; if [ "${#BASH_SOURCE[@]}" -le 1 ]; then '
    f'echo "{SAID}$BASH_COMMAND: failed with exit code $code; if that is harmless, add: || true" >&2; exit "$code"; fi'
)
"""What a failing line of cluster.setup does. Not one inside a function or a file that it sources: many sites' own files
have such lines and go on; their last word counts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is submitted at once: one run, or the members of a sweep as an array.

    Attributes
    ----------
    name
        Of the job, as ``squeue`` shows it.
    folder
        Where submitit keeps its files, visible on all nodes.
    log
        File for the output of all ranks, with SLURM's ``%j``, or ``%A_%a`` for an array.
    members
        Runs in the batch; one is no array.
    python
        Shell words that start Python on the nodes.
    mpiexec
        Shell words that start ranks from inside the allocation, for ``cluster.mpi=mpiexec``.
    dependency
        What has to end first, in sbatch's words.
    """

    name: str
    folder: Path
    log: Path
    members: int
    python: str
    mpiexec: str = "mpiexec"
    dependency: str | None = None

    def log_of(self, index: int) -> Path:
        """Return the log of a member, with ``%j`` for its job's number."""
        return self.log.with_name(self.log.name.replace("%A_%a", f"%A_{index}").replace("%A", "%j"))


def script_text(cluster: SlurmCluster, batch: Batch) -> str:
    """Return the script that `hpc.launch.slurm.submit` gives to sbatch.

    Parameters
    ----------
    cluster
        What was asked for.
    batch
        What is to be run.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    command = node_command(rank_python(cluster, batch), batch.folder)
    count = batch.members if batch.members > 1 else None
    text: str = _make_sbatch_string(command, batch.folder, map_count=count, **parameters(cluster, batch))
    return text


def node_command(python: str, folder: Path) -> str:
    """Return the shell words that start a task: with -P, files of the working folder are no modules."""
    return f"{python} -P -u -m hpc.launch.node {shlex.quote(str(folder))}"


def rank_python(cluster: SlurmCluster, batch: Batch) -> str:
    """Return the shell words that start the ranks' Python, where srun does not start the ranks itself."""
    if cluster.mpi != "mpiexec":
        return batch.python
    return f"{batch.mpiexec} -n {cluster.ranks} -ppn {cluster.ranks_per_node} {batch.python}"


def parameters(cluster: SlurmCluster, batch: Batch) -> dict[str, Any]:
    """Return the parameters of submitit's SLURM executor."""
    return {
        **{name: getattr(cluster, name) for name in _SAME_NAME},
        "job_name": batch.name,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.ranks_per_node,
        "cpus_per_task": cluster.threads_per_process,
        "time": cluster.minutes,
        "dependency": batch.dependency,
        "array_parallelism": cluster.array_parallelism or batch.members,
        "signal_delay_s": cluster.signal_delay,
        "setup": _setup(cluster),
        "teardown": _teardown(batch),
        "srun_args": _srun(cluster, batch),
        "use_srun": cluster.mpi != "mpiexec",
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own key is refused where a site checks them
        "additional_parameters": _additional(cluster, batch),
    }


def _additional(cluster: SlurmCluster, batch: Batch) -> dict[str, Any]:
    flags: dict[str, Any] = {"output": str(batch.log), "requeue": True}
    if cluster.max_requeues == 0:
        flags = {"output": str(batch.log), "no-requeue": True}
    if cluster.mpi == "mpiexec":  # it passes USR1 on to the ranks and dies of USR2
        flags["signal"] = f"USR1@{cluster.signal_delay}"
    if batch.dependency:  # otherwise it would stay in the queue for ever when the other job fails
        flags["kill-on-invalid-dep"] = "yes"
    if cluster.unlimited:
        flags["time"] = "UNLIMITED"
    flags |= {name: value for name in ("reservation", "nice") if (value := getattr(cluster, name)) is not None}
    return flags | {name: value for name, value in cluster.sbatch.items() if value is not False}


def _setup(cluster: SlurmCluster) -> list[str]:
    """Return the site's lines, then ours: a module must not undo the thread budget."""
    budget: dict[str, str] = {}
    set_environment(cluster.threads_per_process, budget)
    return [
        *_guarded(cluster.setup),
        "export " + " ".join(f"{name}={value}" for name, value in budget.items()),
        # With sbatch --export=NONE srun would give the ranks nothing of what was set above.
        f"export SLURM_EXPORT_ENV=ALL PYTHONUNBUFFERED=1 TESSERA_RANKS={cluster.ranks}",
    ]


def _guarded(setup: Sequence[str]) -> list[str]:
    """Return the site's lines, of which one that fails ends the job with its words; what follows does without that."""
    return [f"trap {shlex.quote(_FAILED)} ERR", *setup, "set +e; trap - ERR"] if setup else []


def _srun(cluster: SlurmCluster, batch: Batch) -> list[str]:
    """Return srun's flags; one log of all ranks, since a file per rank already exists in the run directory."""
    return [
        f"--mpi={cluster.mpi}",
        f"--output={batch.log}",
        "--open-mode=append",
        # Since SLURM 22.05 srun does not take it over from the allocation.
        f"--cpus-per-task={cluster.threads_per_process}",
        # A rank that the kernel killed cannot tell the others.
        "--kill-on-bad-exit=1",
        # Ranks end together; one that does not has lost its slurmstepd, for which srun would wait until the time limit.
        "--wait=60",
        *cluster.srun,
    ]


def _teardown(batch: Batch) -> list[str]:
    """Return what follows the ranks: the shell outlives them, so it can bring back a run whose ranks were killed."""
    return [
        "code=$?",
        'if [ "$code" -ne 0 ]; then',
        f'    {batch.python} -P -m hpc.launch.comeback {shlex.quote(str(batch.folder))} "$code"',
        "fi",
        'exit "$code"',
    ]
