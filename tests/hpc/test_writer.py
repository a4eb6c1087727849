"""The asynchronous writer: blocking, coalescing, back-pressure, failing disks, and when it saves."""

from __future__ import annotations

import errno
import threading
import time

import numpy as np
import pytest

from hpc.errors import RunDirError
from hpc.settings import CheckpointSettings
from hpc.store import generations, segments, writer
from hpc.store.cadence import Cadence, daly_interval


@pytest.fixture
def make(tmp_path):
    made = []

    def build(**settings) -> writer.Writer:
        warnings: list[str] = []
        book = writer.Writer(tmp_path / "s", "s", 1, 0, CheckpointSettings(**settings), warnings.append)
        book.warnings = warnings
        made.append(book)
        return book

    (tmp_path / "s").mkdir()
    return build


def unit(number: int, size: int = 10) -> segments.Finished:
    return segments.Finished(f"u{number:04d}", {"x": np.full(size, float(number))}, 0.1, 1, 0)


def test_units_become_durable_once(make, tmp_path):
    book = make(every="3 units")
    for k in range(10):
        book.add(unit(k))
    book.close()
    found = segments.scan(tmp_path / "s")
    assert sorted(found.home) == [f"u{k:04d}" for k in range(10)]
    assert not found.doubled
    assert book.cost.files == 4
    assert book.cost.nbytes == 10 * 80


def test_the_state_may_change_as_soon_as_save_returns(make, tmp_path):
    book = make()
    state = {"x": np.zeros(100_000)}
    for number in range(1, 6):
        state["x"][:] = number
        book.save(number, state, {})
        state["x"][:] = -1
    book.close()
    newest = generations.load_newest(tmp_path / "s")
    assert newest.number == 5
    assert set(newest.state["x"]) == {5.0}


def test_expected_states_find_their_buffers_ready(make, tmp_path):
    book = make(keep=10)
    state = {"x": np.arange(1000.0), "n": np.int64(3), "t": np.array(["a", "ü"])}
    book.expect(state)
    end = time.monotonic() + 5
    while book._expected is not None and time.monotonic() < end:
        time.sleep(0.01)
    prepared = {id(s.arrays[name]) for s in book._states._snapshots for name in state}
    for number in (1, 2, 3):
        book.save(number, state, {})
        book.drain()
    assert {id(s.arrays[name]) for s in book._states._snapshots for name in state} == prepared
    newest = generations.load_newest(tmp_path / "s")
    assert newest.number == 3
    assert all(newest.state[name].tobytes() == np.asarray(state[name]).tobytes() for name in state)


def test_a_newer_pending_state_replaces_an_older_one(make, tmp_path, monkeypatch):
    going = threading.Event()
    real = generations.save_generation

    def slow(*arguments):
        going.wait(10)
        real(*arguments)

    monkeypatch.setattr(writer, "save_generation", slow)
    book = make(keep=10)
    book.save(1, {"x": np.ones(3)}, {})
    time.sleep(0.1)  # the first is being written now
    for number in (2, 3, 4):
        book.save(number, {"x": np.full(3, number)}, {})
    going.set()
    book.close()
    assert [p.stem for p in sorted((tmp_path / "s").glob("gen-*.json"))] == ["gen-00000001", "gen-00000004"]
    assert book.cost.replaced == 2


def test_back_pressure_bounds_what_is_pending(make, monkeypatch):
    seen = []
    real = segments.write_segment

    def slow(path, stage, units, *rest):
        time.sleep(0.05)
        seen.append(sum(u.nbytes for u in units))
        real(path, stage, units, *rest)

    monkeypatch.setattr(writer, "write_segment", slow)
    book = make(every=1000.0, max_pending_mb=1)
    largest = 0
    for k in range(40):
        book.add(unit(k, size=20_000))  # 160 kB
        largest = max(largest, book._bytes)
    book.close()
    assert largest <= 1 << 20
    assert sum(seen) == 40 * 160_000
    assert len(seen) <= 21  # pressure must not chop the results into a file per unit
    assert book.cost.blocked > 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOENT])
def test_a_failing_disk_is_retried_while_the_rank_computes(make, tmp_path, monkeypatch, code):
    real, failures = segments.write_segment, [OSError(code, "no"), OSError(code, "no")]

    def failing(path, stage, units, *rest):
        if failures:
            raise failures.pop()
        real(path, stage, units, *rest)

    monkeypatch.setattr(writer, "write_segment", failing)
    monkeypatch.setattr(writer, "_FIRST_PAUSE", 0.01)
    book = make(every=0.0)
    start = time.monotonic()
    book.add(unit(0))
    assert time.monotonic() - start < 1
    book.close()
    assert list(segments.scan(tmp_path / "s").home) == ["u0000"]
    assert len(book.warnings) == book.cost.retries == 2
    assert "last good state is intact" in book.warnings[0]


def test_a_disk_that_stays_full_fails_the_run_only_at_the_end(make, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write_segment", full)
    monkeypatch.setattr(writer, "_FIRST_PAUSE", 0.01)
    book = make(every=0.0, deadline=0.2)
    book.add(unit(0))
    with pytest.raises(RunDirError, match="make room"):
        book.drain()


def test_a_slow_disk_that_takes_file_after_file_fails_no_run(make, monkeypatch, tmp_path):
    real = writer.write_segment

    def slow(*arguments):
        time.sleep(0.2)
        real(*arguments)

    monkeypatch.setattr(writer, "write_segment", slow)
    book = make(every=0.0, deadline=0.6)
    for k in range(8):  # takes 1.6 s
        book.add(unit(k))
        book.flush()
    book.close()
    assert len(segments.scan(tmp_path / "s").home) == 8


def test_a_programming_error_in_the_writer_surfaces_at_the_next_call(make, monkeypatch):
    def broken(*_):
        raise TypeError("bug")

    monkeypatch.setattr(writer, "write_segment", broken)
    book = make(every=0.0)
    book.add(unit(0))
    book._thread.join(5)
    with pytest.raises(TypeError, match="bug"):
        book.add(unit(1))


def test_draining_after_the_end_returns_at_once(make):
    book = make()
    book.add(unit(0))
    book.close()
    start = time.monotonic()
    book.drain()
    assert time.monotonic() - start < 1


def test_daly_interval_has_the_known_limits():
    assert daly_interval(1.0, 20_000.0) == pytest.approx(np.sqrt(2 * 20_000) - 2 / 3, abs=0.01)
    assert daly_interval(50.0, 10.0) == 10.0
    # it is the minimum of the exact expected run time M e^{R/M} (e^{(w+c)/M} - 1) / w (Daly 2006, eq. 20)
    cost, mtbf = 10.0, 3600.0
    w = np.linspace(50, 1000, 100_001)
    best = w[np.argmin((np.exp((w + cost) / mtbf) - 1) / w)]
    assert daly_interval(cost, mtbf) == pytest.approx(best, rel=0.01)


def test_auto_cadence_follows_the_measured_cost():
    cadence = Cadence(CheckpointSettings(every="auto", mtbf=7200.0))
    cadence.measured(2.0)
    assert cadence.seconds == pytest.approx(daly_interval(2.0, 7200.0))
    cadence.measured(1e4)
    assert cadence.seconds == 600.0


@pytest.mark.parametrize("every", ["ten", "0 steps", "-1 steps", "3 years"])
def test_a_wrong_interval_is_refused(every):
    with pytest.raises(ValueError, match="every"):
        CheckpointSettings(every=every)


def test_very_many_writers_save_more_rarely():
    assert Cadence(CheckpointSettings(every=30.0), 100).seconds == 30.0
    assert Cadence(CheckpointSettings(every=30.0), 10_000).seconds == 500.0
    auto = Cadence(CheckpointSettings(every="auto"), 2000)
    auto.measured(0.01)
    assert auto.seconds == 100.0
