"""Neither events nor logs grow without bounds, and what is left out is said."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.launch import drain
from hpc.launch.outcome import Ending, explain
from hpc.rundir import RunDir
from hpc.store.plain import read_end
from hpc.store.verify import verify_run
from hpc.watch import events
from hpc.watch.events import Events, read_events


def test_a_flood_of_records_is_cut_and_milestones_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "ROOM", 20_000)
    book = Events(tmp_path / "events.jsonl")
    book.emit("run_start", attempt=1)
    for k in range(2000):
        book.emit("warning", text=f"pixel {k} is hot")
    book.emit("stage_end", stage="squares", ranks=[])
    book.emit("run_end", state="done")
    found = list(read_events(tmp_path / "events.jsonl"))
    names = [record["event"] for record in found]
    warnings = names.count("warning")
    assert names == ["run_start", *["warning"] * warnings, "left_out", "stage_end", "left_out", "run_end"]
    assert found[-2]["records"] == 2000 - warnings
    assert (tmp_path / "events.jsonl").stat().st_size < 21_000
    again = Events(tmp_path / "events.jsonl")  # the next attempt goes on in the same file
    again.emit("run_start", attempt=2)
    again.emit("unit_failed", unit="u1", error="no")
    assert [r["event"] for r in read_events(tmp_path / "events.jsonl")][-2:] == ["run_start", "left_out"]


def test_a_very_long_text_is_cut(tmp_path):
    Events(tmp_path / "events.jsonl").emit("unit_failed", unit="u1", error="x" * 3_000_000)
    (found,) = read_events(tmp_path / "events.jsonl")
    assert found["error"].startswith("xxx")
    assert found["error"].endswith("characters left out)")
    assert (tmp_path / "events.jsonl").stat().st_size < 10_000


def test_a_ranks_log_is_bounded_and_keeps_the_newest(tmp_path):
    script = """
import logging, sys
from pathlib import Path
from hpc import rank
rank.LOG_BYTES = 10_000
rank._log_to(Path(sys.argv[1]))
for k in range(3000):
    logging.getLogger("noisy").warning("pixel %d is hot", k)
"""
    log = tmp_path / "logs" / "rank-00000.log"
    subprocess.run([sys.executable, "-c", script, str(log)], check=True)
    files = sorted(p.name for p in log.parent.iterdir())
    assert files == ["rank-00000.log", "rank-00000.log.1"]
    assert all(p.stat().st_size <= 10_000 for p in log.parent.iterdir())
    assert "pixel 2999 is hot" in log.read_text()
    assert logging.getLogger("noisy").handlers == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_ranks_print_is_bounded_and_keeps_the_newest(tmp_path, ranks):
    """Standard output of a real run: each unit prints 6 MiB."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "loud.py").write_text(
        "import toyjob\n"
        "class Loud(toyjob.Squares):\n"
        "    def run(self, unit, ctx):\n"
        "        print(f'begin {unit.key}', 'x' * (6 << 20), f'end {unit.key}', flush=True)\n"
        "        return super().run(unit, ctx)\n"
        "class LoudJob(toyjob.ToyJob):\n"
        "    def stages(self):\n"
        "        return [Loud(self.options)]\n"
    )
    (folder / "job").mkdir()
    (folder / "job" / "loud.yaml").write_text("_target_: loud.LoudJob\nname: loud\nunits: 6\n")
    path = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    run = RunDir(tmp_path / "run")
    words = ["--config-dir", str(folder), "job=loud", f"cluster.ranks={ranks}", f"run.dir={run.path}"]
    command = [sys.executable, "-m", "hpc", *words]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = {file.name: file.stat().st_size for file in run.logs.glob("launch.log*")}
    assert sorted(sizes) == ["launch.log", "launch.log.1"]
    assert sum(sizes.values()) < 2 * (drain.MOST + 65536)
    assert "end u0000" in (run.logs / "launch.log").read_text()


def test_the_end_of_a_log_that_was_begun_anew_is_all_of_it(tmp_path):
    log = tmp_path / "launch.log"
    log.write_text("begin\nMPI said why\n")
    assert read_end(log, 1 << 16, 7 << 20) == log.read_bytes()
    assert read_end(log, 1 << 16, 6) == b"MPI said why\n"
    assert read_end(log, 4, 6) == b"why\n"


def test_closing_words_read_the_end_of_a_large_log(tmp_path):
    run = RunDir.prepare(tmp_path / "run", {"job": {"name": "toy"}})
    log = run.logs / "launch.log"
    with log.open("w") as file:
        file.truncate(3 << 30)  # without blocks: reading it whole would take 3 GiB
        file.seek(0, 2)
        file.write("\nMPI said why\n")
    text = explain(Ending(run.path, 1, 1, 0.0, 0, log, 0)).plain
    assert "MPI said why" in text


def test_verify_counts_records_without_holding_them(tmp_path):
    run = RunDir.prepare(tmp_path / "run", {"job": {"name": "toy"}})
    line = json.dumps({"t": 1.0, "event": "warning", "text": "x" * 100}) + "\n"
    run.events_file.write_text(line * 1000)
    (verdict,) = [v for v in verify_run(run) if v.subject == "events.jsonl"]
    assert verdict.text.startswith("1000 records")
