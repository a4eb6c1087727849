"""Faults around a run's end: signals during a slow save and after the end, and a rank that fails on its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from harness import PATIENCE, Harness, Scenario, Struck, child_environment, output_of
from whole_runs import SLOW, rank_pids, start, start_ranks

SLOW_DISK = """
import os, time
if os.environ.get("PMI_RANK") == "1":
    true = os.fsync
    os.fsync = lambda file: (time.sleep(0.4), true(file))[1]
"""


def signal_during_a_slow_save(harness: Harness, rng: np.random.Generator) -> Struck:
    """Tell ranks to stop while one is in a unit that outlasts the grace period and another's disk is slow."""
    scenario = _once(harness, slow=[f"u{rng.integers(30):05d}"])
    scenario.config["engine"]["grace"] = 0.3
    path = harness.prepare(scenario.config)
    disk = path.with_name(f"disk-{path.name}")
    disk.mkdir()
    (disk / "sitecustomize.py").write_text(SLOW_DISK)
    process = start_ranks(path, 2, PYTHONPATH=os.pathsep.join([str(disk), child_environment()["PYTHONPATH"]]))
    began = Path(scenario.config["job"]["scratch"]) / f"tried-{scenario.config['job']['slow'][0]}"
    end = time.monotonic() + PATIENCE
    while not began.exists():
        assert time.monotonic() < end, output_of(path).read_text()
        time.sleep(0.01)
    time.sleep(float(rng.uniform(0, 0.5)))
    number, code = ((signal.SIGTERM, 76), (signal.SIGUSR1, 75))[rng.integers(2)]
    process.send_signal(number)
    returned = harness.end_of(process)
    said = output_of(path).read_text()
    assert returned == code, f"exit {returned} after signal {number}: {said}"
    stage = json.loads((path / "progress.json").read_bytes())["stages"][0]
    assert stage["saved"] == stage["done"], f"{stage['done']} units were finished, {stage['saved']} saved: {said}"
    return Struck(path, scenario)


def signal_after_the_end(harness: Harness, rng: np.random.Generator) -> Struck:
    """Signal the ranks when the books are closed, and before they have left: done is done."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    ranks = int(rng.integers(1, 3))
    process = start_ranks(path, ranks) if ranks > 1 else start(path, [sys.executable, "-m", "hpc.rank", str(path)])
    pids = rank_pids(path)
    end = time.monotonic() + PATIENCE
    while '"run_end"' not in (path / "events.jsonl").read_text():
        assert time.monotonic() < end, output_of(path).read_text()
        time.sleep(0.001)
    struck = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, (signal.SIGTERM, signal.SIGUSR2)[rng.integers(2)])
            struck = 1
    returned = harness.end_of(process)
    assert returned == scenario.truth.code, f"exit {returned}: {output_of(path).read_text()}"
    state = json.loads((path / "progress.json").read_bytes())["state"]
    assert state == "done", state
    return Struck(path, scenario, faults=struck, done=True)


def rank_fails_by_itself(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let the only rank fail while its writer is at work: it ends, and says why."""
    scenario = _once(harness, fail_once=[f"u{rng.integers(3, 30):05d}"])
    scenario.config["engine"] |= {"fail_fast": True, "retries": 0}
    scenario.config["checkpoint"]["every"] = float(rng.choice([0.0, 0.05, 1000.0]))
    path = harness.prepare(scenario.config)
    returned = harness.end_of(start(path, [sys.executable, "-m", "hpc.rank", str(path)]))
    assert returned == 1, f"exit {returned}: {output_of(path).read_text()}"
    failure = json.loads((path / "failure.json").read_bytes())
    assert failure["unit"] == scenario.config["job"]["fail_once"][0], failure
    return Struck(path, scenario)


def _once(harness: Harness, **options: object) -> Scenario:
    """Return a scenario in which something happens on the first try of a run only; its truth is that of any other."""
    scratch: Path = harness.new_path()
    scratch.mkdir()
    like = harness.scenario("slow", **SLOW)
    return harness.scenario(f"once {scratch.name}", like=like, **SLOW, **options, scratch=str(scratch))
