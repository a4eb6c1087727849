"""A stop signal costs nothing that was finished, whatever another rank or its disk is busy with."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import output_of, start_toy

pytestmark = pytest.mark.mpi


def progress(path: Path) -> dict:
    try:
        return json.loads((path / "progress.json").read_text())
    except (OSError, ValueError):
        return {"stages": [], "ranks": []}


@pytest.mark.parametrize("told", ["all", "rank 0", "rank 1"])
def test_no_rank_leaves_before_all_have_saved(tmp_path, told):
    """Rank 0 gives its unit up after the grace period, while rank 1 still saves what it had finished."""
    path = tmp_path / "run"
    options = {"_target_": "badends.SlowDisk", "checkpoint": {"every": 1000, "deadline": 60}, "engine": {"grace": 0.3}}
    process = start_toy(path, 2, **options)
    end = time.monotonic() + 40
    while sum(s["done"] for s in progress(path)["stages"]) < 12 or len(progress(path)["ranks"]) < 2:
        assert time.monotonic() < end, output_of(path).read_text()
        time.sleep(0.05)
    assert progress(path)["stages"][0]["saved"] == 0
    pids = {f"rank {rank['rank']}": rank["pid"] for rank in progress(path)["ranks"]}
    os.kill(pids.get(told, process.pid), signal.SIGUSR1)
    assert process.wait(40) == 75, output_of(path).read_text()
    ended = progress(path)
    assert (ended["state"], ended["wish"]) == ("stopped", "requeue")
    assert (ended["stages"][0]["done"], ended["stages"][0]["saved"]) == (12, 12)
    from hpc.store.segments import read_columns

    stage = path / "checkpoints" / "units"
    keys = sorted(key for file in stage.glob("seg-*.h5") for key in read_columns(file, values=False)[0])
    assert keys == [f"u{k:03d}" for k in range(12)]
    journals = "".join(file.read_text() for file in stage.glob("begun-*"))
    assert journals.splitlines().count("-long") == 1  # given up, which is no death
    assert not (path / "lock").exists()


def test_what_was_finished_is_saved_at_the_signal_and_not_after_the_grace_period(tmp_path):
    """A kill in the middle of the grace period costs nothing that was finished before the signal."""
    path = tmp_path / "run"
    scratch = {"scratch": str(tmp_path), "slow": ["u00000"], "skew": 1.0}
    process = start_toy(path, checkpoint={"every": 1000}, engine={"grace": 600}, units=20, **scratch)
    end = time.monotonic() + 40
    while not any(rank["unit"] == "u00000" for rank in progress(path)["ranks"]):
        assert time.monotonic() < end, output_of(path).read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    while not list(path.glob("checkpoints/squares/seg-*.h5")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait(20)
