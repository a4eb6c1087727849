"""Shared memory that dead ranks of MPI left: removed, and only that."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import start_toy

from hpc.leftovers import SHARED_MEMORY, clear

HOLD = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
file = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "mapped":
    assert libc.mmap(None, 4096, 3, 1, file, 0)
    os.close(file)
print("ready", flush=True)
time.sleep(60)
"""


def segment(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_segment_is_kept_while_somebody_holds_it_and_removed_when_nobody_does(tmp_path, how):
    path = segment(tmp_path, "mpich_shm_1a_0")
    with subprocess.Popen([sys.executable, "-c", HOLD, path, how], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert clear(tmp_path) == []
        holder.kill()
    assert clear(tmp_path) == [path]
    assert not path.exists()


def test_only_regular_files_of_mpi_that_are_ones_own_are_touched(tmp_path):
    kept = [segment(tmp_path, "data"), segment(tmp_path, "my_mpich_shm_1_0")]
    (tmp_path / "mpich_shm_link").symlink_to(kept[0])
    os.mkfifo(tmp_path / "mpich_shm_fifo")
    (tmp_path / "mpich_shm_folder").mkdir()
    if os.geteuid() == 0:
        os.chown(segment(tmp_path, "mpich_shm_other"), 12345, 12345)
    before = sorted(tmp_path.iterdir())
    gone = [segment(tmp_path, name) for name in ("mpich_shm_2_0", "vader_segment.n1.0.1.0", "sm_segment.n1.0.1.0")]
    assert sorted(clear(tmp_path)) == sorted(gone)
    assert sorted(tmp_path.iterdir()) == before
    assert clear(tmp_path / "nowhere") == []


def _start(folder: Path, barrier, number: int, queue) -> None:
    """Be one of several ranks that start at once: clear, then open the segment as MPICH does, and meet the others."""
    barrier.wait(30)
    clear(folder)
    if number == 0:
        file = os.open(folder / "mpich_shm_77_0", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(file, 4096)
    else:
        end = time.monotonic() + 20
        while not (folder / "mpich_shm_77_0").exists() or (folder / "mpich_shm_77_0").stat().st_size != 4096:
            assert time.monotonic() < end
            time.sleep(0.001)
        file = os.open(folder / "mpich_shm_77_0", os.O_RDWR)
    memory = mmap.mmap(file, 4096)
    memory[number] = 1 + number
    barrier.wait(30)
    queue.put(bytes(memory[:4]))


def test_ranks_that_start_together_over_an_old_segment_meet_in_a_new_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        old = tmp_path / "mpich_shm_77_0"
        old.write_bytes(b"old!" * 10)
        barrier, queue = context.Barrier(4), context.Queue()
        ranks = [context.Process(target=_start, args=(tmp_path, barrier, n, queue)) for n in range(4)]
        for rank in ranks:
            rank.start()
        assert [queue.get(timeout=40) for _ in ranks] == [bytes([1, 2, 3, 4])] * 4
        for rank in ranks:
            rank.join()
        old.unlink()


@pytest.mark.mpi
def test_killed_ranks_leave_nothing_behind(tmp_path):
    before = set(SHARED_MEMORY.iterdir())
    path = tmp_path / "run"
    process = start_toy(path, 2, units=200, seconds=0.05)
    end = time.monotonic() + 30
    while not (path / "progress.json").exists() or '"running"' not in (path / "progress.json").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    mapped = set()
    for rank in json.loads((path / "progress.json").read_text())["ranks"]:
        lines = Path(f"/proc/{rank['pid']}/maps").read_text().splitlines()
        mapped |= {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/mpich_shm_" in line}
        os.kill(rank["pid"], signal.SIGKILL)
    process.wait(20)
    assert mapped, "this MPI has no segment"
    assert all(name.endswith(" (deleted)") for name in mapped)
    assert not {path for path in set(SHARED_MEMORY.iterdir()) - before if str(path) in str(mapped)}


@pytest.mark.mpi
def test_ranks_clear_what_dead_runs_left_before_mpi_starts(tmp_path):
    old = segment(SHARED_MEMORY, f"mpich_shm_of_a_dead_run_{os.getpid()}")
    try:
        assert start_toy(tmp_path / "run", 2, units=2).wait(60) == 0
        assert not old.exists()
    finally:
        old.unlink(missing_ok=True)
