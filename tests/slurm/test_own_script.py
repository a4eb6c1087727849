"""The engine under `srun`, started by a script of the user's own that knows only of exit code 75."""

from __future__ import annotations

import pytest
from slurm_jobs import computed, until

OPTIONS = {"units": 120, "seconds": 0.25, "steps": 10}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The results of one process alone, for the options that every test here uses."""
    from conftest import start_toy

    path = tmp_path_factory.mktemp("alone") / "run"
    assert start_toy(path, 1, **{**OPTIONS, "seconds": 0.0}).wait(60) == 0
    return {p.name: p.read_bytes() for p in sorted((path / "results").iterdir())}


def assert_done_once(run, expected):
    """The output is that of an undisturbed run, and nothing that had been saved was computed again."""
    assert run.results() == expected
    assert run.events("run_end")[-1]["state"] == "done"
    assert set(computed(run).values()) == {1}


def test_two_nodes_give_the_answer_of_one_process(cluster, toy_run, expected):
    run = toy_run(**{**OPTIONS, "seconds": 0.0})
    job = cluster.wait(cluster.submit(run.script, "--nodes=2"))
    assert job["JobState"] == "COMPLETED", run.output()
    assert sorted(r["host"] for r in run.ranks()) == ["n1", "n1", "n2", "n2"]
    assert_done_once(run, expected)


def test_scontrol_requeue(cluster, toy_run, expected):
    run = toy_run(**OPTIONS)
    job = cluster.submit(run.script, "--nodes=2")
    until(lambda: run.done() >= 20, 20, run.output)
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait(job)["JobState"] == "COMPLETED", run.output()
    assert cluster.job(job)["Restarts"] == "1"
    assert run.results() == expected


@pytest.mark.slow
def test_a_time_limit_and_more_nodes(cluster, toy_run, expected):
    run = toy_run(**{**OPTIONS, "seconds": 1.3})
    job = cluster.submit(run.script, "--nodes=2", "--time=1", "--signal=USR1@35")
    until(lambda: cluster.job(job)["JobState"] == "PENDING" and cluster.job(job)["Restarts"] == "1", 90, run.output)
    cluster.run("scontrol", "update", f"jobid={job}", "NumNodes=3-3", "NumTasks=6")
    assert cluster.wait(job, 90)["JobState"] == "COMPLETED", run.output()
    assert [e["ranks"] for e in run.events("run_start")][:2] == [4, 6]
    assert_done_once(run, expected)
