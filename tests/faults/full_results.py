"""Faults of the disk that results are written to: full, and at times with room again before the run gives up."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from harness import PATIENCE, Harness, Struck, output_of
from whole_runs import small_disk, start, start_ranks, wait_until_free

PAGE = 4
"""Kilobytes in which a small file system counts."""


def results_on_a_full_disk(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let results, HDF5 files of all workloads, meet a full disk at any of their bytes: a retry, no crash, no loss."""
    writer = str(rng.choice(["engine", "lsq", "photometry", "xpcs"]))
    units = 400 if writer == "engine" else 12
    name = f"tables of {writer}"
    scenario = harness.scenario(name, of="tablesjob.TablesJob", units=units, seconds=0.0, every=9.0, writer=writer)
    config = {**scenario.config, "checkpoint": {**scenario.config["checkpoint"], "deadline": 2.0}}
    disk, path = harness.new_path(), harness.new_path()
    harness.prepare(config, disk)
    results = disk / "results"
    shutil.rmtree(results, ignore_errors=True)
    needed = sum(map(len, scenario.truth.files.values())) // 1024
    with small_disk(results, f"{PAGE * int(rng.integers(1, max(2, needed // PAGE)))}k"):
        ranks = int(rng.integers(1, 3))
        process = start_ranks(disk, ranks) if ranks > 1 else start(disk, [sys.executable, "-m", "hpc.rank", str(disk)])
        full = _until_full(disk, process)
        assert process.poll() in (None, 0, 1), f"exit {process.poll()}: {output_of(disk).read_text()}"
        if relieved := rng.random() < 0.6:
            _make_room(results)
        code = harness.end_of(process)
        said = output_of(disk).read_text()
        assert code in (0, 1), f"exit {code} on a full disk: {said}"
        assert not relieved or code == 0, f"there was room again, but the run failed with {code}: {said}"
        assert code == 0 or os.strerror(errno.ENOSPC) in said, said
        if code:
            _make_room(results)
            wait_until_free(disk)
            code = harness.resume(disk, config, int(rng.integers(1, 4)))
        shutil.copytree(disk, path)
    _expect_squares(path / "results" / "table.h5", units)
    return Struck(path, scenario, faults=int(full), done=code == 0)


def _until_full(run: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the run complains about the disk; False if it ended without."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (run / "events.jsonl").exists() and "cannot write now" in (run / "events.jsonl").read_text():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    msg = f"the run neither ends nor complains: {output_of(run).read_text()}"
    raise AssertionError(msg)


def _make_room(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


def _expect_squares(file: Path, units: int) -> None:
    """Read a table without the engine: all squares are there, once, and right."""
    names = ("columns/square/data", "squares", "g/squares")
    with h5py.File(file, "r") as table:
        found = next(table[name][()] for name in names if name in table)
    assert np.array_equal(found, np.arange(units) ** 2.0), f"{file}: {found}"
