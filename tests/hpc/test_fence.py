"""What is cut off ends, and what has lost its run writes nothing more."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import output_of, start_toy

from hpc.errors import LockLostError
from hpc.fence import patience
from hpc.store.lock import Claim, RunLock
from hpc.store.segments import Finished, write_segment
from hpc.store.writer import Writer

QUICK = {"engine": {"heartbeat": 0.02}, "checkpoint": {"every": 0.1}}


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def started(path: Path, ranks: int) -> list[int]:
    """Wait for the first saved units; return the ranks' processes."""
    until(lambda: list(path.glob("checkpoints/squares/seg-*.h5")))
    until(lambda: len(json.loads((path / "progress.json").read_bytes())["ranks"]) == ranks)
    return [r["pid"] for r in json.loads((path / "progress.json").read_bytes())["ranks"]]


@pytest.mark.mpi
def test_a_rank_that_hears_nothing_of_rank_0_dies(tmp_path):
    path = tmp_path / "run"
    process = start_toy(path, 2, units=400, seconds=0.05, **QUICK)
    pids = started(path, 2)
    os.kill(pids[0], signal.SIGSTOP)
    began = time.monotonic()
    until(lambda: not Path(f"/proc/{pids[1]}").exists())
    assert time.monotonic() - began > patience(0.02, 0.02) - 0.6  # not before its time
    assert process.wait(30) != 0  # mpiexec ends the other
    assert "nothing was heard of rank 0 for 3 s" in output_of(path).read_text()
    assert not (path / "failure.json").exists()


@pytest.mark.mpi
def test_a_run_that_was_suspended_goes_on(tmp_path):
    path = tmp_path / "run"
    process = start_toy(path, 2, units=100, seconds=0.02, **QUICK)
    pids = started(path, 2)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert process.wait(60) == 0, output_of(path).read_text()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_was_taken_over_ends_without_writing(tmp_path, ranks):
    path = tmp_path / "run"
    process = start_toy(path, ranks, units=400, seconds=0.05, **QUICK)
    started(path, ranks)
    (path / "lock").unlink()
    winner = RunLock(path / "lock")
    before = sorted(path.glob("checkpoints/squares/*.h5"))
    code = process.wait(30)
    assert code == 2 or (ranks > 1 and code), output_of(path).read_text()  # mpiexec may give the code of the killed
    assert f"process {os.getpid()} on" in output_of(path).read_text()
    assert not (path / "failure.json").exists()
    assert (path / "lock").read_bytes() == winner.claim.content
    after = sorted(path.glob("checkpoints/squares/*.h5"))
    assert len(after) - len(before) <= ranks  # what was renamed while we looked
    now = time.time()
    os.utime(path / "lock", (now - 100, now - 100))
    assert (path / "lock").stat().st_mtime < now - 50  # nobody of the old attempt touches it


def test_a_claim_knows_its_lock(tmp_path):
    (tmp_path / "config.yaml").touch()
    lock = RunLock(tmp_path / "lock")
    lock.claim.verify()
    lock.release()
    with pytest.raises(LockLostError, match="its lock is gone"):
        lock.claim.verify()
    other = RunLock(tmp_path / "lock")
    with pytest.raises(LockLostError, match=f"process {os.getpid()} on .* has taken this run over"):
        lock.claim.verify()
    other.claim.verify()
    with pytest.raises(FileNotFoundError):  # the whole directory is away: nothing is known
        Claim(tmp_path / "no" / "lock", b"").verify()


def test_nothing_is_put_in_place_without_the_lock(tmp_path):
    (tmp_path / "config.yaml").touch()
    lock = RunLock(tmp_path / "lock")
    lock.release()
    unit = Finished("a", {}, 0.1, 1, 0)
    with pytest.raises(LockLostError):
        write_segment(tmp_path / "seg-1.h5", "s", [unit], lock.claim.verify)
    assert not list(tmp_path.glob("seg-*"))
    from hpc.settings import CheckpointSettings

    book = Writer(tmp_path, "s", 1, 0, CheckpointSettings(every=0.0), print, lock.claim.verify)
    book.add(unit)
    with pytest.raises(LockLostError):
        book.drain()
    book = Writer(tmp_path, "s", 1, 0, CheckpointSettings(), print, lock.claim.verify)
    book.save(1, {}, {})
    with pytest.raises(LockLostError):
        book.drain()
    assert not list(tmp_path.glob("gen-*"))
