"""Jobs on the development cluster: submit, wait, look, and break things."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CHECKOUT

DEVCLUSTER = CHECKOUT / "slurm" / "devcluster"

OWN_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=own --open-mode=append --requeue --cpus-per-task=1 --ntasks-per-node={per_node}
ranks=$(( SLURM_JOB_NUM_NODES * {per_node} ))
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
trap : TERM  # the ranks save and say with 75 that they want to go on; this shell has to live until then
srun --mpi={mpi} -n "$ranks" --ntasks-per-node={per_node} --cpus-per-task=1 \\
    --kill-on-bad-exit=1 --wait=10 {python} -m hpc.rank {run} &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
restarts=${{SLURM_RESTART_COUNT:-0}}
# 75: stopped and saved. Above 128: killed from outside, unless a rank has left word of a failure.
if [ "$restarts" -lt 5 ] && {{ [ "$code" = 75 ] || {{ [ "$code" -gt 128 ] && [ ! -e {run}/failure.json ]; }}; }}; then
    # If the node of this shell was given up by SLURM, the job runs elsewhere already: leave it alone.
    if scontrol show job "$SLURM_JOB_ID" | grep -q "Restarts=$restarts "; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
"""
"""What a user without the `tessera` command writes: start the ranks, and come back if they ask for it."""


@dataclass(frozen=True)
class Cluster:
    """A running development cluster.

    Attributes
    ----------
    directory
        Its files.
    environment
        For commands that talk to it.
    """

    directory: Path
    environment: dict[str, str]

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Run a command with this cluster's SLURM; return what it printed."""
        done = subprocess.run(
            [str(w) for w in words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and done.returncode:
            pytest.fail(f"{words[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def devcluster(self, *words: str) -> str:
        return self.run(sys.executable, DEVCLUSTER, words[0], "--directory", self.directory, *words[1:])

    def submit(self, script: Path, *flags: str) -> str:
        """Submit a script; return the job's number."""
        output = script.with_suffix(".out")
        return self.run("sbatch", "--parsable", f"--output={output}", *flags, script).strip()

    def job(self, job: str) -> dict[str, str]:
        """Return what the controller says of a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def nodes(self, job: str) -> list[str]:
        """Return the nodes of a job; the first one runs the batch script and rank 0."""
        return self.run("scontrol", "show", "hostnames", self.job(job)["NodeList"]).split()

    def wait(self, job: str, seconds: float = 60.0) -> dict[str, str]:
        """Wait until a job is over; return what the controller says of it."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
        until(lambda: self.job(job)["JobState"] in over, seconds, lambda: f"job {job}: {self.job(job)}")
        return self.job(job)

    def daemon(self, name: str) -> int:
        """Return the process id of a daemon of the cluster."""
        return int((self.directory / f"{name}.started").read_text())

    def stepd(self, job: str, node: str) -> int:
        """Return the process id of the daemon that looks after the first step of a job on a node."""
        network = Path(f"/proc/{self.daemon(node)}/ns/net").readlink()
        found = self.run("pgrep", "--full", rf"slurmstepd: \[{job}\.0\]").split()
        return next(int(pid) for pid in found if Path(f"/proc/{pid}/ns/net").readlink() == network)


def until(condition: Callable[[], object], seconds: float, explain: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition; fail if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:.0f} s {explain()}")
        time.sleep(0.2)


@dataclass(frozen=True)
class ToyRun:
    """A prepared run of the toy workload, and the script that starts it."""

    path: Path
    script: Path

    def done(self) -> int:
        """Units done so far, as `tessera status` would say."""
        try:
            return sum(s["done"] for s in json.loads((self.path / "progress.json").read_text())["stages"])
        except (OSError, ValueError):
            return 0

    def ranks(self) -> list[dict]:
        return json.loads((self.path / "progress.json").read_text())["ranks"]

    def events(self, kind: str) -> list[dict]:
        records = [json.loads(line) for line in (self.path / "events.jsonl").read_text().splitlines()]
        return [r for r in records if r["event"] == kind]

    def output(self) -> str:
        return self.script.with_suffix(".out").read_text()

    def failure(self) -> dict:
        return json.loads((self.path / "failure.json").read_text())

    def results(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted((self.path / "results").iterdir())}


def computed(run: ToyRun, stage: str = "squares") -> Counter:
    """Count how often each unit was computed and saved, over all attempts."""
    from hpc.store.segments import read_columns

    files = (run.path / "checkpoints" / stage).glob("*.h5")
    return Counter(key for file in files for key in read_columns(file, values=False)[0])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
