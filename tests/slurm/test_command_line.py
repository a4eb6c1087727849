"""`tessera … cluster=slurm` on a real cluster: submit, cancel, go on elsewhere, wait for others, sweep."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from slurm_jobs import QUICK, TOY, TWO_BY_TWO, Cluster, Stage, job_in, until

ONE_BY_ONE = ("cluster.nodes=1", "cluster.ranks_per_node=1", "cluster.sbatch=null")

TINY_ARRAYS = "import hpc.launch.slurm as s; s.array_limit = lambda: 2; from hpc.cli.main import main; main()"
"""Arrays of two at most, as on a site with a very small MaxArraySize."""


def statuses(cluster: Cluster, folder: Path) -> dict[str, dict]:
    """What `tessera status` knows of the runs in a folder."""
    return {Path(run["path"]).name: run for run in json.loads(cluster.tessera("status", folder, "--json"))}


def queue(cluster: Cluster, job: str) -> list[str]:
    """Return the states of what is left of a job or an array."""
    return cluster.run("squeue", "--array", "--noheader", "--jobs", job, "--format=%T", codes=(0, 1)).split()


def test_a_cancelled_run_goes_on_with_three_nodes(stage):
    run = stage.submit("job.seconds=0.6")
    run.get_going()
    stage.cluster.tessera("cancel", run.path)
    until(lambda: stage.cluster.job(run.job)["JobState"] not in {"RUNNING", "COMPLETING"}, 30)
    assert run.status()["state"] == "stopped"
    second = stage.resume(run, "cluster.nodes=3")
    assert stage.cluster.wait(second.job)["JobState"] == "COMPLETED", run.said()
    shown = run.status()
    assert (shown["state"], shown["size"], shown["attempt"]) == ("done", 6, 2)
    assert len({rank["host"] for rank in shown["ranks"]}) == 3
    stage.assert_right(run)


def test_the_wrong_mpi_is_named(stage):
    run = stage.submit("cluster.srun=['--mpi=none']")
    assert stage.cluster.wait(run.job)["JobState"] == "FAILED"
    shown = run.status()
    assert shown["state"] == "failed"
    assert "4 ranks were started but this one sees a world of 1" in shown["message"]
    assert "--mpi=pmi2" in shown["message"]
    assert not (run.path / "checkpoints" / "squares").exists()


def test_a_run_waits_for_another(stage):
    first = stage.submit("job.seconds=0.25", *ONE_BY_ONE, name="first")
    second = stage.submit(*ONE_BY_ONE, f"cluster.after={first.path}", name="second")
    shown = second.status()
    assert (shown["state"], "Dependency" in shown["message"]) == ("pending", True), shown
    assert stage.cluster.wait(second.job)["JobState"] == "COMPLETED"
    assert first.events("run_end")[-1]["t"] <= second.events("run_start")[0]["t"]
    stage.assert_right(second)


def test_a_sweep_that_is_longer_than_an_array(stage):
    sweep = stage.folder / "sweep"
    words = [*TOY, *QUICK, *TWO_BY_TWO, *ONE_BY_ONE, "job.units=3", "seed=1,2,3", "cluster.array_parallelism=2"]
    said = stage.cluster.run(sys.executable, "-c", TINY_ARRAYS, "-m", *words, f"run.sweep_dir={sweep}")
    first, second = said.partition("SLURM jobs ")[2].partition(",")[0], said.partition(", ")[2].partition(",")[0]
    assert stage.cluster.job(second)["Dependency"].startswith(f"afterany:{first}_"), stage.cluster.job(second)
    until(lambda: not queue(stage.cluster, f"{first},{second}"), 90)
    assert [run["state"] for run in statuses(stage.cluster, sweep).values()] == ["done"] * 3
    started = {n: json.loads((sweep / n / "events.jsonl").read_text().splitlines()[0])["t"] for n in ("0", "1", "2")}
    assert started["2"] > max(started["0"], started["1"])


@pytest.mark.slow
def test_one_poisoned_member_of_twelve(stage: Stage):
    cluster, sweep = stage.cluster, stage.folder / "sweep"
    sizes = ",".join(str(n) for n in range(2, 14))  # the largest alone has the poisoned unit
    words = [*TOY, *QUICK, *TWO_BY_TWO, f"job.units={sizes}", "job.fail_once=[u00012]", f"job.scratch={stage.folder}"]
    once = ["engine.retries=0", "engine.fail_fast=true", "cluster.array_parallelism=3"]
    job = job_in(cluster.tessera("-m", *words, *once, *ONE_BY_ONE, f"run.sweep_dir={sweep}"))
    most = 0

    def ended() -> bool:
        nonlocal most
        states = queue(cluster, job)
        most = max(most, states.count("RUNNING"))
        return not states

    until(ended, 150)
    assert most <= 3
    members = statuses(cluster, sweep)
    assert len(members) == 12
    failed = [name for name, member in members.items() if member["state"] != "done"]
    assert [members[name]["state"] for name in failed] == ["failed"], members
    assert "first try of u00012" in members[failed[0]]["message"]
    second = job_in(cluster.tessera("resume", sweep))
    assert cluster.wait(second)["JobState"] == "COMPLETED"
    after = statuses(cluster, sweep)
    assert {member["state"] for member in after.values()} == {"done"}
    assert [name for name in after if after[name]["attempt"] != members[name]["attempt"]] == failed
    cluster.tessera("report", sweep)
    assert len((sweep / "sweep.csv").read_text().splitlines()) == 13
