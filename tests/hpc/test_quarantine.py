"""Units that are given up: their record does not hold anybody up, and where everything fails the run stops."""

from __future__ import annotations

import errno
import json
import threading
import time

import pytest

from hpc.doubt import PROBES, Doubt
from hpc.job import Unit
from hpc.quarantine import Quarantine, UnitFailure
from hpc.schedule import Queue
from hpc.store.records import read_keyed

BROKEN_OFF = (1, 9)


def failure(number: int, rank: int = 0, error: str = "ValueError: no such file", line: int = 7) -> UnitFailure:
    trace = f'Traceback (most recent call last):\n  File "job.py", line {line}, in run\n    raise\n{error}\n'
    return UnitFailure(f"u{number:05d}", f"{error} {number}", trace, rank, 1)


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_record_of_many_units_is_written_few_times(tmp_path):
    file = tmp_path / "quarantine.json"
    writes = []
    book = Quarantine(file, check=lambda: writes.append(None))
    for number in range(3000):
        book.add(failure(number))
        if number % 10 == 0:
            time.sleep(0.001)
    book.close()
    sound, problem = read_keyed(file)
    assert not problem
    assert list(sound) == [f"u{n:05d}" for n in range(3000)]
    assert len(writes) < 60  # `check` is called twice a write; it was 3000 writes
    book.withdraw(sound)
    book.save()
    assert not file.exists()


def test_a_hanging_disk_does_not_hold_up_who_gives_units_up(tmp_path):
    answer = threading.Event()
    book = Quarantine(tmp_path / "quarantine.json", check=lambda: answer.wait() and None)
    start = time.monotonic()
    for number in range(100):
        book.add(failure(number))
    assert time.monotonic() - start < 5
    answer.set()
    book.close()
    assert len(read_keyed(tmp_path / "quarantine.json")[0]) == 100


def test_a_refused_record_is_said_once_and_written_later(tmp_path):
    file = tmp_path / "quarantine.json"
    said: list[str] = []
    full = [True]

    def check() -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    book = Quarantine(file, {"old": failure(1)}, check, said.append)
    book.add(failure(2))
    wait_for(lambda: said)
    time.sleep(0.5)
    assert said == [f"{file}: cannot be saved now (No space left on device)"]
    full.clear()
    wait_for(file.exists)
    assert list(read_keyed(file)[0]) == ["u00002", "old"] or list(read_keyed(file)[0]) == ["old", "u00002"]
    book.close()


def test_doubt_takes_the_same_error_on_every_rank():
    doubt = Doubt(2, 4)
    assert not any(doubt.note(failure(n, rank=0)) for n in range(10))
    assert doubt.note(failure(10, rank=1))
    assert not doubt.settled(1)
    assert doubt.settled(0)
    doubt.lift()
    assert not doubt.settled(0)
    for other in (failure(9, error="KeyError: 'x'"), failure(9, line=8)):
        doubt = Doubt(1, 2)
        doubt.note(failure(0))
        assert not doubt.note(other)
        assert doubt.lifted
    assert not Doubt(1, 0).note(failure(0))


def test_probes_are_spread_over_all_that_is_left_and_nothing_follows_until_they_are_judged():
    queue = Queue([Unit(f"u{n:03d}") for n in range(103)], 1)
    for _ in range(3):
        (unit,) = queue.take(0).units
        queue.finish(unit.key, failed=True)
    queue.probe(4)
    probes = []
    for _ in range(4):
        (unit,) = queue.take(0).units
        probes.append(unit.key)
    assert probes == ["u102", "u077", "u053", "u028"]
    waiting = queue.take(0)
    assert (waiting.units, waiting.over) == ((), False)
    assert queue.untried == 96
    for key in probes:
        queue.finish(key, 0.01)
    queue.end_probe()
    rest = []
    while not (grant := queue.take(0)).over:
        rest += [unit.key for unit in grant.units]
    assert len(rest) == 96


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_in_which_everything_fails_stops_early_and_blames_no_unit(toy, ranks):
    units = [f"u{n:05d}" for n in range(300)]
    options = {"ranks": ranks, "units": 300, "fail": units}
    run = toy(**options, engine={"retries": 0})
    assert run.code in BROKEN_OFF
    tried = len(run.events("quarantined"))
    assert 20 + PROBES <= tried <= 150  # what was on its way when enough had failed depends on how busy the machine is
    said = run.json("failure.json")["message"]
    assert f"all {tried} units that were tried failed with the same error" in said
    assert f"{300 - tried} others were not tried" in said
    assert "ValueError: poisoned u00000" in said
    assert not (run.path / "checkpoints/squares/quarantine.json").exists()
    again = toy(**options, engine={"retries": 0, "give_up_after": 0})
    assert again.code == 3
    assert len(again.json("checkpoints/squares/quarantine.json")) == 300


def test_one_good_unit_among_many_bad_ones_is_found(toy):
    run = toy(ranks=2, units=120, fail=[f"u{n:05d}" for n in range(119)], engine={"retries": 0})
    assert run.code == 3
    record = json.loads(run.text("checkpoints/squares/quarantine.json"))
    assert len(record) == 119
    assert run.text("results/squares.txt").startswith("1 ")
