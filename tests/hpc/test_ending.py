"""How ranks end: at once when something fails, in whatever thread, and as done when they are done."""

from __future__ import annotations

import signal
import time

import pytest
from conftest import start_toy

pytestmark = pytest.mark.mpi
BAD = {"_target_": "badends.BadEnd"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_fails_while_its_writer_writes_ends(toy, ranks):
    run = toy(ranks=ranks, how="raise", megabytes=64, checkpoint={"every": "1 steps"}, **BAD)
    # A rank that hears of the other's MPI_Abort in the middle of a save may crash in HDF5 (some 3 of 100 times): mpiexec
    # then answers 11. Whoever asks reads the record of this stay first, so the run has failed by itself all the same.
    assert run.code in ((1, 11) if ranks > 1 else (1,)), run.output
    failure = run.json("failure.json")
    assert (failure["error"], failure["stage"]) == ("FloatingPointError: the model is not finite", "steps")


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_a_failing_rank_has_finished_is_saved(toy, ranks):
    options = {"units": 14, "checkpoint": {"every": 1000}, "seconds": 0.01}
    engine = {"fail_fast": True, "retries": 0}
    run = toy(ranks=ranks, fail=["u00013"], engine=engine, **options)
    assert run.code == 1, run.output
    assert run.json("failure.json")["unit"] == "u00013"
    mine = f"seg-0001-{run.json('failure.json')['rank']:05d}-000000.h5"
    assert (run.path / "checkpoints" / "squares" / mine).is_file()


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_exception_in_a_thread_of_the_engine_ends_the_run(toy, ranks):
    """A figure that JSON does not take: without its heartbeat a run looks lost, and others may take it over."""
    start = time.monotonic()
    run = toy(ranks=ranks, how="figures", **BAD)
    assert run.code != 0
    assert time.monotonic() - start < 25  # the steps take 30 s
    failure = run.json("failure.json")
    assert failure["error"].startswith("TypeError: Object of type Decimal"), failure
    assert "raised in the thread 'heartbeat' of the engine" in failure["traceback"]
    assert (run.code, failure["exit_code"]) == (1, 1)


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGTERM), (2, signal.SIGUSR2)])
def test_a_signal_while_the_report_is_drawn_changes_nothing(toy, ranks, number):
    run = toy(ranks=ranks, signal=int(number), **BAD)
    assert run.code == 0, run.output
    progress = run.json("progress.json")
    assert (progress["state"], progress["wish"]) == ("done", "")
    assert progress["stages"][0]["figures"] == {"n": 5}  # a number of numpy, told as one of Python
    assert not run.events("stop")


def test_rank_0_writes_no_more_often_than_the_heartbeat(tmp_path):
    path = tmp_path / "run"
    process = start_toy(path, units=30, seconds=0.2, engine={"heartbeat": 60})
    written = set()
    while process.poll() is None:
        if (path / "progress.json").exists():
            written.add((path / "progress.json").stat().st_mtime_ns)
        time.sleep(0.002)
    assert process.wait() == 0
    assert 3 <= len(written) <= 8, len(written)  # twice a second it would be 12 and the ends of the stages
