"""Faults of SLURM: answers that are lost, a controller that is silent, and what dead ranks leave for the job's return.

The jobs, the nodes and the controller are real; only the commands in front of it are silent when they are told to be.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from devslurm import Node
from harness import PATIENCE, Harness, Scenario, Struck
from whole_runs import SLOW

SEGMENTS = "mpich_shm_*"

BETWEEN = """
import os, signal
from pathlib import Path
import hpc.leftovers as leftovers
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    real = leftovers.unname
    def unname():
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "/dev/shm/mpich_shm_" in line:
                name = line.split(maxsplit=5)[5]
                kept = Path(name.replace("mpich_shm_", "kept_mpich_shm_"))
                if not kept.exists():
                    os.link(name, kept)
        if os.environ["DIES"] == "early":
            os.kill(os.getpid(), signal.SIGKILL)
        real()
    leftovers.unname = unname
"""
"""Keeps the segment of a first attempt; dies, or not, while it still has its name."""


def on_slurm(harness: Harness, ranks: int, **options: object) -> tuple[Node, Path, Scenario]:
    """Make a run for a node of the cluster."""
    assert harness.node is not None
    node = harness.node()
    truth = harness.scenario("slow", **SLOW)
    cluster = {"launcher": "slurm", "ranks_per_node": ranks, "nodelist": node.name, "sbatch": options}
    scenario = Scenario("on slurm", {**truth.config, "cluster": cluster}, truth.truth)
    path = node.folder / harness.new_path().name
    harness.prepare(scenario.config, path)
    return node, path, scenario


def requeued_on_its_node(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill a rank of a job on one node; the job comes back to it, and finds the segment of its own name still there."""
    node, path, scenario = on_slurm(harness, int(rng.integers(2, 4)))
    early = rng.random() < 0.5
    hook = node.folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(BETWEEN)
    python_path = os.pathsep.join([str(hook), node.environment()["PYTHONPATH"]])
    node.tessera("resume", path, PYTHONPATH=python_path, DIES="early" if early else "later")
    (job,) = node.jobs_of(path)
    try:
        if not early:
            _kill_a_rank(path, rng)
        planted = _plant(node, job)
        node.begun(job)
        with harness.timed():
            said = node.ended(job, restarts=1)
    finally:
        _end(node, job)
    log = "".join(file.read_text() for file in path.glob("logs/slurm-*.log"))
    assert said["JobState"] == "COMPLETED", f"{said['JobState']}: {log}"
    assert node.jobs_of(path) == [job]
    left = [file.name for file in node.shared_memory.glob(SEGMENTS)]
    assert not left, f"dead ranks have left {left} on the node"
    return Struck(path, scenario, faults=int(planted), done=True)


def _kill_a_rank(path: Path, rng: np.random.Generator) -> None:
    """Kill one rank at a random instant of its work."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            ranks = json.loads((path / "progress.json").read_bytes())["ranks"]
            if len(ranks) > 1:
                break
        time.sleep(0.02)
    time.sleep(float(rng.uniform(0, 0.4)))
    with suppress(ProcessLookupError):
        os.kill(ranks[rng.integers(len(ranks))]["pid"], signal.SIGKILL)


def _plant(node: Node, job: str) -> bool:
    """Wait until the job is about to come back, and put its first attempt's segments where that one had them."""
    end = time.monotonic() + PATIENCE
    while (said := node.job(job))["Restarts"] == "0" or said["JobState"] == "COMPLETING":
        if said["JobState"] == "COMPLETED":
            return False  # the kill came after the end
        assert said["JobState"] in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"), f"job {job} did not come back"
        assert time.monotonic() < end, said
        time.sleep(0.1)
    kept = list(node.shared_memory.glob(f"kept_{SEGMENTS}"))
    for file in kept:
        file.rename(file.with_name(file.name.removeprefix("kept_")))
    return bool(kept) and said["JobState"] == "PENDING"


def _end(node: Node, *jobs: str) -> None:
    """Leave nothing on the node for the next fault."""
    node.speak()
    for job in jobs:
        with suppress(AssertionError):
            node.slurm("scancel", job)
            node.ended(job, restarts=99)
    for file in node.shared_memory.glob(f"*{SEGMENTS}"):
        file.unlink(missing_ok=True)


def answer_of_sbatch_lost(harness: Harness, rng: np.random.Generator) -> Struck:
    """Lose sbatch's answer; the job may be there or not, and SLURM may be silent for a while: one job computes it."""
    node, path, scenario = on_slurm(harness, int(rng.integers(1, 3)), hold=True)
    taken, how = rng.random() < 0.6, str(rng.choice(["fails", "fails", "hangs"]))
    silent = rng.random() < 0.6
    try:
        node.silence(f"taken {how}" if taken else how, "sbatch")
        if silent:
            node.silence("fails", "squeue", "sacct")
        said = node.tessera("resume", path, code=0 if taken and not silent else 2)
        if taken and not silent:
            assert "but SLURM has the job: found it in the queue" in said, said
        else:
            assert "the job may be queued all the same" in said, said
        if silent:
            assert "it may be queued" in (said := node.tessera("status", path)), said
            _expect_no_second(node, path)
            said = node.tessera("cancel", path, code=1)
            assert "nothing to cancel" not in said, said
        assert len(node.jobs_of(path)) == int(taken), "a second job was submitted, or the only one lost"
        node.speak()
        if taken:
            (job,) = node.jobs_of(path)
            assert f"is in SLURM already as job {job} (PENDING" in (said := node.tessera("resume", path, code=2)), said
        else:
            node.tessera("resume", path)
        return _to_its_end(harness, node, path, scenario, jobs=1)
    finally:
        _end(node, *node.jobs_of(path))


def silent_slurm(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let SLURM fall silent while a job waits or runs: status says so, no second job is submitted, cancel does its best."""
    node, path, scenario = on_slurm(harness, int(rng.integers(1, 3)), hold=True)
    how = str(rng.choice(["fails", "fails", "hangs"]))
    deaf = rng.random() < 0.3
    try:
        node.tessera("resume", path)
        (job,) = node.jobs_of(path)
        node.silence(how, "squeue", "sacct")
        said = node.tessera("status", path)
        assert "did not" in said or "Socket timed out" in said, f"status says nothing of the silence: {said}"
        assert json.loads(node.tessera("status", path, "--json"))["slurm_silent"]
        _expect_no_second(node, path)
        jobs = 1
        if rng.random() < 0.6:
            if deaf:
                node.silence("fails", "scancel", "scontrol")
            said = node.tessera("cancel", path, code=1)
            assert "nothing to cancel" not in said, said
            assert f"job {job}" in said, f"the job to look after is not named: {said}"
            assert (node.job(job)["JobState"] == "CANCELLED") != deaf, node.job(job)
            jobs += not deaf
        node.speak()
        said = node.tessera("resume", path, code=2 if jobs == 1 else 0)
        assert jobs == 2 or f"is in SLURM already as job {job} (PENDING" in said, said
        return _to_its_end(harness, node, path, scenario, jobs)
    finally:
        _end(node, *node.jobs_of(path))


def _expect_no_second(node: Node, path: Path) -> None:
    """Fail unless a resume is refused while it is not known whether the run has a job."""
    before = node.jobs_of(path)
    said = node.tessera("resume", path, code=2)
    assert "--job-has-ended" in said, said
    assert node.jobs_of(path) == before, "a second job was submitted"


def _to_its_end(harness: Harness, node: Node, path: Path, scenario: Scenario, jobs: int) -> Struck:
    """Let the run's only living job go; fail unless that was the only one of so many."""
    (job,) = node.jobs_of(path, "PENDING", "RUNNING")
    assert len(node.jobs_of(path)) == jobs, f"{node.jobs_of(path)} instead of {jobs}"
    node.slurm("scontrol", "release", job)
    node.begun(job)
    with harness.timed():
        state = node.ended(job)["JobState"]
    log = "".join(file.read_text() for file in path.glob("logs/slurm-*.log"))
    assert state == "COMPLETED", f"job {job}: {state}: {log}"
    return Struck(path, scenario, done=True)
