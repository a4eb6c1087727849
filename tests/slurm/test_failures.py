"""What ends a job before its time: the time limit, preemption, dead daemons, cables, and a rank that raises.

Every run is submitted by ``tessera … cluster=slurm``; whatever happens, its results are those of an undisturbed one,
and no unit that was saved is computed again.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
from slurm_jobs import kill, until


@pytest.mark.slow
def test_a_time_limit_and_more_nodes(stage):
    run = stage.submit("job.seconds=2.2", "cluster.time='0:01:00'")
    back = {"JobState": "PENDING", "Restarts": "1"}
    until(lambda: back.items() <= stage.cluster.job(run.job).items(), 100, run.said)
    stage.cluster.run("scontrol", "hold", run.job)  # or it would go on with two nodes in a few seconds
    assert run.events("requeue")[-1]["reason"].startswith("the time limit")
    stage.cluster.tessera("cancel", run.path)
    done = run.done()
    second = stage.resume(run, "cluster.nodes=3", "cluster.time='0:05:00'")
    assert stage.cluster.wait(second.job)["JobState"] == "COMPLETED", run.said()
    stage.assert_right(run)
    assert [e["ranks"] for e in run.events("run_start")] == [4, 6]
    assert run.events("stage_start")[1]["restored"] >= done > 0


@pytest.mark.slow
def test_a_limit_that_is_shorter_than_a_unit(stage):
    run = stage.submit("job.seconds=300", "cluster.time='0:01:00'")
    assert stage.cluster.wait(run.job, 120)["Restarts"] == "0", run.said()
    shown = run.status()
    assert shown["state"] == "stopped"
    assert "a unit takes longer than the time limit leaves; raise cluster.time" in shown["message"]


@pytest.mark.slow
def test_ranks_that_are_killed_while_they_start_come_back_twice(stage):
    """As by too little memory for what they import; the shell of the batch script lives on."""
    python = stage.folder / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *comeback*) exec {sys.executable} "$@";; *) kill -9 $$;; esac\n')
    python.chmod(0o755)
    run = stage.submit(f"cluster.python={python}")
    until(lambda: "do not come back" in run.said() or "does not come back" in run.said(), 100, run.said)
    assert len(run.events("requeue")) == 2
    assert "before they began to work, 3 times one after the other" in run.status()["message"]


@pytest.mark.slow
def test_nodes_with_different_code_are_refused(stage):
    """One node has the toy workload of another day, as where packages are installed on every node's own disk."""
    other = stage.folder / "other"
    other.mkdir()
    toy = Path(__file__).parents[1] / "hpc" / "toyjob.py"
    (other / "toyjob.py").write_text(f"{toy.read_text()}\n# of another day\n")
    (other / "sep-0.0.1.dist-info").mkdir()
    (other / "sep-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sep\nVersion: 0.0.1\n")
    python = stage.folder / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$SLURM_NODEID" = 0 ] || export PYTHONPATH="{other}:$PYTHONPATH"\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    run = stage.submit(f"cluster.python={python}")
    assert stage.cluster.wait(run.job)["JobState"] == "FAILED", run.said()
    message = run.status()["message"]
    assert "the nodes have different code" in message
    assert "toyjob.py: was edited" in message
    second = stage.resume(run, "--any-version")
    assert stage.cluster.wait(second.job)["JobState"] == "COMPLETED", run.said()
    stage.assert_right(run)
    code, libraries = run.status()["identity"]["others"]
    assert "different code on different nodes" in code
    assert "different libraries on different nodes" in libraries
    assert ": sep 0.0.1 beside " in libraries


@pytest.mark.slow
def test_a_preempted_run(stage):
    """SLURM tells the ranks with SIGTERM, as if somebody had cancelled the job."""
    run = stage.submit("job.seconds=0.3")
    run.get_going()
    nodes = ",".join(stage.cluster.nodes(run.job))
    urgent = stage.folder / "urgent.sh"
    urgent.write_text("#!/bin/sh\nsleep 1\n")
    stage.sbatch(urgent, "--partition=high", "--nodes=2", f"--nodelist={nodes}", "--exclusive")
    stage.assert_came_back(run)


@pytest.mark.slow
def test_scontrol_requeue(stage):
    run = stage.submit("job.seconds=0.3")
    run.get_going()
    stage.cluster.run("scontrol", "requeue", run.job)
    stage.assert_came_back(run)


@pytest.mark.slow
def test_a_killed_step_daemon(stage):
    """Its ranks work on without it, but can neither end properly nor tell srun."""
    run = stage.submit("job.seconds=0.3", "cluster.srun=['--wait=5']")
    run.get_going()
    kill(stage.cluster.stepd(run.job, stage.cluster.nodes(run.job)[1]))
    stage.assert_came_back(run)


@pytest.mark.slow
def test_a_killed_node_daemon(stage):
    """SLURM gives up the node of the batch script, which lives on there and must not disturb its successor."""
    run = stage.submit("job.seconds=0.5")
    run.get_going()
    node = stage.cluster.nodes(run.job)[0]
    kill(stage.cluster.daemon(node))
    try:
        stage.assert_came_back(run)
    finally:
        stage.cluster.devcluster("mend", node)


@pytest.mark.slow
def test_a_node_that_is_cut_off(stage):
    """The node of rank 0: its ranks compute on, unreachable, until they see that the run goes on without them."""
    run = stage.submit("job.seconds=0.5")
    run.get_going()
    node = stage.cluster.nodes(run.job)[0]
    assert len(stage.cluster.ranks(run.job, node)) == 2
    stage.cluster.devcluster("cut", node)
    try:
        stage.assert_came_back(run)
        until(lambda: not stage.cluster.ranks(run.job, node), 30, lambda: "its ranks live on")
    finally:
        stage.cluster.devcluster("mend", node)
    assert re.search(r"has taken this run over|its lock is gone", (run.path / "logs" / "rank-00000.log").read_text())


@pytest.mark.slow
def test_hurt_ranks_on_one_node(stage):
    """The requeued job has the job, the step and the shared memory of the one before."""
    _hurt(stage, 1)


@pytest.mark.slow
def test_hurt_ranks_on_two_nodes(stage):
    _hurt(stage, 2)


def _hurt(stage, nodes: int) -> None:
    """Let ranks abandon a unit that outlasts the grace period, and kill one in the next stay."""
    words = [f"cluster.nodes={nodes}", "job.slow=[u00010]", f"job.scratch={stage.folder}", "engine.grace=3"]
    run = stage.submit("job.seconds=0.3", *words)
    run.get_going()
    stage.cluster.run("scancel", "--signal=USR2", run.job)
    until(lambda: run.progress()["attempt"] == 2, 60, run.said)
    assert run.events("requeue")[-1]["reason"].startswith("the time limit")
    assert run.events("abandoned")
    run.get_going(run.done() + 10)
    kill(run.progress()["ranks"][-1]["pid"])
    stage.assert_came_back(run)
    assert [e["reason"][:10] for e in run.events("requeue")] == ["the time l", "its ranks "]
    assert len(run.events("run_start")) == 3


def test_cancelled_and_signalled_by_hand(stage):
    """USR1 asks for coming back, a plain scancel for an end."""
    run = stage.submit("job.seconds=0.3")
    run.get_going(10)
    stage.cluster.run("scancel", "--signal=USR1", run.job)
    until(lambda: run.progress()["attempt"] == 2, 60, run.said)
    run.get_going(60)
    stage.cluster.run("scancel", run.job)
    ended = stage.cluster.wait(run.job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "1"), run.said()
    time.sleep(8)  # longer than a requeued job would wait
    assert stage.cluster.job(run.job)["JobState"] == "CANCELLED"
    assert run.status()["state"] == "stopped"
    second = stage.resume(run)
    assert stage.cluster.wait(second.job)["JobState"] == "COMPLETED", run.said()
    stage.assert_right(run)


def test_one_rank_raising_ends_the_job(alone):
    run = alone.submit("job.seconds=0.2", "job.fail=[u00007]", "engine.fail_fast=true", "engine.retries=0")
    until((run.path / "failure.json").exists, 30, run.said)
    raised = time.monotonic()
    assert alone.cluster.wait(run.job, 10)["JobState"] == "FAILED"
    assert time.monotonic() - raised < 10
    assert alone.cluster.job(run.job)["Restarts"] == "0"
    shown = run.status()
    failure = shown["failure"]
    assert (shown["state"], failure["stage"], failure["unit"]) == ("failed", "squares", "u00007")
    assert failure["rank"] in range(4)
    assert failure["host"] in {f"n{k}" for k in range(1, 15)}
    assert "ValueError: poisoned u00007" in failure["traceback"]
    text = " ".join(alone.cluster.tessera("status", run.path).split())
    assert f"rank {failure['rank']} ({failure['host']}) failed in stage squares, unit u00007" in text
    assert "toyjob.py" in text
    assert "ValueError: poisoned u00007" in text
    record = json.loads((run.path / "failure.json").read_text())
    assert record["exit_code"] == 1
