"""Whether two ranks really find each other, and threads may call MPI."""

from __future__ import annotations

import json
import subprocess
from typing import Final

from hpc.doctor.finding import Finding
from hpc.errors import LaunchError
from hpc.launch.environment import Crew, rank_command, rank_environment

_RANKS: Final = 2
_TIMEOUT: Final = 60.0
PROBE: Final = """
import json
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(1)
library = " ".join(MPI.Get_library_version().splitlines()[0].split())
facts = [world.size, total, MPI.Query_thread() == MPI.THREAD_MULTIPLE, library]
if world.rank == 0:
    print("facts " + json.dumps(facts), flush=True)
"""
"""Every rank prints ``facts`` and [size, sum of ones, THREAD_MULTIPLE, library]."""

_OTHER_MPI: Final = "use the mpiexec of the MPI that mpi4py loads: cluster.mpiexec=PATH, or pip install mpich"


def check(mpiexec: str | None = None) -> Finding:
    """Start two ranks with the mpiexec that runs will use and let them add a number up."""
    try:
        command = rank_command(["-c", PROBE], _RANKS, mpiexec)
    except LaunchError as error:
        return Finding("MPI", "fail", str(error), "pip install mpich")
    try:
        done = subprocess.run(
            command,
            env=rank_environment(Crew(_RANKS, 1)),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("MPI", "fail", f"two ranks of {command[0]} did not meet within {_TIMEOUT:.0f} s", _OTHER_MPI)
    lines = [line for line in done.stdout.splitlines() if line.startswith("facts ")]
    if done.returncode or not lines:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Finding("MPI", "fail", f"{command[0]} failed: {said[-1] if said else done.returncode}", _OTHER_MPI)
    # Ranks that are each alone all print, possibly on one line; only the first answer counts.
    answer, _ = json.JSONDecoder().raw_decode(lines[0].removeprefix("facts "))
    size, total, multiple, library = answer
    if (size, total) != (_RANKS, _RANKS):
        text = f"{command[0]} started worlds of {size} rank(s) instead of one of {_RANKS}"
        return Finding("MPI", "fail", text, _OTHER_MPI)
    text = f"{library}; two ranks met through {command[0]}"
    if not multiple:
        return Finding("MPI", "warn", f"{text}; no THREAD_MULTIPLE", "build MPI with full thread support")
    return Finding("MPI", "ok", text)
