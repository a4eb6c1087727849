"""A real SLURM cluster for faults, brought up when the first one asks for it; each harness has a node to itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from workers import CHECKOUT, child_environment

DEVCLUSTER = CHECKOUT / "slurm" / "devcluster"
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"})
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")

STAND_IN = """#!/bin/sh
# {name}, unless it is to be silent; "taken" does its work and loses the answer.
how=$(cat "{folder}/{name}.silent" 2>/dev/null) && [ "$1" != --test-only ] || exec "{real}" "$@"
case $how in *taken*) "{real}" "$@" >/dev/null 2>&1;; esac
case $how in *hangs*) exec sleep 600;; esac
echo "{name}: error: Socket timed out on send/recv operation" >&2
exit 1
"""

HURRY = """
import sys
from hpc.watch import scheduler
scheduler.LONG_PATIENCE = 3.0
from hpc.launch import slurm
slurm._SBATCH_PATIENCE, slurm._LOOKS = 3.0, (0.0, 1.0)
from hpc.cli.main import main
sys.exit(main())
"""
"""The command, with less patience for a SLURM that hangs."""


def can_have_slurm() -> bool:
    """Whether a cluster can be made here."""
    return os.geteuid() == 0 and shutil.which("slurmctld", path="/usr/sbin:/usr/local/sbin") is not None


class Cluster:
    """A cluster of so many nodes, which exists from its first use to the end of the block."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._guard = threading.Lock()
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._folder is not None:
            command = [sys.executable, DEVCLUSTER, "down", "--directory", self._folder / "cluster"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            shutil.rmtree(self._folder)

    def node(self, number: int) -> Node:
        """Return a node, numbered from 1, after making the cluster if there is none yet."""
        with self._guard:
            if self._folder is None:
                # Not in shared memory: nodes do not see this machine's.
                self._folder = Path(tempfile.mkdtemp(prefix="tessera-faults-slurm-"))
                where = ["--directory", self._folder / "cluster"]
                command = [sys.executable, DEVCLUSTER, "up", "--nodes", str(self._nodes), "--netns", *where]
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, done.stdout + done.stderr
        own = self._folder / f"n{number}"
        own.mkdir(exist_ok=True)
        return Node(f"n{number}", self._folder / "cluster", own)


@dataclass(frozen=True)
class Node:
    """A node, and the SLURM commands of who uses it, which can be made silent.

    Attributes
    ----------
    name
        As SLURM calls it.
    cluster
        Folder of the cluster's files.
    folder
        A place for runs that the node sees.
    """

    name: str
    cluster: Path
    folder: Path

    @property
    def shared_memory(self) -> Path:
        """The node's ``/dev/shm``."""
        daemon = (self.cluster / f"{self.name}.started").read_text()
        return Path("/proc", daemon.strip(), "root/dev/shm")

    def environment(self) -> dict[str, str]:
        """Return the environment of a user of the cluster, with the stand-ins in front of SLURM's commands."""
        stand_ins = self.folder / "bin"
        if not stand_ins.exists():
            stand_ins.mkdir()
            for name in COMMANDS:
                file = stand_ins / name
                file.write_text(STAND_IN.format(name=name, folder=stand_ins, real=shutil.which(name)))
                file.chmod(0o755)
        clean = {k: v for k, v in child_environment().items() if not k.startswith(("SLURM", "SBATCH", "PMI"))}
        path = os.pathsep.join([str(stand_ins), str(Path(sys.executable).parent), clean.get("PATH", os.defpath)])
        return {**clean, "PATH": path, "SLURM_CONF": str(self.cluster / "slurm.conf"), "COLUMNS": "250"}

    def silence(self, how: str, *commands: str) -> None:
        """Let commands give no answer: ``fails`` or ``hangs``, for sbatch also ``taken`` before."""
        self.environment()
        for name in commands:
            (self.folder / "bin" / f"{name}.silent").write_text(how)

    def speak(self) -> None:
        """Let all commands answer again."""
        for file in (self.folder / "bin").glob("*.silent"):
            file.unlink()

    def tessera(self, *words: str | Path, code: int = 0, **variables: str) -> str:
        """Run the command; fail unless it ends with a code; return what it said."""
        done = subprocess.run(
            [sys.executable, "-c", HURRY, *map(str, words)],
            env={**self.environment(), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == code, f"tessera {words}: exit {done.returncode}: {said}"
        return said

    def slurm(self, *words: str) -> str:
        """Run a command of SLURM itself, whatever is silent; return what it printed."""
        real = shutil.which(words[0])
        assert real is not None
        done = subprocess.run([real, *words[1:]], env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs_of(self, run: Path, *states: str) -> list[str]:
        """Return the jobs of a run that the controller knows, in these states or in any."""
        chosen = ",".join(states) or "all"
        lines = self.slurm("squeue", "-h", "-t", chosen, "-O", "JobID:.20,Command:.400").splitlines()
        return sorted(line.split()[0] for line in lines if line.split()[1].startswith(f"{run}/"))

    def job(self, job: str) -> dict[str, str]:
        """Return what the controller says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "--oneliner", "show", "job", job)))

    def begun(self, job: str, seconds: float = 60.0) -> None:
        """Wait until a job has begun, or begun again."""
        end = time.monotonic() + seconds
        while (said := self.job(job))["JobState"] in ("PENDING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            assert time.monotonic() < end, f"job {job} does not begin: {said}"
            time.sleep(0.1)

    def ended(self, job: str, seconds: float = 90.0, restarts: int = 0) -> dict[str, str]:
        """Wait for a job's end; fail if it comes back more often than it should."""
        end = time.monotonic() + seconds
        while (said := self.job(job))["JobState"] not in OVER:
            assert int(said["Restarts"]) <= restarts, f"job {job} came back {said['Restarts']} times"
            assert time.monotonic() < end, f"job {job} does not end: {said}"
            time.sleep(0.2)
        return said
