"""`tessera cancel` with made-up SLURM commands: many jobs at once, and on past what it cannot reach."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from slurm_queue import job, queue

from hpc.cli.main import main
from hpc.launch import scancel
from hpc.watch.submissions import record_submission


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return a function that adds a command which notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{script}\n')
        (folder / name).chmod(0o755)

    for name in ("sacct", "scontrol"):
        add(name, "exit 1")
    add("scancel", "")
    return add


def calls(folder: Path, name: str) -> list[str]:
    return [line for line in (folder / "calls").read_text().splitlines() if line.startswith(f"{name} ")]


def run_of(folder: Path, name: str, slurm_id: str) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("job: {name: toy, _target_: toyjob.ToyJob}\nrun: {dir: r}\n")
    record_submission(run, slurm_id, {}, "")
    return run


def test_jobs_that_follow_each_other_are_one_word():
    assert list(scancel.ranges(["7", "30_2", "30_0", "30_1", "30_9", "7", "31_4"])) == ["7", "30_[0-2]", "30_9", "31_4"]


def test_a_thousand_members_are_one_command(slurm, tmp_path, capsys):
    for n in range(300):
        run_of(tmp_path / "s", str(n), f"30_{n}")
    waiting = queue(*(job(f"30_{n}", "PENDING", Reason="Priority") for n in range(300)))
    slurm("squeue", f"[ -e {tmp_path}/ended ] || {{ {waiting}; }}")
    slurm("scancel", f"touch {tmp_path}/ended")
    assert main(["cancel", str(tmp_path / "s")]) == 0
    assert calls(tmp_path, "scancel") == ["scancel 30_[0-299]"]
    assert len(calls(tmp_path, "squeue")) <= 4
    assert capsys.readouterr().out.count("tessera resume") == 300


def test_what_cannot_be_ended_does_not_stop_the_rest(slurm, tmp_path, capsys):
    a, b, c = (run_of(tmp_path / "f", name, str(number)) for number, name in enumerate("abc", 11))
    rows = (job(n, "PENDING") for n in ("11", "12", "13"))
    gone = queue(job("11", "PENDING"), job("12", "CANCELLED"), job("13", "CANCELLED"))
    slurm("squeue", f"if [ -e {tmp_path}/ended ]; then {gone}; else {queue(*rows)}; fi")
    words = "scancel: error: Kill job error on job id 11: Access/permission denied"
    slurm("scancel", f"touch {tmp_path}/ended; echo '{words}' >&2; exit 1")
    nothing = tmp_path / "nothing"
    assert main(["cancel", str(nothing), str(tmp_path / "f")]) == 1
    said = capsys.readouterr()
    assert f"error: {a}: {words}" in said.err
    assert "does not exist" in said.err
    assert [f"{run}: taken out of the queue" in said.out for run in (a, b, c)] == [False, True, True]


def test_silence_is_not_nothing_to_cancel(slurm, tmp_path, capsys):
    run = run_of(tmp_path, "r", "11")
    slurm("squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1")
    assert main(["cancel", str(run)]) == 1
    said = capsys.readouterr()
    assert "nothing to cancel" not in said.out
    assert "asked SLURM to end job 11, but SLURM did not say" in said.err
    assert calls(tmp_path, "scancel") == ["scancel 11"]


def test_ranks_that_slurm_has_suspended_are_not_asked_to_save(slurm, tmp_path):
    """SLURM refuses to signal them, and tries for a minute and a half."""
    record = {"ranks": [], "updated": 4e9, "started": 1.0, "state": "running", "attempt": 1, "stage": None}
    record |= {"stages": [], "rate": None, "eta": None, "size": 1, "threads": 1, "message": ""}
    for name, number in (("frozen", "11"), ("working", "12")):
        (run_of(tmp_path / "f", name, number) / "progress.json").write_text(json.dumps(record))
    rows, gone = ([job("11", a), job("12", b)] for a, b in (("SUSPENDED", "RUNNING"), ("CANCELLED", "CANCELLED")))
    slurm("squeue", f"if [ -e {tmp_path}/ended ]; then {queue(*gone)}; else {queue(*rows)}; fi")
    note = json.dumps({**record, "state": "stopped"})
    slurm("scancel", f"touch {tmp_path}/ended; for r in {tmp_path}/f/*; do echo '{note}' > $r/progress.json; done")
    assert main(["cancel", str(tmp_path / "f")]) == 0
    assert calls(tmp_path, "scancel") == ["scancel --signal=TERM 12", "scancel 11"]


def test_a_run_that_went_on_without_slurm_is_not_looked_for_there(slurm, tmp_path, capsys, monkeypatch):
    run = run_of(tmp_path, "r", "11")
    record = {"ranks": [], "updated": 4e9, "started": 1.0, "state": "running", "attempt": 1, "stage": None}
    record |= {"stages": [], "rate": None, "eta": None, "size": 1, "threads": 1, "message": ""}
    (run / "progress.json").write_text(json.dumps(record))
    slurm("squeue", "")
    monkeypatch.setattr("hpc.cli.cancel.read_owner", lambda _: {"host": "elsewhere"})
    monkeypatch.setattr("hpc.cli.cancel.is_held", lambda _: True)
    assert main(["cancel", str(run)]) == 1
    assert "its ranks run on elsewhere" in capsys.readouterr().err
    assert not calls(tmp_path, "scancel") if (tmp_path / "calls").exists() else True


def test_ranks_that_speak_from_another_host_are_not_waited_for(tmp_path, capsys):
    run = tmp_path / "r"
    run.mkdir()
    (run / "config.yaml").write_text("job: {name: toy, _target_: toyjob.ToyJob}\nrun: {dir: r}\n")
    rank = {
        "rank": 0,
        "host": "elsewhere",
        "pid": 1,
        "heartbeat": 4e9,
        "unit": None,
        "done": 0,
        "busy": 0.0,
        "rss_mb": 1.0,
    }
    record = {"ranks": [rank], "updated": 4e9, "started": 1.0, "state": "running", "attempt": 1, "stage": None}
    record |= {"stages": [], "rate": None, "eta": None, "size": 1, "threads": 1, "message": ""}
    (run / "progress.json").write_text(json.dumps(record))
    begun = time.monotonic()
    assert main(["cancel", str(run)]) == 1
    assert "its ranks run on elsewhere" in capsys.readouterr().err
    assert time.monotonic() - begun < 20
