"""Do two ranks really find each other, and may threads call MPI?"""

from __future__ import annotations

import json
import subprocess
from typing import Final

from hpc.doctor.finding import Finding
from hpc.errors import LaunchError
from hpc.launch.environment import rank_command, rank_environment

_RANKS: Final = 2
_TIMEOUT: Final = 60.0
_PROBE: Final = """
import json
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(1)
facts = [world.size, total, MPI.Query_thread() == MPI.THREAD_MULTIPLE, MPI.Get_library_version().split("\\n")[0]]
print("facts " + json.dumps(facts), flush=True)
"""
_OTHER_MPI: Final = "use the mpiexec of the MPI that mpi4py loads: cluster.mpiexec=PATH, or pip install mpich"


def check(mpiexec: str | None = None) -> Finding:
    """Start two ranks with the mpiexec that runs will use and let them add a number up."""
    try:
        command = rank_command(["-c", _PROBE], _RANKS, mpiexec)
    except LaunchError as error:
        return Finding("MPI", "fail", str(error), "pip install mpich")
    try:
        done = subprocess.run(
            command, env=rank_environment(1), capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("MPI", "fail", f"two ranks of {command[0]} did not meet within {_TIMEOUT:.0f} s", _OTHER_MPI)
    lines = [line for line in done.stdout.splitlines() if line.startswith("facts ")]
    if done.returncode or not lines:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Finding("MPI", "fail", f"{command[0]} failed: {said[-1] if said else done.returncode}", _OTHER_MPI)
    size, total, multiple, library = json.loads(lines[0].removeprefix("facts "))
    if (size, total) != (_RANKS, _RANKS):
        text = f"{command[0]} started {len(lines)} worlds of {size} rank(s) instead of one of {_RANKS}"
        return Finding("MPI", "fail", text, _OTHER_MPI)
    text = f"{library}; two ranks met through {command[0]}"
    if not multiple:
        return Finding("MPI", "warn", f"{text}; no THREAD_MULTIPLE", "build MPI with full thread support")
    return Finding("MPI", "ok", text)
