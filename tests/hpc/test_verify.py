"""`tessera verify` reports every kind of damage, changes nothing, and does not mind a run at work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import CHECKOUT, start_toy

from hpc.cli.main import main
from hpc.rundir import RunDir
from hpc.store.atomic import read_hdf5, write_hdf5
from hpc.store.records import read_record, write_record
from hpc.store.verify import verify_run

OPTIONS = {"units": 8, "steps": 6, "seconds": 0.002, "checkpoint": {"every": "2 steps"}, "fail": ["u00003"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with segments, generations and a quarantine."""
    path = tmp_path_factory.mktemp("verify") / "run"
    assert start_toy(path, **OPTIONS).wait(60) == 3
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def verdicts(path, status=None):
    return [v for v in verify_run(RunDir(path)) if status in (None, v.status)]


def content(path) -> str:
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        whole.update(str(file).encode() + (file.read_bytes() if file.is_file() else b""))
    return whole.hexdigest()


def test_a_sound_run_is_called_sound_and_left_alone(copy, capsys, monkeypatch):
    before = content(copy)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["verify", str(copy)]) == 0
    assert content(copy) == before
    text = capsys.readouterr().out
    for word in (
        "all sound",
        "7 units of 4 segments",
        "state after step 6",
        "in quarantine: u00003",
        "seg-0001-00000-000000",
    ):
        assert word in " ".join(text.split()), text


def test_no_run_is_bad_input(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err


CHECKED = (
    "config.yaml",
    "provenance.json",
    "checkpoints/squares/seg-*.h5",
    "checkpoints/walk/gen-*.h5",
    "checkpoints/walk/gen-*.json",
    "checkpoints/squares/complete.json",
    "checkpoints/walk/complete.json",
    "checkpoints/squares/quarantine.json",
)


@pytest.mark.parametrize("pattern", CHECKED)
def test_every_flipped_bit_that_matters_is_reported(copy, pattern):
    rng = np.random.default_rng(len(pattern))
    file = min(copy.glob(pattern))
    whole = file.read_bytes()
    reported = 0
    for position in rng.integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        bad = verdicts(copy, "bad")
        reported += bool(bad)
        if not bad:
            harmless(pattern, copy, whole, bytes(flipped))
    assert reported >= (1 if pattern == "config.yaml" else 25)


def harmless(pattern, path, whole, flipped):
    """What is not reported must mean the same as before."""
    if pattern.endswith(".json"):
        assert json.loads(whole) == json.loads(flipped)
    elif pattern == "config.yaml":
        config = RunDir(path).load_config()
        assert {"job": config["job"], "seed": config["seed"]} == {
            "job": {
                "_target_": "toyjob.ToyJob",
                "name": "toy",
                **{k: OPTIONS[k] for k in ("units", "steps", "seconds", "fail")},
            },
            "seed": 5,
        }
    else:
        # HDF5 leaves a few bytes unused; the arrays and attributes are bit-identical then.
        file = next(f for f in path.glob(pattern) if f.read_bytes() == flipped)
        arrays, attributes = read_hdf5(file)
        file.write_bytes(whole)
        truth, true_attributes = read_hdf5(file)
        assert attributes == true_attributes
        assert {k: a.tobytes() for k, a in arrays.items()} == {k: a.tobytes() for k, a in truth.items()}


@pytest.mark.parametrize("pattern", [*CHECKED[1:], "progress.json", "events.jsonl", "checkpoints/squares/begun-*.txt"])
def test_every_truncation_is_reported(copy, pattern):
    file = min(copy.glob(pattern))
    before = {v.subject: v for v in verdicts(copy)}
    whole = file.read_bytes()
    half = len(whole) // 2
    for size in (len(whole) - 3, half - whole[:half].endswith(b"\n"), 1):
        os.truncate(file, size)
        name = str(file.relative_to(copy))
        assert any(
            v.subject.startswith(name.removesuffix(".h5")) and v.status != before[v.subject].status
            for v in verdicts(copy)
        ), size


def test_missing_and_foreign_files_are_reported(copy):
    segment = sorted(copy.glob("checkpoints/squares/seg-*.h5"))[1]
    arrays, attributes = read_hdf5(segment)
    write_hdf5(segment, arrays, {**attributes, "schema": 99})
    assert "schema 99" in verdicts(copy, "bad")[0].text
    segment.unlink()
    (missing,) = verdicts(copy, "bad")
    assert "2 units of a complete stage are missing" in missing.text
    newest = max(copy.glob("checkpoints/walk/gen-*.json"))
    write_record(newest, {**read_record(newest), "schema": 99})
    assert any("schema 99" in v.text for v in verdicts(copy, "bad"))
    newest.with_suffix(".h5").unlink()
    assert any("No such file" in v.text for v in verdicts(copy, "bad")) or any(
        "schema" in v.text for v in verdicts(copy, "bad")
    )
    newest.unlink()
    (copy / "provenance.json").unlink()
    assert any(v.subject == "provenance.json" for v in verdicts(copy, "note"))


def test_what_killed_processes_leave_is_a_note(copy):
    (copy / "checkpoints/squares/seg-0002-00000-000000.h5.tmp-17-ab").write_bytes(b"half")
    (copy / "checkpoints/walk/gen-00000099.h5").write_bytes(b"half")
    (copy / "lock").write_text("{")
    os.utime(copy / "lock", (1e9, 1e9))
    with (copy / "events.jsonl").open("a") as file:
        file.write('{"t": 1.0, "ev')
    with (copy / "checkpoints/squares/begun-0001-00000.txt").open("a") as file:
        file.write("+u00007\n+u000")
    assert not verdicts(copy, "bad")
    notes = {v.subject: v.text for v in verdicts(copy, "note")}
    assert "left by a killed writer" in notes["checkpoints/squares/seg-0002-00000-000000.h5.tmp-17-ab"]
    assert "not committed" in notes["checkpoints/walk/gen-00000099.h5"]
    assert "takes it over" in notes["lock"]
    assert "1 line cut short" in notes["events.jsonl"]
    assert "1 line cut short" in notes["checkpoints/squares/begun-0001-00000.txt"]


def test_a_run_at_work_is_sound_and_is_not_disturbed(tmp_path):
    path = tmp_path / "run"
    process = start_toy(path, units=60, seconds=0.01, steps=60, checkpoint={"every": "1 steps"})
    looks = 0
    while process.poll() is None:
        if (path / "provenance.json").exists():
            assert not verdicts(path, "bad")
            looks += 1
        time.sleep(0.01)
    assert process.returncode == 0
    assert looks > 3


def test_verify_does_without_mpi_and_workloads(copy):
    script = "import sys; from hpc.cli.main import main; main(['verify', sys.argv[1]]); print([m for m in ('mpi4py', 'astropy', 'toyjob') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy)], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")
