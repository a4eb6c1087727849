"""What is read from a run directory, and how it is shown."""

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from hpc.cli.main import main
from hpc.errors import RunDirError
from hpc.watch.progress import Progress, Pulse
from hpc.watch.screen import duration, line, listing, screen, speed
from hpc.watch.status import find_runs, read_status

NOW = 1_000_000.0


def write_run(path: Path, heartbeat: float = 2.0, **changes) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"job: {{name: toy}}\nengine: {{heartbeat: {heartbeat}}}\n")
    stage = {"kind": "map", "quarantined": 0, "restored": 0, "seconds": 10.0}
    rank = {"host": "node1", "pid": 1, "heartbeat": NOW - 1, "unit": "u[red]7", "done": 5, "busy": 8.0, "rss_mb": 70}
    progress = {
        "schema": 1,
        "state": "running",
        "attempt": 2,
        "stage": "patches",
        "stages": [
            {**stage, "name": "prepare", "state": "done", "done": 4, "total": 4},
            {**stage, "name": "patches", "state": "running", "done": 30, "total": 40, "quarantined": 1, "new_key": 1},
        ],
        "rate": 0.5,
        "eta": 3725.0,
        "started": NOW - 100,
        "updated": NOW - 1,
        "size": 2,
        "threads": 4,
        "ranks": [{**rank, "rank": 0}, {**rank, "rank": 1, "unit": None}],
        "message": "",
    }
    (path / "progress.json").write_text(json.dumps({**progress, **changes}))
    return path


def text(renderable, width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_a_running_run(tmp_path):
    status = read_status(write_run(tmp_path / "run"), NOW)
    assert (status.state, status.job, status.size, status.quarantined) == ("running", "toy", 2, 1)
    assert status.current.done == 30
    shown = text(screen(status, NOW))
    for part in ("toy  running", "2 ranks × 4 threads", "attempt 2", "30/40", "30/min", "1 h 02 min to go"):
        assert part in shown
    assert "1 quarantined" in shown
    assert "u[red]7" in shown  # a unit's key is not markup
    assert "1.0 s ago" in shown
    assert line(status) == "running: patches 30/40 (1 quarantined), 30/min, 1 h 02 min to go"


def test_what_a_loop_says_of_its_state_is_shown(tmp_path):
    stage = {"name": "fit", "kind": "loop", "state": "running", "done": 3, "total": 0}
    told = {"phase": "[warm-up]", "cost": 123456.789, "points/s": 2.5e8}
    run = write_run(tmp_path / "run", stage="fit", stages=[{**stage, "figures": told}])
    status = read_status(run, NOW)
    for shown in (text(screen(status, NOW)), line(status)):
        assert "phase [warm-up]  cost 123457  points/s 2.5e+08" in shown
    assert status.as_json()["stages"][0]["figures"] == told


def test_a_loop_that_cannot_know_its_length_promises_no_end(tmp_path):
    run = write_run(tmp_path / "run")
    progress = Progress(run / "progress.json")
    progress.plan([("fit", "loop")])
    progress.begin(0, 0)
    for total, known in ((0, False), (10**9, True)):
        progress.reach(3, total, {})
        progress.write()
        status = read_status(run)
        assert (status.eta is not None) is known
        for shown in (text(screen(status, time.time())), line(status)):
            assert f"{speed(status.rate)}" in shown
            assert ("to go" in shown) is known


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_silent_run_is_lost_not_running(tmp_path, state):
    write_run(tmp_path / "run", state=state)
    assert read_status(tmp_path / "run", NOW + 28).state == state
    lost = read_status(tmp_path / "run", NOW + 40)
    assert lost.state == "lost"
    assert "lost (silent for 41 s)" in text(screen(lost, NOW + 40))


def test_a_slow_heartbeat_is_given_time(tmp_path):
    write_run(tmp_path / "run", heartbeat=60.0)
    assert read_status(tmp_path / "run", NOW + 500).state == "running"
    assert read_status(tmp_path / "run", NOW + 700).state == "lost"


def test_one_living_rank_keeps_a_run_alive(tmp_path):
    ranks = [{"rank": 0, "heartbeat": NOW - 500}, {"rank": 1, "heartbeat": NOW}]
    write_run(tmp_path / "run", ranks=ranks, updated=NOW - 500)
    assert read_status(tmp_path / "run", NOW).state == "running"


def test_ranks_of_this_machine_that_are_gone_are_lost_soon(tmp_path):
    here = os.uname().nodename
    gone = {"rank": 0, "host": here, "pid": 2**22 + 1, "heartbeat": NOW}  # above the kernel's largest pid
    write_run(tmp_path / "gone", ranks=[gone], updated=NOW)
    write_run(tmp_path / "alive", ranks=[{**gone, "pid": os.getpid()}], updated=NOW)
    assert read_status(tmp_path / "gone", NOW + 8).state == "lost"
    assert read_status(tmp_path / "alive", NOW + 8).state == "running"


@pytest.mark.parametrize("state", ["done", "failed", "stopped", "quarantined"])
def test_an_ended_run_stays_what_it_is(tmp_path, state):
    write_run(tmp_path / "run", state=state)
    assert read_status(tmp_path / "run", NOW + 1e6).state == state


def test_a_failure_that_the_ranks_could_not_report_counts(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "failure.json").write_text('{"error": "ValueError: no"}')
    status = read_status(run, NOW)
    assert (status.state, status.message) == ("failed", "ValueError: no")
    later = (run / "failure.json").stat().st_mtime + 60
    os.utime(run / "progress.json", (later, later))  # a second start failed, the first goes on
    assert read_status(run, NOW).state == "running"


def test_damaged_and_young_runs_do_not_hide_the_others(tmp_path):
    write_run(tmp_path / "a")
    (write_run(tmp_path / "b") / "progress.json").write_text("{")
    (write_run(tmp_path / "c") / "progress.json").unlink()
    (write_run(tmp_path / "d") / "config.yaml").write_text("[")
    states = [read_status(run, NOW).state for run in find_runs(tmp_path)]
    assert states == ["running", "unreadable", "not started", "unreadable"]
    shown = text(listing([read_status(run, NOW) for run in find_runs(tmp_path)], tmp_path, {}), 200)
    assert [row.split()[0] for row in shown.splitlines()] == ["run", "a", "b", "c", "d"]


def test_runs_are_found_one_and_two_levels_down_in_natural_order(tmp_path):
    for name in ("sweep/10", "sweep/9", "single"):
        write_run(tmp_path / name)
    assert [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)] == ["single", "sweep/9", "sweep/10"]
    assert find_runs(tmp_path / "single") == [tmp_path / "single"]
    with pytest.raises(RunDirError, match=r"holds: single, sweep"):
        find_runs(tmp_path / "singel")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirError, match=r"no config\.yaml"):
        find_runs(tmp_path / "empty")


def test_many_ranks_are_summed_up(tmp_path):
    ranks = [{"rank": r, "host": "n", "heartbeat": NOW - r, "unit": "u", "rss_mb": 1024} for r in range(40)]
    shown = text(screen(read_status(write_run(tmp_path / "run", ranks=ranks), NOW), NOW))
    assert "40 of 40 ranks in a unit, 40.0 GiB in all; longest silent: rank 39 on n, 39 s" in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0, "0.0 s"), (9.96, "10.0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7322, "2 h 02 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("rate", "said"), [(None, "–"), (0, "–"), (12.345, "12.3/s"), (0.5, "30/min"), (0.001, "3.6/h"), (1e-4, "8.64/day")]
)
def test_speeds(rate, said):
    assert speed(rate) == said


@pytest.mark.parametrize("width", [60, 80, 120, 10_000])
def test_names_of_runs_are_whole_at_any_width_and_a_run_takes_one_line(tmp_path, width):
    names = [f"photometry-20261130-22010{i}" for i in range(3)] + ["a\nb\x1b[31m"]
    for name in names:
        write_run(tmp_path / name)
    (tmp_path / names[1] / "failure.json").write_text(json.dumps({"error": "a long story " * 9, "rank": 0}))
    shown = text(listing([read_status(tmp_path / name, NOW) for name in names], tmp_path, {}), width).splitlines()
    assert [row.split()[0] for row in shown] == ["run", *names[:3], "a\\nb\\x1b[31m"]
    assert all("30/40" in row for row in shown[1:])
    if width >= 80:
        assert "a long story" in shown[2]
    assert all(len(row) <= width for row in shown)


def test_a_sweep_keeps_what_tells_its_members_apart(tmp_path):
    runs = [read_status(write_run(tmp_path / str(i)), NOW) for i in range(2)]
    labels = {run.path: f"seed={i} job.model=clip_b32" for i, run in enumerate(runs)}
    shown = text(listing(runs, tmp_path, labels), 80).splitlines()
    assert "seed=0 job.model=clip_b32" in shown[1]
    assert "seed=1 job.model=clip_b32" in shown[2]


def test_the_exit_code_tells_the_state_of_the_strongest_run(tmp_path, capsys):
    states = {"done": 0, "quarantined": 3, "stopped": 75, "failed": 1, "running": 4}
    rank = {"rank": 0, "host": "elsewhere", "heartbeat": time.time() + 60}
    for state in states:
        write_run(tmp_path / state, state=state, updated=time.time() + 60, ranks=[rank])
    for state, code in states.items():
        assert main(["status", "--exit-code", str(tmp_path / state)]) == code
        assert main(["status", str(tmp_path / state)]) == 0
    several = [str(tmp_path / state) for state in ("done", "failed", "stopped")]
    capsys.readouterr()
    assert main(["status", "--exit-code", *several]) == 1
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()] == ["run", "done", "failed", "stopped"]
    assert main(["status", "--exit-code", *several[::2]]) == 75
    assert main(["status", "--exit-code", str(tmp_path)]) == 4
    capsys.readouterr()
    assert main(["status", "--json", *several]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_an_ended_run_names_its_newest_log(tmp_path, capsys):
    run = write_run(tmp_path / "run", state="failed")
    (run / "logs").mkdir()
    for name, age in (("rank-00000.log", 50), ("slurm-7.log", 10), ("rank-00001.log", 90)):
        (run / "logs" / name).write_text("x")
        os.utime(run / "logs" / name, (time.time() - age,) * 2)
    assert main(["status", str(run)]) == 0
    assert f"logs         {run / 'logs' / 'slurm-7.log'}" in capsys.readouterr().out


def test_what_is_durable_counts_as_finished(tmp_path):
    progress = Progress(tmp_path / "progress.json")
    progress.plan([("squares", "map")])
    progress.begin(0, 10)
    progress.advance(3)  # the receipt for two more, already saved, is on its way when the run stops
    progress.pulse(Pulse(1, "here", 7, time.time(), saved_of="squares", saved=5))
    (stage,) = progress.snapshot()["stages"]
    assert (stage["done"], stage["saved"]) == (5, 5)
    progress.advance(2)
    assert progress.snapshot()["stages"][0]["done"] == 5
