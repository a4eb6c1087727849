"""The shipped batch scripts, submitted with `sbatch` by somebody who never saw `cluster=slurm`."""

from __future__ import annotations

import sys

import pytest
from conftest import CHECKOUT
from slurm_jobs import kill, until


@pytest.mark.slow
def test_a_time_limit_and_more_nodes(stage):
    run = stage.own_script("--time=1", "--signal=USR2@10", words=("job.seconds=2.2",))
    back = {"JobState": "PENDING", "Restarts": "1"}
    until(lambda: back.items() <= stage.cluster.job(run.job).items(), 100, stage.log)
    stage.cluster.run("scontrol", "update", f"jobid={run.job}", "NumNodes=3-3", "NumTasks=6", "TimeLimit=5")
    stage.assert_came_back(run)
    assert [e["ranks"] for e in run.events("run_start")][:2] == [4, 6], stage.log()


def test_a_killed_rank(stage):
    run = stage.own_script(words=("job.seconds=0.3",))
    run.get_going()
    kill(stage.cluster.ranks(run.job, stage.cluster.nodes(run.job)[1])[0])
    stage.assert_came_back(run)
    assert "the job comes back: its ranks were killed" in stage.log()


def test_a_cancelled_script_stays_cancelled(stage):
    run = stage.own_script(words=("job.seconds=0.3",))
    run.get_going()
    stage.cluster.run("scancel", run.job)
    ended = stage.cluster.wait(run.job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), stage.log()
    assert run.status()["state"] == "stopped"
    assert "the job comes back" not in stage.log()


@pytest.mark.slow
def test_photometry_on_two_nodes_is_that_of_this_machine(stage):
    cluster, scene = stage.cluster, stage.folder / "scene"
    cluster.run(sys.executable, CHECKOUT / "scripts" / "demo_scene.py", scene)
    (scene / "two.txt").write_text("frame_g.fits\nframe_r.fits\n")
    head, *rows = (scene / "catalog.csv").read_text().splitlines(keepends=True)
    (scene / "half.csv").write_text(head + "".join(rows[20:80]))
    run = stage.folder / "there"
    inputs = {"FRAMES": str(scene / "two.txt"), "CATALOG": str(scene / "half.csv"), "RUN": str(run)}
    size = ["--nodes=2", "--ntasks-per-node=2", "--exclusive"]
    job = stage.sbatch(CHECKOUT / "slurm" / "photometry.sbatch", *size, **inputs)
    words = [f"job.inputs.image_list_file={inputs['FRAMES']}", f"job.inputs.input_catalog={inputs['CATALOG']}"]
    serial = ["cluster.ranks=1", "cluster.threads_per_process=1"]
    cluster.tessera("job=photometry", *words, *serial, f"run.dir={stage.folder / 'here'}")
    assert cluster.wait(job, 200)["JobState"] == "COMPLETED", stage.log()
    here, there = (
        {p.name: p.read_bytes() for p in sorted((stage.folder / name / "results").iterdir()) if p.is_file()}
        for name in ("here", "there")
    )
    assert len(here["catalog.ecsv"]) > 5_000
    assert {name for name in here if here[name] != there[name]} == set()
