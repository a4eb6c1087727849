"""What the harness found once, each as a small test of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from damage import flip
from harness import Harness, judge, output_of

from hpc.errors import LockedError, RunDirError
from hpc.retry import forget_quarantine
from hpc.rundir import RunDir
from hpc.store import compact, generations, journal, patience, segments
from hpc.store.lock import RunLock


@pytest.fixture
def harness(tmp_path):
    it = Harness(tmp_path)
    yield it
    it.close()


@pytest.fixture
def run(harness):
    """A finished run: its path, and a function that resumes it and returns the verdict."""
    scenario = harness.scenario()
    path = harness.prepare(scenario.config)
    assert harness.attempt(path) == 0

    def resume():
        return judge(path, scenario.truth, harness.resume(path, scenario.config, 1))

    return path, resume


def events(path, kind):
    records = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return [r for r in records if r["event"] == kind]


def test_a_lost_provenance_record_overwrites_no_segment(run):
    path, resume = run
    (path / "provenance.json").unlink()
    (path / "checkpoints/squares/complete.json").unlink()
    lost = sorted(path.glob("checkpoints/squares/seg-*.h5"))
    lost[0].unlink()
    kept = {p.name: p.read_bytes() for p in lost[1:]}
    assert resume().right
    assert {p.name: p.read_bytes() for p in lost[1:]} == kept
    assert sorted(path.glob("checkpoints/squares/seg-0002-*.h5"))
    assert RunDir(path).read_progress()["attempt"] == 2


def test_damage_in_a_segments_data_is_found_before_the_merge(run):
    path, resume = run
    (path / "checkpoints/squares/complete.json").unlink()
    segment = min(path.glob("checkpoints/squares/seg-*.h5"))
    content = bytearray(segment.read_bytes())
    where = content.find(np.arange(6, dtype=np.float32).tobytes()[4:])  # an image of a unit
    content[where + 2] ^= 16
    segment.write_bytes(content)
    assert resume().right
    assert segment.name in events(path, "fallback")[0]["reason"]
    assert (segment.parent / f"damaged-{segment.name}").exists()


def test_units_missing_from_a_complete_stage_are_run_again(run):
    path, resume = run
    min(path.glob("checkpoints/squares/seg-*.h5")).unlink()
    assert resume().right


@pytest.mark.parametrize("name", ["squares", "walk"])
def test_a_damaged_marker_does_not_pass_for_complete(run, name):
    path, resume = run
    marker = path / "checkpoints" / name / "complete.json"
    marker.write_text(marker.read_text().replace("complete", "incomplete").replace("1", "2", 1))
    assert resume().right
    assert "complete.json" in events(path, "fallback")[0]["reason"]


def test_a_configuration_changed_by_hand_is_refused_by_the_ranks(harness, run):
    path, _ = run
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 5", "seed: 4"))
    assert harness.attempt(path) == 2
    assert "not the configuration that this run was started with" in output_of(path).read_text()


def test_a_damaged_quarantine_record_does_not_keep_its_unit_out(harness):
    scenario = harness.scenario("poisoned", fail=["u00003"])
    path = harness.prepare(scenario.config)
    harness.attempt(path)
    file = path / "checkpoints/squares/quarantine.json"
    file.write_text(file.read_text().replace("u00003", "u00004"))
    assert judge(path, scenario.truth, harness.resume(path, scenario.config, 1)).right
    for seed in range(5):
        flip(file, np.random.default_rng(seed))
        assert judge(path, scenario.truth, harness.resume(path, scenario.config, 1)).right


@pytest.mark.parametrize("damage", ["cut", "renamed", "led outside"])
def test_retrying_believes_no_progress_file(harness, damage):
    scenario = harness.scenario("poisoned", fail=["u00003"])
    path = harness.prepare(scenario.config)
    harness.attempt(path)
    file, victim = path / "progress.json", path.parent / "victim"
    victim.mkdir(exist_ok=True)
    progress = json.loads(file.read_text())
    progress["stages"][1]["name"] = "walj"
    if damage == "led outside":
        progress["stages"].append({**progress["stages"][1], "name": "../../../victim"})
    file.write_text("{" if damage == "cut" else json.dumps(progress))
    assert forget_quarantine(RunDir(path)) == 1
    assert not (path / "checkpoints/walk").exists()
    assert not (path / "lock").exists()
    assert victim.is_dir()


def test_retrying_says_what_it_cannot_remove_and_keeps_the_quarantine(harness):
    scenario = harness.scenario("poisoned", fail=["u00003"])
    path = harness.prepare(scenario.config)
    harness.attempt(path)
    walk, kept = path / "checkpoints/walk", path / "kept"
    walk.rename(kept)
    walk.symlink_to(kept)  # rmtree removes no folder through a link
    with pytest.raises(RunDirError, match="walk: holds what was computed without"):
        forget_quarantine(RunDir(path))
    assert RunDir(path).quarantined()
    lock = RunLock(path / "lock")
    with pytest.raises(LockedError):
        forget_quarantine(RunDir(path))
    lock.release()


def test_a_damaged_generation_does_not_count_among_the_kept(tmp_path):
    def save(number):
        generations.save_generation(tmp_path, number, {"x": np.full(9, float(number))}, {}, 2)

    for number in (1, 2, 3):
        save(number)
    flip(tmp_path / "gen-00000003.h5", np.random.default_rng(1))
    (tmp_path / "gen-00000007.h5").write_bytes(b"never committed")
    found = generations.load_newest(tmp_path)
    assert found.number == 2
    generations.clear_away(tmp_path, found)
    save(4)
    assert sorted(p.name for p in tmp_path.glob("gen-*.h5")) == ["gen-00000002.h5", "gen-00000004.h5"]
    assert (tmp_path / "damaged-gen-00000003.h5").exists()


def test_a_torn_line_of_a_journal_names_no_unit(tmp_path):
    (tmp_path / "begun-0001-00000.txt").write_text("+u1\n-u1\n+u12\n+u1")
    assert journal.deaths(tmp_path, journal.journal_names(tmp_path)) == {"u12": 1}


def test_compaction_on_a_full_disk_is_an_error_and_is_tried_again(tmp_path, monkeypatch):
    segments.write_segment(tmp_path / "seg-1.h5", "s", [segments.Finished("a", {"x": np.ones(9)}, 0.1, 1, 0)])
    results = segments.StoredResults(tmp_path, {"a": "seg-1.h5"})
    refusals = [OSError(28, "No space left on device")] * 2
    genuine = compact.os.posix_fallocate

    def full(*arguments):
        if refusals:
            raise refusals.pop()
        genuine(*arguments)

    monkeypatch.setattr(compact.os, "posix_fallocate", full)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    said = []
    patience.insist(lambda: results.save(tmp_path / "all.h5"), 5.0, said.append)
    assert len(said) == 2
    assert "make room" in said[0]
    assert (tmp_path / "all.h5").exists()
    with pytest.raises(FileNotFoundError):  # waiting does not mend this
        patience.insist((tmp_path / "no" / "such").touch, 5.0, said.append)
    assert len(said) == 2
