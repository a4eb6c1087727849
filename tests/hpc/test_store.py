"""Atomic files, segments, generations and the journal, on real disks with real damage."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from hpc.errors import CorruptFileError, LockedError
from hpc.rundir import RunDir
from hpc.store import atomic, generations, journal, lock, records, segments

ARRAYS = {
    "scalar": np.float64(np.pi),
    "empty": np.zeros((0, 3), np.float32),
    "image": np.arange(12, dtype=np.int16).reshape(3, 4),
    "flags": np.array([True, False]),
    "wave": np.array([1 + 2j, -3j]),
    "text": np.array(["a", "", "größe"]),
    "group/inner": np.float32([np.nan, np.inf]),
}


def same(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_hdf5_round_trip(tmp_path):
    atomic.write_hdf5(tmp_path / "a.h5", ARRAYS, {"b": [1, None, "x"]})
    arrays, attributes = atomic.read_hdf5(tmp_path / "a.h5")
    assert attributes == {"b": [1, None, "x"]}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert same(arrays[name], np.asarray(array)), name


def test_objects_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError, match="Python objects"):
        atomic.write_hdf5(tmp_path / "a.h5", {"bad": np.array([{}], object)}, {})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"version": 1})
    with pytest.raises(RuntimeError):
        atomic.write_atomically(path, lambda p: (p.write_text("half"), (_ for _ in ()).throw(RuntimeError()))[0])
    assert json.loads(path.read_text()) == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", ["truncate", "empty", "text", "missing"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "a.h5"
    atomic.write_hdf5(path, ARRAYS, {})
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncate": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(CorruptFileError, match=r"a\.h5"):
        atomic.read_hdf5(path)


def test_a_flipped_bit_is_never_read_silently(tmp_path):
    path = tmp_path / "a.h5"
    arrays = {"data": np.random.default_rng(1).normal(size=4000)}
    atomic.write_hdf5(path, arrays, {"x": 1})
    content = path.read_bytes()
    rng = np.random.default_rng(2)
    detected = 0
    for position in rng.integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found, attributes = atomic.read_hdf5(path)
        except CorruptFileError:
            detected += 1
        else:
            assert same(found["data"], arrays["data"])
            assert attributes == {"x": 1}
    assert detected > 100


def finished(key: str, **arrays) -> segments.Finished:
    return segments.Finished(key, arrays, seconds=0.5, attempt=1, rank=0)


def test_segment_keeps_ragged_and_differing_units(tmp_path):
    units = [
        finished("b", x=np.arange(3.0), kind=np.array("star")),
        finished("a", x=np.zeros((2, 2))),
        finished("c", y=np.float32(7)),
        finished("d"),
        finished("e", x=np.zeros(0)),
    ]
    segments.write_segment(tmp_path / "seg-1.h5", "s", units)
    results = segments.StoredResults(tmp_path, segments.scan(tmp_path).home)
    assert list(results) == ["a", "b", "c", "d", "e"]
    for unit in units:
        assert results[unit.key].keys() == unit.arrays.keys()
        for name, array in unit.arrays.items():
            assert same(results[unit.key][name], np.asarray(array))


def test_scan_reports_doubled_units_and_damage(tmp_path):
    segments.write_segment(tmp_path / "seg-1.h5", "s", [finished("a", x=np.ones(2))])
    segments.write_segment(tmp_path / "seg-2.h5", "s", [finished("a", x=np.ones(2)), finished("b")])
    (tmp_path / "seg-3.h5").write_bytes(b"junk")
    (tmp_path / "seg-4.h5.tmp-1-2").write_bytes(b"left over")
    found = segments.scan(tmp_path)
    assert found.home == {"a": "seg-1.h5", "b": "seg-2.h5"}
    assert found.doubled == ["a"]
    assert len(found.damaged) == 1
    assert "seg-3.h5" in found.damaged["seg-3.h5"]


def save(directory, number, value, keep=2):
    generations.save_generation(directory, number, {"x": np.full(1000, value)}, {"config_hash": "c"}, keep)


def test_generations_keep_two_and_the_newest_wins(tmp_path):
    for n in range(1, 5):
        save(tmp_path, n, float(n))
    assert sorted(p.name for p in tmp_path.glob("*.h5")) == ["gen-00000003.h5", "gen-00000004.h5"]
    newest = generations.load_newest(tmp_path)
    assert (newest.number, newest.state["x"][0], newest.fallbacks) == (4, 4.0, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "no data", "no record", "bad record", "schema", "escape"])
def test_falling_back_says_which_and_why(tmp_path, damage):
    save(tmp_path, 1, 1.0)
    save(tmp_path, 2, 2.0)
    data, record = tmp_path / "gen-00000002.h5", tmp_path / "gen-00000002.json"
    if damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        os.truncate(data, 100)
    elif damage == "no data":
        data.unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "bad record":
        record.write_text("{")
    elif damage == "schema":
        record.write_text(json.dumps(records.sealed({**records.read_record(record), "schema": 99})))
    else:
        record.write_text(json.dumps(records.sealed({**records.read_record(record), "file": "../gen-00000001.h5"})))
    found = generations.load_newest(tmp_path)
    assert (found.number, found.state["x"][0]) == (1, 1.0)
    if damage != "no record":  # an uncommitted generation is not a fallback, it never happened
        assert "gen-00000002" in found.fallbacks[0]


def test_journal_counts_only_units_that_never_came_back(tmp_path):
    for attempt in (1, 2):
        book = journal.Journal(tmp_path, attempt, 0)
        for key in ("fine", "killer"):
            book.begin(key)
            if key == "fine":
                book.end(key)
        book.close()
    assert journal.deaths(tmp_path, journal.journal_names(tmp_path)) == {"killer": 2}


def test_lock_refuses_the_living_and_takes_over_from_the_dead(tmp_path):
    path = tmp_path / "lock"
    held = lock.RunLock(path)
    with pytest.raises(LockedError, match=str(os.getpid())):
        lock.RunLock(path)
    held.release()
    script = f"from pathlib import Path; from hpc.store.lock import RunLock; RunLock(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", script], check=True)  # ends without giving it up
    assert path.exists()
    lock.RunLock(path).release()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_another_host_is_stale_only_after_a_silent_minute(tmp_path):
    path = tmp_path / "lock"
    owner = {"host": "elsewhere", "pid": 1, "started": "1", "token": "t", "slurm_job": None}
    path.write_text(json.dumps(records.sealed(owner)))
    with pytest.raises(LockedError, match="elsewhere"):
        lock.RunLock(path)
    old = path.stat().st_mtime - 2 * lock.STALE_AFTER
    os.utime(path, (old, old))
    lock.RunLock(path).release()


def test_a_lock_that_cannot_be_read_is_respected_for_a_minute(tmp_path):
    path = tmp_path / "lock"
    path.write_text("{")
    with pytest.raises(LockedError, match="remove the file"):
        lock.RunLock(path)
    old = path.stat().st_mtime - 2 * lock.STALE_AFTER
    os.utime(path, (old, old))
    lock.RunLock(path).release()


def test_a_late_contender_does_not_take_the_winners_lock(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    dead = {"host": socket.gethostname(), "pid": 2**22 - 7, "started": "1", "token": "t", "slurm_job": None}
    path.write_text(json.dumps(records.sealed(dead)))
    real, winners = lock.refuse_if_held, []

    def overtaken(judged):
        real(judged)
        if not winners:
            winners.append(None)
            winners[0] = lock.RunLock(path)  # another contender is faster, between the look and the rename

    monkeypatch.setattr(lock, "refuse_if_held", overtaken)
    with pytest.raises(LockedError, match=str(os.getpid())):
        lock.RunLock(path)
    winners[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path):
    """HDF5 itself crashes here when the file is closed, or later; in a process of its own, to survive seeing it."""
    script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from hpc.store.atomic import read_hdf5, write_hdf5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
arrays = {name: np.arange(20_000.0) for name in "abcd"}
for limit in range(500, 700_000, 23_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_hdf5(path, arrays, {})
    except OSError as error:
        assert error.errno == 27, error
    else:
        assert limit > 640_000
assert (read_hdf5(path)[0]["d"] == arrays["d"]).all()
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.h5")], check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_the_same_results_are_the_same_bytes_whenever_they_are_written(tmp_path):
    segments.write_segment(tmp_path / "seg-0.h5", "s", [finished("u", x=np.arange(3.0), name=np.array("é"))])
    results = segments.StoredResults(tmp_path, segments.scan(tmp_path).home)
    results.save(tmp_path / "a.h5")
    time.sleep(1.1)  # HDF5 can store when a dataset was made, in seconds
    results.save(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_compaction_holds_every_unit_once_in_key_order(tmp_path):
    rng = np.random.default_rng(7)
    units = [
        finished(f"u{k:03d}", x=rng.normal(size=k % 4), name=np.array("é" * (k % 3)), flag=np.bool_(k % 2))
        for k in rng.permutation(50)
    ]
    units.append(finished("v", x=np.zeros((2, 2), np.float32)))
    for i in range(0, 51, 10):
        segments.write_segment(tmp_path / f"seg-{i:02d}.h5", "s", units[i : i + 10])
    segments.write_segment(tmp_path / "seg-zz.h5", "s", units[:3])  # doubled
    results = segments.StoredResults(tmp_path, segments.scan(tmp_path).home)
    results.save(tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        keys = [k.decode() for k in file["keys"]]
        assert keys == sorted(u.key for u in units)
        seen = 0
        for column in file["columns"].values():
            for number, start, shape in zip(column["unit"], column["start"], column["shape"], strict=True):
                name = column.name.split("/")[2].split("@")[0]
                truth = np.asarray(results[keys[number]][name])
                values = column["data"][start : start + int(np.prod(shape))].reshape(shape)
                if truth.dtype.kind == "U":
                    assert values.item().decode() == truth.item()
                else:
                    np.testing.assert_array_equal(values, truth)
                seen += 1
        assert seen == 3 * 50 + 1
        assert set(file["columns"]) == {"x", "name", "flag", "x@<f4,2"}


class Together:
    """Ranks that take part one after the other; rank 0, the last, gets what the others gathered."""

    size = 3

    def __init__(self) -> None:
        self.rank, self.told, self.parts = 3, None, []

    def turns(self, names):
        self.told = names
        for self.rank in (1, 2, 0):
            yield self

    def bcast(self, value):
        return self.told

    def gather(self, value):
        self.parts.append(value)
        return self.parts if self.rank == 0 else None


def test_all_ranks_together_see_what_one_does(tmp_path):
    from hpc.survey import survey

    for k in range(8):
        segments.write_segment(tmp_path / f"seg-{k}.h5", "s", [finished(f"u{k}"), finished(f"u{k + 1}")])
        (tmp_path / f"begun-{k:04d}-00000.txt").write_text(f"+u{k}\n-u{k}\n+d{k % 2}\n")
    (tmp_path / "seg-5.h5").write_bytes(b"no")
    everything = segments.segment_names(tmp_path), journal.journal_names(tmp_path)
    *others, seen = [survey(tmp_path, ranks, whole=True) for ranks in Together().turns(everything)]
    assert others == [None, None]
    assert seen.segments == segments.scan(tmp_path, whole=True)
    assert seen.segments.home["u1"] == "seg-0.h5"
    assert list(seen.segments.damaged) == ["seg-5.h5"]
    assert seen.deaths == {"d0": 4, "d1": 4}


def test_what_only_another_node_finds_damaged_is_not(tmp_path, monkeypatch):
    """A network file system may show a new file to rank 0 and not yet to the others."""
    from hpc import survey

    segments.write_segment(tmp_path / "seg-1.h5", "s", [finished("a")])
    ranks = Together()
    honest = survey.list_segment
    monkeypatch.setattr(
        survey,
        "list_segment",
        lambda path, whole: (
            honest(path, whole=whole) if ranks.rank == 0 else segments.Listing(path.name, damage="gone")
        ),
    )
    names = ["seg-1.h5"] * 3, []  # each rank gets it
    *_, seen = [survey.survey(tmp_path, ranks, whole=False) for ranks in ranks.turns(names)]
    assert not seen.segments.damaged
    assert set(seen.segments.home) == {"a"}


@pytest.mark.parametrize("point", ["written", "synced"])
def test_a_configuration_is_whole_and_durable_or_the_old_one(tmp_path, point):
    """Killed before the file is synced, and between that and its renaming."""
    config = {"job": {"name": "toy"}, "run": {"dir": "x"}}
    run = RunDir.prepare(tmp_path / "run", config)
    before = run.config_file.read_bytes()
    script = (
        "import sys; from pathlib import Path; from hpc.rundir import RunDir; "
        f"RunDir.prepare(Path(sys.argv[1]), {{**{config!r}, 'engine': {{'retries': 3}}}})"
    )
    environment = {**os.environ, "TESSERA_FAULT": f"{point}@config.yaml:1:kill"}
    ended = subprocess.run([sys.executable, "-c", script, str(run.path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert run.config_file.read_bytes() == before
