"""Starting a few tasks through srun, as the doctor's checks on nodes do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

from hpc.launch.environment import without_outer_job
from hpc.settings import SlurmCluster
from hpc.threads import set_environment

_QUEUE: Final = 30
"""Seconds to wait for free nodes: a full cluster must not keep the doctor waiting."""

_TIMEOUT: Final = 90.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes
    ----------
    facts
        The JSON that each task printed after ``facts``.
    complaint
        The last thing srun said, if a task failed or none was started.
    busy
        Whether there were no free nodes.
    """

    facts: list[Any]
    complaint: str = ""
    busy: bool = False


def on_nodes(cluster: SlurmCluster, program: list[str], *, mpi: str, nodes: int) -> Answer:
    """Run a program of this Python once on each of some nodes, for two minutes at most.

    Parameters
    ----------
    cluster
        Whose partition, account, constraints and setup are to be used.
    program
        Arguments of Python.
    mpi
        Flavour for ``srun --mpi``.
    nodes
        How many.
    """
    asked = {
        name: value
        for name in ("partition", "account", "qos", "constraint", "reservation", "gpus_per_node")
        if (value := getattr(cluster, name)) is not None
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    size = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1"]
    limits = ["--time=2", f"--immediate={_QUEUE}", "--kill-on-bad-exit=1", "--job-name=tessera-doctor"]
    # The site's setup lines are shell words; the program and its arguments come after them unquoted by any shell.
    shell = "; ".join([*cluster.setup, 'exec "$@"'])
    python = [sys.executable, "-P", *program]
    if cluster.setup:
        python = ["bash", "-c", shell, "bash", *python]
    environment = without_outer_job(os.environ)
    set_environment(1, environment)
    try:
        done = subprocess.run(
            ["srun", f"--mpi={mpi}", *size, *limits, *flags, *python],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer([], f"no answer from srun ({error})")
    facts = [
        json.JSONDecoder().raw_decode(line.removeprefix("facts "))[0]
        for line in done.stdout.splitlines()
        if line.startswith("facts ")
    ]
    said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
    busy = "Unable to allocate resources" in done.stderr and "Requested nodes are busy" in done.stderr
    return Answer(facts, said[0].strip() if said and done.returncode else "", busy)
