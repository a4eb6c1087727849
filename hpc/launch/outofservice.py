"""Whether sbatch's refusal is only of the moment: ``--test-only`` counts the nodes that are in service, sbatch all."""

from __future__ import annotations

import re
import subprocess
from typing import Final

from hpc.settings import SlurmCluster

_AWAY: Final = ("drain", "drng", "down", "maint", "fail", "resv", "boot", "reboot")
"""How sinfo's words for nodes that are out of service begin."""


def only_out_of_service(said: str, cluster: SlurmCluster) -> bool:
    """Say whether sbatch's judgement would be another if all nodes were in service: it counts only those that are."""
    if not any(sign in said.lower() for sign in ("node configuration", "drained", "not available", "node count")):
        return False
    partition = cluster.partition or cluster.sbatch.get("partition")
    where = ["-p", str(partition)] if partition else []
    try:
        command = ["sinfo", "-h", "-N", "-o", "%N|%P|%t|%c|%m", *where]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    rows = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 4]
    rows = [row for row in rows if partition or row[1].endswith("*")]
    cpus, memory = cluster.ranks_per_node * cluster.threads_per_process, _mib(cluster.mem)
    able = [row for row in rows if _number(row[3]) >= cpus and _number(row[4]) >= memory]
    away = [row for row in able if row[2].startswith(_AWAY)]
    return bool(away) and len(able) >= cluster.nodes


def _number(word: str) -> int:
    return int(word.rstrip("+")) if word.rstrip("+").isdigit() else 0


def _mib(size: str | None) -> float:
    """Return the MiB of ``64G``; SLURM counts in MiB where no unit is given."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", (size or "0").upper())
    return int(match[1]) * {"K": 2**-10, "": 1, "M": 1, "G": 2**10, "T": 2**20}[match[2]] if match else 0.0
