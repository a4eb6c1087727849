"""`slurm/devcluster` itself: accounts that are real, and nothing left behind, whatever state it is in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_jobs import DEVCLUSTER, QUICK, TOY, Cluster, Run, job_in, kill, processes, until


def traces(directory: Path, record: dict) -> list[str]:
    """Return what is there of a cluster: processes, mounts, network devices and names, ports, files."""
    found = [f"file {directory}"] if directory.exists() else []
    for process in processes():
        if any(str(directory) in text for text in (process.command, process.place, *process.variables)):
            found.append(f"process {process.pid} {process.command}")
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    found += [f"network {line}" for line in (links + spaces).splitlines() if record["tag"] in line]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if str(directory) in line or record["tag"] in line]
    for port in record["ports"]:
        with socket.socket() as probe:
            found += [f"port {port}"] if probe.connect_ex(("127.0.0.1", port)) == 0 else []
    return found


def test_accounts_are_real_and_nothing_is_left(stage):
    if not shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip(
            "NO ACCOUNTING TEST: slurmdbd and MariaDB are not installed (slurm/devcluster up --accounting --install)"
        )
    directory = stage.folder / "c"
    command = [sys.executable, DEVCLUSTER]
    size = ["--nodes", "2", "--netns", "--accounting"]
    stage.cluster.run(*command, "up", *size, "--directory", directory)
    record = json.loads((directory / "cluster.json").read_text())
    record["tag"] = hashlib.sha256(str(directory).encode()).hexdigest()[:6]  # in the names of its network devices
    own = Cluster(directory, {**stage.cluster.environment, "SLURM_CONF": str(directory / "slurm.conf")})
    try:
        kinds = {line.split()[0] for line in traces(directory, record)}
        assert kinds == {"file", "process", "network", "mount", "port"}, "or this test could not see them gone"
        accounts_are_real(own, stage.folder / "run")
        hold(own, stage.folder / "held")
        kill(own.daemon("n2"))
    finally:
        stage.cluster.run(*command, "down", "--directory", directory)
    assert traces(directory, record) == []


def accounts_are_real(cluster: Cluster, path: Path) -> None:
    """The accounts know what `tessera status` shows: state, CPU and memory of a run that has ended."""
    words = ["cluster=slurm", "cluster.ranks_per_node=2", "cluster.sbatch=null", "job.units=8", "job.seconds=0.5"]
    run = Run(cluster, path, job_in(cluster.tessera(*TOY, *QUICK, *words, f"run.dir={path}")))
    cluster.wait(run.job)

    def account() -> str:
        return cluster.run("sacct", "-n", "-P", "-X", "-j", run.job, "-o", "State,AllocCPUS,ElapsedRaw,TotalCPU")

    until(lambda: account().startswith("COMPLETED|2|"), 30, account)
    text = " ".join(cluster.tessera("status", path).split())
    shown = re.search(r"CPU efficiency (\d+) % of 2 CPUs, largest task (\d+) MiB", text)
    assert shown, text
    assert 1 <= int(shown[1]) <= 100
    assert 20 <= int(shown[2]) <= 2000


def hold(cluster: Cluster, path: Path) -> None:
    """Leave a job at work: it has to be ended, too."""
    words = ["cluster=slurm", "cluster.ranks_per_node=2", "cluster.sbatch=null", "job.seconds=30"]
    run = Run(cluster, path, job_in(cluster.tessera(*TOY, *QUICK, *words, f"run.dir={path}")))
    until(lambda: len(run.progress()["ranks"]) == 2, 60, run.said)
