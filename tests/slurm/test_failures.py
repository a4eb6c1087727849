"""What breaks in a cluster: ranks, step daemons, node daemons, cables, and the wrong MPI."""

from __future__ import annotations

import json
import sys
import time

import pytest
from slurm_jobs import kill, until

OPTIONS = {"units": 120, "seconds": 0.6, "steps": 0}
RESULT = "120 568820 e516c1786552da670a117d882273631d873b4e1f68a4ab9dc6a8b88dc0dcc8c8\n"
"""Of the 120 units, whoever computes them; `test_own_script` compares it with a run on one process."""


def result(run):
    return (run.path / "results" / "squares.txt").read_text()


def test_one_rank_raising_ends_the_job(cluster, toy_run):
    run = toy_run(units=40, seconds=0.2, fail=["u00007"], engine={"fail_fast": True, "retries": 0})
    job = cluster.submit(run.script, "--nodes=2")
    failure = run.path / "failure.json"
    until(failure.exists, 30, run.output)
    raised = time.monotonic()
    assert cluster.wait(job, 10)["JobState"] == "FAILED"
    assert time.monotonic() - raised < 10
    record = run.failure()
    assert (record["stage"], record["unit"]) == ("squares", "u00007")
    assert record["host"] in {"n1", "n2"}
    assert "ValueError: poisoned u00007" in record["traceback"]
    status = json.loads(cluster.run(sys.executable, "-m", "hpc", "status", run.path, "--json", check=False))
    assert status["state"] == "failed", status
    assert "poisoned u00007" in status["message"]


def test_four_silent_singletons_are_refused(cluster, toy_run):
    run = toy_run(mpi="none")
    job = cluster.wait(cluster.submit(run.script, "--nodes=2"))
    assert job["JobState"] == "FAILED"
    assert "4 ranks were started but this one sees a world of 1" in run.output()
    assert "--mpi=pmi2" in run.output()
    assert not (run.path / "checkpoints" / "squares").exists()


def assert_survived(cluster, run, job):
    """The same job went on by itself, on healthy nodes, to the right answer."""
    assert cluster.wait(job, 90)["JobState"] == "COMPLETED", run.output()
    assert int(cluster.job(job)["Restarts"]) >= 1
    assert result(run) == RESULT
    assert run.events("run_end")[-1]["state"] == "done"


@pytest.mark.slow
def test_a_killed_step_daemon(cluster, toy_run):
    """Its ranks work on without it, but can neither end properly nor tell srun."""
    run = toy_run(**OPTIONS)
    job = cluster.submit(run.script, "--nodes=2")
    until(lambda: run.done() >= 20, 20, run.output)
    kill(cluster.stepd(job, cluster.nodes(job)[1]))
    assert_survived(cluster, run, job)


@pytest.mark.slow
def test_a_killed_node_daemon(cluster, toy_run):
    """SLURM gives up the node of the batch script, which lives on there and must not disturb its successor."""
    run = toy_run(**OPTIONS)
    job = cluster.submit(run.script, "--nodes=2")
    until(lambda: run.done() >= 20, 20, run.output)
    node = cluster.nodes(job)[0]
    kill(cluster.daemon(node))
    try:
        assert_survived(cluster, run, job)
    finally:
        cluster.devcluster("mend", node)


@pytest.mark.slow
def test_a_node_that_is_cut_off(cluster, toy_run):
    """The node of rank 0: what keeps computing there must not spoil what its successor writes."""
    run = toy_run(**OPTIONS)
    job = cluster.submit(run.script, "--nodes=2")
    until(lambda: run.done() >= 20, 20, run.output)
    node = cluster.nodes(job)[0]
    cluster.devcluster("cut", node)
    try:
        assert_survived(cluster, run, job)
    finally:
        cluster.devcluster("mend", node)
