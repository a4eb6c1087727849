"""What a user has set for sbatch in the environment (``SBATCH_ACCOUNT``, …): taken where ``cluster.*`` says nothing.

sbatch itself would let these variables win over the lines of the script, and an outer job's have to be hidden from it;
so they are written into the script, where a dry run shows them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from hpc import terminal
from hpc.errors import ConfigError
from hpc.settings import SlurmCluster

_KEYS: Final = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_GRES": "gres",
}

_SET_BY_SLURM: Final = ("SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
"""Variables of an outer job."""


def with_users_defaults(
    cluster: SlurmCluster, environment: Mapping[str, str] = os.environ, *, say: bool = False
) -> SlurmCluster:
    """Return the settings with what the user's environment adds.

    Parameters
    ----------
    cluster
        What was asked for: it wins.
    environment
        The user's.
    say
        Print what was taken and what is not passed on.
    """
    taken: dict[str, Any] = {}
    ignored = []
    for name, value in environment.items():
        key = _KEYS.get(name)
        if key is None:
            if name.startswith("SBATCH_") and not name.startswith(_SET_BY_SLURM):
                ignored.append(name)
        elif value and getattr(cluster, key) is None and key not in cluster.sbatch:
            taken[key] = value
    if say and taken:
        words = ", ".join(f"cluster.{key}={value}" for key, value in taken.items())
        terminal.say(f"note: from your SBATCH_ variables: {words}")
    if say and ignored:
        terminal.say(f"note: not passed on to sbatch: {', '.join(sorted(ignored))}; use cluster.sbatch")
    try:
        return replace(cluster, **taken) if taken else cluster
    except ValueError as error:
        names = ", ".join(name for name, key in _KEYS.items() if key in taken)
        msg = f"from your environment ({names}): {error}; correct it, or set the key of cluster itself"
        raise ConfigError(msg) from error
