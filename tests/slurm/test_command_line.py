"""`tessera … cluster=slurm` on a real cluster: submit, come back, go on elsewhere, sweep."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT
from slurm_jobs import Cluster, until

CONF = CHECKOUT / "tests" / "hpc" / "conf"
TWO_BY_TWO = ["cluster=slurm", "cluster.nodes=2", "cluster.ranks_per_node=2", "cluster.threads_per_process=1"]
QUICK = ["engine.heartbeat=0.3", "engine.grace=5", "checkpoint.every=0.5"]


def tessera(cluster: Cluster, *words: str | Path, codes=(0,), cwd: Path | None = None) -> str:
    """Run the command; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *map(str, words)],
        env=cluster.environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode in codes, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def job_in(text: str) -> str:
    match = re.search(r"SLURM job (\d+)", text)
    assert match, text
    return match[1]


def status(cluster: Cluster, folder: Path) -> list[dict]:
    """What `tessera status` knows of the runs in a folder."""
    shown = json.loads(tessera(cluster, "status", folder, "--json", codes=range(100)))
    return shown if isinstance(shown, list) else [shown]


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "results").iterdir()) if p.is_file()}


def toy(*words: str) -> list[str]:
    return ["job=toy", "--config-dir", str(CONF), *QUICK, *words]


@pytest.mark.slow
def test_photometry_on_two_nodes_is_that_of_this_machine(cluster, tmp_path):
    scene = tmp_path / "scene"
    cluster.run(sys.executable, CHECKOUT / "scripts" / "demo_scene.py", scene)
    (scene / "two.txt").write_text("frame_g.fits\nframe_r.fits\n")
    head, *rows = (scene / "catalog.csv").read_text().splitlines(keepends=True)
    (scene / "half.csv").write_text(head + "".join(rows[20:80]))
    job = [
        "job=photometry",
        f"job.inputs.image_list_file={scene / 'two.txt'}",
        f"job.inputs.input_catalog={scene / 'half.csv'}",
    ]
    tessera(cluster, *job, f"run.dir={tmp_path / 'here'}", "cluster.ranks=1", "cluster.threads_per_process=1")
    text = tessera(cluster, *job, f"run.dir={tmp_path / 'there'}", *TWO_BY_TWO)
    ended = cluster.wait(job_in(text), 120)
    assert ended["JobState"] == "COMPLETED", text
    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    assert len(here["catalog.ecsv"]) > 5_000
    assert {name for name in here if here[name] != there[name]} == set()
    assert {r["host"] for r in status(cluster, tmp_path / "there")[0]["ranks"]} == {"n1", "n2"}


def test_a_cancelled_run_goes_on_with_three_nodes(cluster, tmp_path):
    options = ["job.units=120", "job.seconds=0.25"]
    tessera(cluster, *toy("job.units=120"), f"run.dir={tmp_path / 'here'}", "cluster.ranks=1")
    run = tmp_path / "there"
    first = job_in(tessera(cluster, *toy(*options), f"run.dir={run}", *TWO_BY_TWO))
    until(lambda: sum(s["done"] for s in status(cluster, run)[0]["stages"]) >= 20, 30)
    tessera(cluster, "cancel", run)
    until(lambda: cluster.job(first)["JobState"] not in {"RUNNING", "COMPLETING"}, 30)
    assert status(cluster, run)[0]["state"] == "stopped"
    second = job_in(tessera(cluster, "resume", run, "cluster.nodes=3"))
    assert cluster.wait(second)["JobState"] == "COMPLETED"
    ended = status(cluster, run)[0]
    assert (ended["state"], ended["size"], ended["attempt"]) == ("done", 6, 2)
    assert files(run)["squares.txt"] == files(tmp_path / "here")["squares.txt"]


@pytest.mark.slow
def test_a_preempted_run_comes_back(cluster, tmp_path):
    """SLURM tells the ranks with SIGTERM, as if somebody had cancelled the job."""
    tessera(cluster, *toy("job.units=120"), f"run.dir={tmp_path / 'here'}", "cluster.ranks=1")
    run = tmp_path / "there"
    job = job_in(tessera(cluster, *toy("job.units=120", "job.seconds=0.25"), f"run.dir={run}", *TWO_BY_TWO))
    until(lambda: sum(s["done"] for s in status(cluster, run)[0]["stages"]) >= 20, 30)
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/sh\nsleep 1\n")
    cluster.submit(urgent, "--partition=high", "--nodes=4", "--exclusive")
    assert cluster.wait(job, 90)["JobState"] == "COMPLETED"
    assert status(cluster, run)[0]["attempt"] == 2
    assert files(run)["squares.txt"] == files(tmp_path / "here")["squares.txt"]


def test_the_wrong_mpi_is_named(cluster, tmp_path):
    run = tmp_path / "run"
    job = job_in(tessera(cluster, *toy(), f"run.dir={run}", *TWO_BY_TWO, "cluster.srun=['--mpi=none']"))
    assert cluster.wait(job)["JobState"] == "FAILED"
    shown = status(cluster, run)[0]
    assert shown["state"] == "failed"
    assert "4 ranks were started but this one sees a world of 1" in shown["message"]
    assert "--mpi=pmi2" in shown["message"]


def test_one_poisoned_member_of_twelve(cluster, tmp_path):
    sweep = tmp_path / "sweep"
    sizes = ",".join(str(n) for n in range(2, 14))  # the largest alone has the poisoned unit
    words = toy(f"job.units={sizes}", "job.seconds=0.1", "job.fail_once=[u00012]", f"job.scratch={tmp_path}")
    once = ["engine.retries=0", "engine.fail_fast=true", "cluster.array_parallelism=3"]
    one_by_two = [*TWO_BY_TWO, "cluster.nodes=1"]
    job = job_in(tessera(cluster, "-m", *words, *once, *one_by_two, f"run.sweep_dir={sweep}", cwd=tmp_path))
    most = 0

    def ended() -> bool:
        nonlocal most
        rows = cluster.run("squeue", "--array", "--noheader", "--jobs", job, "--format=%T", check=False).split()
        most = max(most, rows.count("RUNNING"))
        return not rows

    until(ended, 90)
    assert most <= 3
    members = {Path(m["path"]).name: m for m in status(cluster, sweep)}
    assert len(members) == 12
    failed = [m for m in members.values() if m["state"] != "done"]
    assert [m["state"] for m in failed] == ["failed"], members
    assert "first try of u00012" in failed[0]["message"]
    before = {name: member["attempt"] for name, member in members.items()}
    job = job_in(tessera(cluster, "resume", sweep))
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    after = {Path(m["path"]).name: m for m in status(cluster, sweep)}
    assert {m["state"] for m in after.values()} == {"done"}
    assert [name for name in after if after[name]["attempt"] != before[name]] == [Path(failed[0]["path"]).name]
