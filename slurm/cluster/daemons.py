"""Start the cluster's processes, and find and end every one of them, whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cluster import network
from cluster.layout import ClusterError, Layout

_MARK: Final = "TESSERA_DEVCLUSTER"
"""Is in the environment of the daemons and of what they start themselves, but not in a user's shell."""

_STEP_DAEMON: Final = "slurmstepd"
"""Wipes its environment, but works in the directory of its slurmd."""


def start(layout: Layout, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
    """Start a daemon in a session of its own; what it prints goes to ``log/NAME.out``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
    environment |= {"SLURM_CONF": str(layout.conf), _MARK: str(layout.directory), **(extra or {})}
    with (layout.directory / "log" / f"{name}.out").open("ab") as output:
        process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=layout.directory,
            start_new_session=True,
        )
    (layout.directory / f"{name}.started").write_text(str(process.pid), encoding="utf-8")


def start_slurmd(layout: Layout, node: str) -> None:
    """Start the slurmd of a node, in the node's own network if it has one."""
    start(layout, node, [*network.inside(layout, node), "slurmd", "-D", "-N", node])


def running(layout: Layout, name: str) -> int | None:
    """Return the process id of a daemon, None if it does not run."""
    try:
        pid = int((layout.directory / f"{name}.started").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return pid if pid in _marked(layout) else None


def wait_until(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Wait for something.

    Raises
    ------
    ClusterError
        With the complaint, if it did not come true in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ClusterError(complaint)
        time.sleep(0.05)


def stop_all(layout: Layout) -> None:
    """End the daemons, the steps they started, and the tasks of jobs."""
    _signal(_marked(layout), signal.SIGTERM)
    with suppress(ClusterError):
        wait_until(lambda: not _marked(layout), 3.0, "")
    for _ in range(20):
        left = _marked(layout) | _tasks(layout)
        if not left:
            return
        _signal(left, signal.SIGKILL)
        time.sleep(0.1)
    msg = f"these processes cannot be ended: {', '.join(map(str, sorted(left)))}; look at them with: ps -fp PID"
    raise ClusterError(msg)


def _marked(layout: Layout) -> set[int]:
    """Return the daemons and the slurmstepds."""
    return _with_environment({f"{_MARK}={layout.directory}"}) | _step_daemons(layout)


def _step_daemons(layout: Layout) -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            place = str((folder / "cwd").readlink()).removesuffix(" (deleted)")
            if place == str(layout.directory) and (folder / "comm").read_text().strip() == _STEP_DAEMON:
                found.add(int(folder.name))
    return found


def _tasks(layout: Layout) -> set[int]:
    """Return what runs in a job of this cluster: SLURM tells every task its job's number."""
    return _with_environment({f"SLURM_CONF={layout.conf}", "SLURM_JOB_ID="})


def _with_environment(wanted: set[str]) -> set[int]:
    """Return the living processes that have all these variables; ``NAME=`` stands for any value."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            names = {v.partition("=")[0] + "=" for v in variables}
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not dead and wanted <= {*variables, *names} and int(folder.name) != os.getpid():
                found.add(int(folder.name))
    return found


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
