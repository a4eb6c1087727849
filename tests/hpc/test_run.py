"""Whole runs through the real launcher: ranks, stops, kills, resumes, failures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import rank_command, rank_environment, start_toy

from hpc.errors import ChangedConfigError, LockedError, RunDirError
from hpc.retry import forget_quarantine
from hpc.rundir import RunDir
from hpc.store.records import read_record, write_record

pytestmark = pytest.mark.mpi


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("the run did not get there in time")


def done(path: Path) -> int:
    try:
        stages = json.loads((path / "progress.json").read_text())["stages"]
    except (OSError, ValueError):
        return 0
    return sum(s["done"] for s in stages)


def results(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((path / "results").iterdir())}


def test_same_answer_on_any_number_of_ranks_and_threads(toy):
    runs = [
        toy("one", 1, units=50, steps=20),
        toy("two", 2, units=50, steps=20),
        toy("three", 3, units=50, steps=20, threads=2),
    ]
    assert [r.code for r in runs] == [0, 0, 0], runs[-1].output
    assert results(runs[0].path) == results(runs[1].path) == results(runs[2].path)
    told = [stage["figures"] for stage in runs[1].json("progress.json")["stages"]]
    assert [sorted(f) for f in told if f] == [["phase", "x"]]  # what a loop says of itself; NaN is not JSON
    assert "oversubscribed: 3 ranks x 2 threads" in runs[2].text("events.jsonl") or len(os.sched_getaffinity(0)) >= 6


def test_nothing_to_do_is_done(toy):
    assert toy(units=0).code == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_results_that_are_not_what_was_asked_for_fail_the_run_and_stay(toy, ranks):
    for _ in "first", "resumed":
        run = toy(ranks=ranks, units=5, steps=3, complaint="the walk led nowhere; start elsewhere")
        assert run.code == 1, run.output
        assert "the walk led nowhere; start elsewhere" in run.output
        assert "Traceback" not in run.output
        assert run.json("failure.json")["expected"]
        assert run.json("progress.json")["state"] == "failed"
        assert {"squares.txt", "walk.txt"} <= results(run.path).keys()
        assert (run.path / "report" / "index.html").is_file()


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 3), (3, 1)])
def test_a_stopped_run_continues_on_other_ranks(toy, tmp_path, first, then):
    options = {"units": 40, "seconds": 0.05, "steps": 30}
    whole = toy("whole", 2, **options)
    path = tmp_path / "run"
    process = start_toy(path, first, **options)
    wait_for(lambda: done(path) >= 5)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 76
    assert json.loads((path / "progress.json").read_text())["state"] == "stopped"
    before = done(path)
    resumed = toy("run", then, **options)
    assert resumed.code == 0, resumed.output
    assert results(path) == results(whole.path)
    assert resumed.events("stage_start")[-2]["restored"] >= before > 0


def test_a_loop_stops_at_a_step_and_goes_on(toy, tmp_path):
    options = {"units": 1, "seconds": 0.02, "steps": 120}
    whole = toy("whole", 1, **options)
    path = tmp_path / "run"
    process = start_toy(path, 2, **options)
    wait_for(lambda: done(path) >= 20)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait(20) == 75
    resumed = toy("run", 3, **options)
    assert resumed.code == 0
    assert resumed.events("stage_start")[-1]["restored"] >= 10
    assert results(path) == results(whole.path)


def test_a_killed_run_loses_at_most_what_was_not_flushed(toy, tmp_path):
    options = {"units": 60, "seconds": 0.03, "checkpoint": {"every": 0.1}}
    path = tmp_path / "run"
    process = start_toy(path, 2, **options)
    wait_for(lambda: done(path) >= 20)
    for rank in json.loads((path / "progress.json").read_text())["ranks"]:
        with suppress(ProcessLookupError):  # mpiexec kills the others, once one is dead
            os.kill(rank["pid"], signal.SIGKILL)
    assert process.wait(20) != 0
    resumed = toy("run", 1, **options)
    assert resumed.code == 0, resumed.output
    assert resumed.events("stage_start")[-1]["restored"] >= 10
    assert resumed.text("results/squares.txt") == toy("whole", **options).text("results/squares.txt")


@pytest.mark.parametrize(("ranks", "number", "code"), [(1, signal.SIGUSR1, 75), (3, signal.SIGTERM, 76)])
def test_a_unit_longer_than_the_grace_period_is_abandoned(toy, tmp_path, ranks, number, code):
    options = {
        "units": 9,
        "seconds": 0.02,
        "slow": ["u00004"],
        "scratch": str(tmp_path),
        "engine": {"grace": 0.5},
        "checkpoint": {"every": 1000},
    }
    path = tmp_path / "run"
    process = start_toy(path, ranks, **options)
    wait_for((tmp_path / "tried-u00004").exists)
    time.sleep(0.5)
    start = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(20) == code
    assert time.monotonic() - start < 10
    assert json.loads((path / "progress.json").read_text())["state"] == "stopped"
    resumed = toy("run", 1, **options)
    assert resumed.code == 0, resumed.output
    assert resumed.events("stage_start")[-1]["restored"] == (4 if ranks == 1 else 8)


def test_a_unit_that_raises_is_retried(toy, tmp_path):
    run = toy(ranks=2, fail_once=["u00003"], scratch=str(tmp_path))
    assert run.code == 0
    assert [e["unit"] for e in run.events("unit_failed")] == ["u00003"]


def test_a_poisoned_unit_is_quarantined_and_the_run_says_so(toy):
    run = toy(ranks=2, fail=["u00003", "u00011"])
    assert run.code == 3
    record = run.json("checkpoints/squares/quarantine.json")
    assert sorted(record) == ["u00003", "u00011"]
    assert record["u00003"]["error"] == "ValueError: poisoned u00003"
    assert "Traceback" in record["u00003"]["traceback"]
    assert run.text("results/squares.txt").startswith("18 ")
    assert run.json("progress.json")["state"] == "quarantined"


def test_quarantined_units_can_be_tried_again(toy, tmp_path):
    scratch = {"fail_once": ["u00003"], "scratch": str(tmp_path), "engine": {"retries": 0}, "steps": 5}
    run = toy(**scratch)
    assert run.code == 3
    assert toy(**scratch).code == 3  # a resume does not try again by itself
    assert forget_quarantine(RunDir(run.path)) == 1
    again = toy(**scratch)
    assert again.code == 0
    assert again.text("results/squares.txt") == toy("whole", steps=5).text("results/squares.txt")
    assert again.json("progress.json")["stages"][0]["restored"] == 19


def test_a_unit_that_kills_its_process_is_quarantined_in_the_end(toy):
    options = {"ranks": 2, "kill": ["u00002"], "units": 6, "seconds": 0.02, "checkpoint": {"every": 0}}
    # mpiexec may kill the other rank before it can say whose death it was: then it takes one death more.
    codes = [toy(**options, engine={"max_unit_deaths": 2}).code for _ in range(4)]
    assert codes[-1] == 3
    assert 0 not in codes
    run = RunDir(toy(**options, engine={"max_unit_deaths": 2}).path)
    assert list(run.quarantined()["squares"]) == ["u00002"]
    assert re.search("died in [23] attempts", run.quarantined()["squares"]["u00002"]["error"])


BROKEN_OFF = (1, 9)
"""What mpiexec itself answers when a rank has failed: its code, or on a busy machine the signal by which the others were
ended. Both are 1 to a user (`hpc.launch.local`)."""


def test_a_rank_that_raises_ends_the_job_in_seconds(toy):
    start = time.monotonic()
    run = toy(ranks=3, fail_setup_on=1)
    assert time.monotonic() - start < 20
    assert run.code in BROKEN_OFF
    failure = run.json("failure.json")
    assert (failure["rank"], failure["stage"]) == (1, "setup")
    assert failure["error"] == "RuntimeError: this rank cannot set up"
    assert "rank 1" in run.output
    assert "this rank cannot set up" in run.output


def test_fail_fast_names_rank_and_unit(toy):
    run = toy(ranks=2, fail=["u00007"], engine={"fail_fast": True, "retries": 0})
    assert run.code in BROKEN_OFF
    assert run.json("failure.json")["unit"] == "u00007"
    assert "unit u00007" in run.output


def test_a_damaged_segment_costs_its_units_only(toy):
    run = toy(units=30)
    truth = run.text("results/squares.txt")
    directory = run.path / "checkpoints" / "squares"
    (directory / "complete.json").unlink()
    (segment,) = directory.glob("seg-*.h5")
    segment.write_bytes(segment.read_bytes()[:-100])
    again = toy(units=30)
    assert again.code == 0
    assert again.text("results/squares.txt") == truth
    assert "cannot be read" in again.events("fallback")[0]["reason"]


def test_two_processes_cannot_work_in_one_run(toy, tmp_path):
    path = tmp_path / "run"
    first = start_toy(path, 1, units=200, seconds=0.05)
    wait_for(lambda: done(path) >= 1)
    with pytest.raises(LockedError, match="being worked on by process"):
        start_toy(path, units=200, seconds=0.05)
    late = subprocess.run(rank_command(path, 1), env=rank_environment(1), capture_output=True, text=True)
    assert late.returncode == 2
    assert "being worked on by process" in late.stderr
    assert not (path / "failure.json").exists()
    first.terminate()
    assert first.wait(20) == 76


def test_a_changed_config_is_refused_with_the_difference(toy, tmp_path):
    run = toy(units=4)
    with pytest.raises(
        ChangedConfigError, match=r"(?s)- job.units: 4.*\+ job.units: 5".replace("- ", "-").replace(r"\+ ", r"\+")
    ):
        start_toy(run.path, units=5)
    assert toy(units=4, ranks=2, checkpoint={"every": 1}).code == 0  # the rest may change


def test_a_run_of_another_version_is_refused(toy):
    run = toy(units=4)
    provenance = read_record(run.path / "provenance.json")
    write_record(run.path / "provenance.json", {**provenance, "version": "0.0.1"})
    with pytest.raises(RunDirError, match=r"0\.0\.1.*pip install"):
        start_toy(run.path, units=4)
    write_record(run.path / "provenance.json", {**provenance, "format": 99})
    with pytest.raises(RunDirError, match="format 99"):
        start_toy(run.path, units=4)


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(RunDirError, match="neither empty nor a run"):
        start_toy(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "important"


def test_a_read_only_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"run\.dir"):
        start_toy(tmp_path / "file" / "run")


def test_provenance_tells_how_the_run_was_made(toy):
    toy(units=4)
    run = toy(units=4, ranks=2)
    record = run.json("provenance.json")
    assert [a["ranks"] for a in record["attempts"]] == [1, 2]
    assert "numpy" in record["attempts"][1]["packages"]
    assert "MPI" in record["attempts"][1]["mpi"]
    assert record["attempts"][0]["mpi"] is None  # one process does not import MPI


def test_ten_thousand_skewed_units_on_four_ranks(toy):
    """Within 10 % of the ideal makespan, and under a millisecond of the engine's time per unit."""
    run = toy(ranks=4, units=10_000, seconds=0.002, skew=20)
    assert run.code == 0, run.output
    (end,) = run.events("stage_end")
    ranks = end["ranks"]
    busy = [r["busy"] for r in ranks]
    wall = max(r["start"] + r["wall"] for r in ranks) - min(r["start"] for r in ranks)
    assert sum(r["units"] for r in ranks) == 10_000
    engine = (sum(r["wall"] for r in ranks) - sum(busy)) / 10_000
    print(f"makespan {wall:.2f} s, ideal {sum(busy) / 4:.2f} s, engine {1e3 * engine:.3f} ms a unit")
    assert wall <= 1.1 * sum(busy) / 4
    assert engine < 1e-3
