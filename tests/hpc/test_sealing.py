"""Results are under seal, and every file of a run says with which configuration it was computed."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256

import pytest
from conftest import output_of, start_toy

from hpc.rundir import RunDir
from hpc.store.atomic import read_hdf5, write_hdf5
from hpc.store.newfile import temporary_name
from hpc.store.records import read_record, write_record
from hpc.store.sealing import SealedFile, harm, in_force, seal_results, to_finish_again
from hpc.store.verify import verify_run

OPTIONS = {"units": 8, "steps": 6, "seconds": 0.002, "checkpoint": {"every": "2 steps"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealing") / "run"
    assert start_toy(path, **OPTIONS).wait(60) == 0
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def results(path):
    return {p.name: p.read_bytes() for p in sorted((path / "results").rglob("*")) if p.is_file()}


def bad(path):
    return {v.subject: v.text for v in verify_run(RunDir(path)) if v.status == "bad"}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = {
    "is missing": lambda path: path.unlink(),
    "is empty": lambda path: os.truncate(path, 0),
    "bytes instead of": lambda path: os.truncate(path, 5),
    "has been changed": flip,
}


CASES = [
    ("squares.txt", "is missing", 2),
    ("squares.txt", "is empty", 1),
    ("squares.txt", "has been changed", 1),
    ("walk.txt", "is missing", 1),
    ("walk.txt", "bytes instead of", 2),
]


@pytest.mark.parametrize(("name", "harm", "ranks"), CASES)
def test_harmed_results_are_reported_and_made_again(copy, name, harm, ranks):
    truth = results(copy)
    HARMS[harm](copy / "results" / name)
    harmed = (copy / "results" / name).read_bytes() if harm != "is missing" else b""
    assert harm in bad(copy)[f"results/{name}"]
    assert start_toy(copy, ranks=ranks, **OPTIONS).wait(60) == 0
    assert results(copy) == truth
    assert not bad(copy)
    kept = copy / "results.replaced" / name
    assert (kept.read_bytes() if kept.exists() else b"") == harmed
    warnings = [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines() if '"warning"' in line]
    assert any(f"results/{name} " in w["text"] and "made again" in w["text"] for w in warnings)
    assert "made again" in json.loads((copy / "progress.json").read_text())["message"]
    starts = [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines() if "stage_start" in line]
    assert starts[-1]["restored"] == (8 if name == "squares.txt" else 6)  # nothing was computed again


def test_sound_results_are_left_alone(copy):
    before = {p: p.stat().st_ino for p in (copy / "results").iterdir()}
    (copy / "results" / "my notes.txt").write_text("mine")
    assert start_toy(copy, **OPTIONS).wait(60) == 0
    assert before.items() <= {p: p.stat().st_ino for p in (copy / "results").iterdir()}.items()
    assert not (copy / "results.replaced").exists()


def test_a_run_without_seals_is_taken_as_it_is(copy):
    for file in copy.glob("checkpoints/*/complete.json"):
        record = read_record(file)
        write_record(file, {k: v for k, v in record.items() if k in ("units", "quarantined", "segments", "steps")})
    (copy / "results" / "walk.txt").unlink()
    assert not bad(copy)
    assert start_toy(copy, **OPTIONS).wait(60) == 0


def test_a_file_belongs_to_the_last_stage_that_wrote_it(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_text("one")
    (tmp_path / "deep" / "b").write_text("two")
    first = seal_results(tmp_path, [])
    assert sorted(first) == ["a", "deep/b"]
    (tmp_path / "a").write_text("three")
    (tmp_path / "c").write_text("four")
    temporary_name(tmp_path / "d").write_text("half")
    second = seal_results(tmp_path, [first])
    assert sorted(second) == ["a", "c"]
    seals = {"first": first, "second": second, "third": {"e": second["c"]}}
    assert [(f.name, f.stage) for f in in_force(seals)] == [
        ("a", "second"),
        ("c", "second"),
        ("deep/b", "first"),
        ("e", "third"),
    ]
    assert to_finish_again(seals, ["deep/b"]) == ["first", "second"]  # the first writes "a" again, too
    assert to_finish_again(seals, ["c"]) == ["second"]
    assert to_finish_again(seals, ["e"]) == ["third"]
    assert to_finish_again(seals, []) == []


@pytest.mark.parametrize("part", ["all", "segments", "generations", "complete"])
@pytest.mark.parametrize("provenance", ["missing", "damaged"])
def test_another_seed_is_refused_though_the_provenance_is_lost(copy, part, provenance):
    """Whatever of the checkpoints is left, it tells with which configuration it was computed."""
    gone = {
        "all": (),
        "segments": ("*/complete.json", "*/gen-*"),
        "generations": ("*/complete.json", "*/seg-*"),
        "complete": ("*/seg-*", "*/gen-*"),
    }[part]
    for file in [f for pattern in gone for f in (copy / "checkpoints").glob(pattern)]:
        file.unlink()
    before = results(copy)
    config = (copy / "config.yaml").read_text()
    assert "seed: 5" in config
    if provenance == "missing":
        (copy / "provenance.json").unlink()
    else:
        (copy / "provenance.json").write_text("{")
    (copy / "config.yaml").write_text(config.replace("seed: 5", "seed: 6"))
    for _ in range(2):  # a refused attempt must not make the wrong configuration the right one
        assert start_again(copy).wait(60) == 2
        assert "was computed with another configuration" in output_of(copy).read_text()
    assert results(copy) == before
    (copy / "config.yaml").write_text(config)
    assert start_again(copy).wait(60) == 0
    assert results(copy) == before


def start_again(path):
    """Start ranks on a run as its config.yaml says now."""
    config = RunDir(path).load_config()
    options = {k: v for k, v in config["job"].items() if k not in ("name", "_target_")}
    return start_toy(path, checkpoint=config["checkpoint"], seed=config["seed"], **options)


def test_a_segment_of_another_run_is_refused_and_reported(copy):
    segment = max(copy.glob("checkpoints/squares/seg-*.h5"))
    arrays, attributes = read_hdf5(segment)
    write_hdf5(segment, arrays, {**attributes, "config_hash": "0" * 64})
    assert "another configuration" in bad(copy)[f"checkpoints/squares/{segment.name}"]
    assert start_toy(copy, **OPTIONS).wait(60) == 2
    assert segment.name in output_of(copy).read_text()


def test_segments_that_do_not_say_are_taken_with_a_word(copy):
    for segment in copy.glob("checkpoints/squares/seg-*.h5"):
        arrays, attributes = read_hdf5(segment)
        write_hdf5(segment, arrays, {k: v for k, v in attributes.items() if k != "config_hash"})
    (copy / "provenance.json").unlink()
    assert start_toy(copy, **OPTIONS).wait(60) == 0
    assert "do not say with which configuration" in (copy / "logs" / "rank-00000.log").read_text()


@pytest.mark.parametrize("end", ["removed", "damaged", "all records removed"])
def test_a_stage_computed_without_a_unit_is_run_anew_when_the_unit_is_back(tmp_path, end):
    """Removing quarantine.json by hand tries its unit again; the stages after it must not pass for complete."""
    options = {**OPTIONS, "fail_once": ["u00003"], "scratch": str(tmp_path), "engine": {"retries": 0}}
    path = tmp_path / "run"
    assert start_toy(path, **options).wait(60) == 3
    before = (path / "checkpoints/walk/complete.json").stat().st_mtime_ns
    file = path / "checkpoints/squares/quarantine.json"
    if end == "damaged":
        file.write_text(file.read_text().replace("u00003", "u00004"))
    else:
        file.unlink()
    if end == "all records removed":
        (path / "checkpoints/squares/complete.json").unlink()
    assert start_toy(path, **options).wait(60) == 0
    assert (path / "checkpoints/walk/complete.json").stat().st_mtime_ns != before
    assert "in quarantine; it is run anew" in (path / "events.jsonl").read_text()
    assert not (path / "checkpoints/walk/without.json").exists()
    assert start_toy(path, **options).wait(60) == 0
    assert (path / "events.jsonl").read_text().count("it is run anew") == 1


def test_a_named_pipe_in_the_place_of_an_empty_result_makes_nobody_wait(tmp_path):
    os.mkfifo(tmp_path / "empty.txt")
    assert harm(tmp_path, SealedFile("s", "empty.txt", {"size": 0, "sha256": sha256(b"").hexdigest()})) == "is missing"
