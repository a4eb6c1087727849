"""Which unit is to blame: exact where somebody saw which rank died, narrowed down by halves where nobody did."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import start_toy

from hpc.job import Unit
from hpc.schedule import Queue
from hpc.store.blame import Left, blame, end_file, read_ends, record_end
from hpc.store.journal import journal_names, left_open


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_blame_falls_on_the_rank_that_died_if_it_is_known():
    left = [Left(a, r, (f"u{r}",)) for a in (1, 2, 3) for r in range(4)]
    unknown = blame(left, {})
    assert unknown.deaths == {"u0": 3, "u1": 3, "u2": 3, "u3": 3}
    assert not unknown.guilty(3)
    assert unknown.suspects(3, 4) == {"u0": 1, "u1": 1, "u2": 1, "u3": 1}
    assert unknown.suspects(4, 4) == {"u0": 2, "u1": 2, "u2": 2, "u3": 2}
    known = blame(left, {1: 2, 2: 2, 3: None})
    assert known.deaths == {"u2": 2}
    assert known.suspects(3, 4) == {"u2": 1}
    assert not known.guilty(3)
    assert blame(left, {1: 2, 2: 2, 3: 2}).guilty(3) == {"u2": 3}
    # The last two deaths were not certainly its own: it has to be seen alone twice in a row.
    assert not blame(left, {1: 2, 2: 2}).guilty(3)
    assert not blame(left, {1: 2, 3: 2}).guilty(3)
    assert blame(left, {2: 2, 3: 2}).guilty(3) == {"u2": 3}
    assert blame([Left(1, 0, ("u1",)), Left(2, 0, ("u1",))], {}).guilty(2) == {"u1": 2}


def test_the_first_note_counts_and_a_damaged_one_does_not(tmp_path):
    record_end(tmp_path, 1, 3)
    record_end(tmp_path, 1, None)
    record_end(tmp_path, 2, None)
    record_end(tmp_path, 3, 1)
    assert read_ends(tmp_path, [1, 2, 3, 4]) == {1: 3, 2: None, 3: 1}
    end_file(tmp_path, 3).write_text(end_file(tmp_path, 3).read_text().replace("1", "2"))
    end_file(tmp_path, 2).write_text("")
    assert read_ends(tmp_path, [1, 2, 3]) == {1: 3}
    record_end(tmp_path / "gone", 1, 0)


def attempt(todo: list[str], size: int, found, killer: set[str], kills: bool) -> tuple[list[list[str]], set[str]]:
    """Work through units in rounds of equal length; return what was in flight in each, until a unit or somebody kills."""
    queue = Queue([Unit(key) for key in todo], size, found.suspects(3, size))
    rounds, done = [], set()
    while True:
        flying = []
        for rank in range(size):
            flying += [unit.key for unit in queue.take(rank).units[:1]]
        if not flying:
            return rounds, done
        rounds.append(flying)
        if kills or killer & set(flying):
            return rounds, done
        done.update(flying)
        for key in flying:
            queue.finish(key)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 16, 64])
def test_a_killer_is_found_among_many_ranks_and_nobody_else_is_blamed(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        units = [f"u{k:03d}" for k in range(3 * size)]
        killer, done, left = {str(rng.choice(units))}, set(), []
        for number in range(1, 20):
            found = blame(left, {})
            if guilty := found.guilty(3):
                break
            kills = number <= 2 and bool(rng.random() < 0.3)  # somebody else kills whole jobs, too
            rounds, saved = attempt([u for u in units if u not in done], size, found, killer, kills)
            done |= saved
            left += [Left(number, rank, (key,)) for rank, key in enumerate(rounds[-1])]
        assert guilty.keys() == killer
        assert guilty[min(killer)] >= 3
        assert number <= 7 + np.log2(size)


@pytest.mark.parametrize(("size", "rounds"), [(2, 2), (4, 2), (64, 2)])
def test_two_deaths_of_a_whole_job_cost_innocent_units_little(size, rounds):
    units = [f"u{k:03d}" for k in range(size)]
    found = blame([Left(a, r, (key,)) for a in (1, 2) for r, key in enumerate(units)], {})
    made, done = attempt(units, size, found, set(), kills=False)
    assert len(made) == rounds  # it was one unit after the other
    assert done == set(units)


def test_a_survivor_notes_which_rank_died(tmp_path):
    """What would kill the other ranks at once, before they can say a word, is held still meanwhile."""
    path = tmp_path / "run"
    process = start_toy(path, 3, units=3, seconds=60.0)
    stage = path / "checkpoints" / "squares"

    def flying() -> list[Left]:
        return left_open(stage, journal_names(stage)) if stage.is_dir() else []

    try:
        wait_for(lambda: len(flying()) == 3 and len(ranks_of(path)) == 3)
        dying = ranks_of(path)[1]
        proxy = parent_of(dying)
        os.kill(proxy, signal.SIGSTOP)
        os.kill(dying, signal.SIGKILL)
        wait_for(end_file(stage, 1).exists)
    finally:
        os.kill(proxy, signal.SIGCONT)
        process.wait(20)
    assert read_ends(stage, [1]) == {1: 1}
    (guilty,) = (part.units for part in flying() if part.rank == 1)
    assert blame(flying(), read_ends(stage, [1])).deaths == Counter(guilty)


def test_a_survivor_blames_nobody_where_more_than_one_rank_died(tmp_path):
    """Two ranks die before the third can look: somebody kills the whole job, and has not come to that one yet."""
    path = tmp_path / "run"
    process = start_toy(path, 3, units=3, seconds=60.0)
    stage = path / "checkpoints" / "squares"
    wait_for(lambda: stage.is_dir() and len(left_open(stage, journal_names(stage))) == 3 and len(ranks_of(path)) == 3)
    survivor, *dying = ranks_of(path)
    proxy = parent_of(survivor)
    try:
        for held in (proxy, survivor):
            os.kill(held, signal.SIGSTOP)
        wait_for(lambda: threads_stopped(survivor))
        for pid in dying:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(state_of(pid) == "Z" for pid in dying))  # to take a process down takes milliseconds
        os.kill(survivor, signal.SIGCONT)
        time.sleep(0.5)  # a note is made within milliseconds
        assert not end_file(stage, 1).exists()
    finally:
        os.kill(proxy, signal.SIGCONT)
        process.wait(20)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def threads_stopped(pid: int) -> bool:
    return all(
        file.read_text().rpartition(")")[2].split()[0] == "T" for file in Path(f"/proc/{pid}/task").glob("*/stat")
    )


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def ranks_of(path: Path) -> list[int]:
    try:
        return [rank["pid"] for rank in json.loads((path / "progress.json").read_bytes())["ranks"]]
    except (OSError, ValueError):
        return []


def test_an_error_that_a_rank_reports_is_no_death_of_anybodys_unit(toy):
    run = toy(ranks=2, units=20, seconds=0.05, fail=["u00001"], engine={"fail_fast": True, "retries": 0})
    assert run.code != 0
    stage = run.path / "checkpoints" / "squares"
    left = left_open(stage, journal_names(stage))
    assert left
    assert read_ends(stage, [1]) == {1: None}
    assert not blame(left, read_ends(stage, [1])).deaths
