"""Files of a run directory, read by status, verify, report and a resume."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

STAGE_FILES = {
    "segment": "checkpoints/squares/seg-*.h5",
    "generation": "checkpoints/walk/gen-*.h5",
    "commit record": "checkpoints/walk/gen-*.json",
    "complete.json": "checkpoints/squares/complete.json",
    "journal": "checkpoints/squares/begun-*.txt",
}
TOP_FILES = ("config.yaml", "progress.json", "events.jsonl", "provenance.json", "inputs.json", "kernels.json")


def formats():
    from mutation.formats import Format

    files = {**{name: name for name in TOP_FILES}, **STAGE_FILES}
    made = {f"run {name}": Format(partial(_run, pattern=pattern), _read) for name, pattern in files.items()}
    written = {"failure.json": _failure, "slurm.json": _submissions, "quarantine.json": _quarantine, "lock": _lock}
    made |= {f"run {name}": Format(write, _read) for name, write in written.items()}
    made["run sweep.json"] = Format(_sweep, _read_sweep)
    made["config folder"] = Format(_option, _read_option)
    return made


def _run(folder: Path, pattern: str = "config.yaml") -> Path:
    path = folder / "run"
    template = folder.parent / "template"
    if not template.exists():
        _finished_run(template)
    shutil.copytree(template, path)
    return min(path.glob(pattern))


def _finished_run(path: Path) -> None:
    from hpc.rundir import RunDir

    config = {
        "job": {"_target_": "toyjob.ToyJob", "name": "toy", "units": 6, "steps": 3},
        "run": {"dir": str(path)},
        "cluster": {"ranks": 1, "threads_per_process": 1},
        "checkpoint": {"every": 0.0},
        "seed": 5,
    }
    RunDir.prepare(path, config)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "SLURM"))}
    subprocess.run([sys.executable, "-m", "hpc.rank", str(path)], check=True, capture_output=True, env=environment)


def _failure(folder: Path) -> Path:
    path = _run(folder).with_name("failure.json")
    record = {"rank": 0, "host": "n", "stage": "squares", "unit": "u1", "error": "ValueError: no", "message": "no"}
    path.write_text(json.dumps({**record, "expected": False, "exit_code": 1, "traceback": "T\n  line\n"}, indent=1))
    return path


def _submissions(folder: Path) -> Path:
    from hpc.watch.submissions import record_submission

    run = _run(folder).parent
    record_submission(run, "12_3", {"launcher": "slurm"}, "#!/bin/bash\n")
    return run / "slurm.json"


def _quarantine(folder: Path) -> Path:
    from hpc.store.records import write_keyed

    path = _run(folder).parent / "checkpoints" / "squares" / "quarantine.json"
    record = {"key": "u00003", "error": "ValueError: no", "traceback": "T\n", "rank": 0, "attempt": 1}
    write_keyed(path, {"u00003": record})
    return path


def _lock(folder: Path) -> Path:
    from hpc.store.lock import RunLock

    path = _run(folder).with_name("lock")
    RunLock(path)
    return path


def _sweep(folder: Path) -> Path:
    from hpc.watch.sweeps import MemberRecord, write_sweep

    _run(folder)
    members = [MemberRecord("run", "seed=1", ("job=toy", "seed=1")), MemberRecord("2", "seed=2", ("job=toy",))]
    write_sweep(folder, members)
    return folder / "sweep.json"


def _root(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.name == "run")


def _read(path: Path) -> None:
    from hpc.options import build, plain
    from hpc.report.write import write_report
    from hpc.rundir import RunDir
    from hpc.settings import Settings
    from hpc.store.generations import load_newest
    from hpc.store.lock import refuse_if_held
    from hpc.store.segments import StoredResults, scan
    from hpc.store.verify import verify_run

    run = RunDir(_root(path))
    _show(run.path)
    explained = None
    for act in (
        lambda: list(verify_run(run)),
        lambda: write_report(_Silent(), run),
        lambda: RunDir.open(run.path).check_version(),
        lambda: plain(build(Settings, run.load_config(), "config")),
        lambda: refuse_if_held(run.lock_file),
    ):
        try:
            act()
        except Exception as error:
            if not type(error).__module__.startswith("hpc."):
                raise
            explained = error
    for stage in ("squares", "walk"):
        found = scan(run.stage(stage))
        results = StoredResults(run.stage(stage), found.home)
        for key in results:
            results[key]
        load_newest(run.stage(stage))
        run.quarantined()
    if explained is not None:
        raise explained


class _Silent:
    def report(self, view):
        return []


def _show(run: Path) -> None:
    import time

    from rich.console import Console

    from hpc.watch.screen import line, listing, screen
    from hpc.watch.status import read_status

    status = read_status(run)
    json.dumps(status.as_json(), allow_nan=False)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=100)
    console.print(screen(status, time.time()))
    console.print(listing([status], run.parent, {}))
    line(status)


def _option(folder: Path) -> Path:
    path = folder / "job" / "mine.yaml"
    path.parent.mkdir()
    shared = "fail: &few [u1, u2]\nkill: *few\n"
    path.write_text(f"# A job of my own.\n_target_: toyjob.ToyJob\nname: toy\nunits: 6\nseconds: 1.5e-3\n{shared}")
    return path


def _read_option(path: Path) -> None:
    """Compose as the command line does, and check every value."""
    from hpc.cli.compose import compose_config, resolved
    from hpc.cli.folders import config_folders, headline
    from hpc.load import load_job

    headline(path)
    folders = config_folders([str(path.parents[1])])
    load_job(resolved(compose_config(["job=mine"], folders), ["job=mine"], folders)["job"])


def _read_sweep(path: Path) -> None:
    from hpc.report.gather import gather

    gather(path.parent)
