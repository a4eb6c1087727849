"""Faults of who owns a run: unreaped owners, pids given away, other containers, wrong clocks, lost answers, whole deaths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from harness import PATIENCE, Harness, Struck, child_environment
from protocol import partial_run
from whole_runs import SLOW, kill, rank_pids, start_ranks, wait_until_free

from hpc.errors import LockedError
from hpc.process import started
from hpc.store.lock import _new_owner, read_owner
from hpc.store.records import sealed

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def can_unshare() -> bool:
    """Whether a pid namespace can be made here."""
    return os.geteuid() == 0 and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


def forge(path: Path, **changes) -> None:
    """Put the lock of another owner there, touched just now."""
    owner = {**_new_owner(), "token": "another", **changes}
    (path / "lock").write_text(json.dumps(sealed(owner)))


def must_be_refused(harness: Harness, struck: Struck) -> None:
    """Fail unless an attempt sees that the run may be in somebody's hands."""
    try:
        harness.prepare(struck.scenario.config, struck.path)
    except LockedError:
        return
    msg = "a lock that was touched a moment ago was not respected"
    raise AssertionError(msg)


def zombie_owner(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill the owner and do not reap it, as containers without an init do."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    command = [sys.executable, "-m", "hpc.rank", str(path)]
    process = subprocess.Popen(command, env=child_environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        rank_pids(path)
        time.sleep(float(rng.uniform(0, 0.5)))
        process.kill()
        end = time.monotonic() + PATIENCE
        while started(process.pid) is not None and time.monotonic() < end:
            time.sleep(0.01)
        code = harness.resume(path, scenario.config, 1)
    finally:
        harness.end_of(process)
    return Struck(path, scenario, done=code == scenario.truth.code)


def recycled_pid(harness: Harness, rng: np.random.Generator) -> Struck:
    """Give the dead owner's pid to a process of somebody else, which must survive cancel and resume."""
    struck = partial_run(harness, rng)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        try:
            forge(struck.path, pid=innocent.pid)
            cancel = [sys.executable, "-m", "hpc", "cancel", "--now", str(struck.path)]
            subprocess.run(cancel, env=child_environment(), capture_output=True, timeout=PATIENCE)
            code = harness.resume(struck.path, struck.scenario.config, 1)
            assert innocent.poll() is None, "an innocent process was killed"
        finally:
            innocent.kill()
    return Struck(struck.path, struck.scenario, done=code == struck.scenario.truth.code)


def other_container(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let a rank work in another pid namespace of this host: it is not disturbed; killed, it counts as dead by silence."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    command = [*NAMESPACE, sys.executable, "-m", "hpc.rank", str(path)]
    process = subprocess.Popen(command, env=child_environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    struck = Struck(path, scenario)
    try:
        rank_pids(path)
        if (owner := read_owner(path / "lock")) is not None:
            assert owner["pid"] < 100, owner
            must_be_refused(harness, struck)
        time.sleep(float(rng.uniform(0, 0.3)))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        harness.end_of(process)
    if (path / "lock").exists():
        os.utime(path / "lock", (time.time() - 1000, time.time() - 1000))
    return struck


def clock_off(harness: Harness, rng: np.random.Generator) -> Struck:
    """Start where the clock is 90 s off while an owner elsewhere lives; later it falls silent."""
    struck = partial_run(harness, rng)
    harness.prepare(struck.scenario.config, struck.path)
    forge(struck.path, host="elsewhere")
    code = harness.attempt(struck.path, clock=float(rng.choice([-90.0, 90.0, 3600.0])))
    assert code == 2, f"a live run was taken over: exit {code}"
    os.utime(struck.path / "lock", (time.time() - 1000, time.time() - 1000))
    return struck


def lost_answer(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let the link that makes the lock do its work and fail all the same, as NFS does when an answer is lost."""
    struck = partial_run(harness, rng)
    harness.prepare(struck.scenario.config, struck.path)
    code = harness.attempt(struck.path, lost_link=str(rng.choice(["EEXIST", "EIO", "ETIMEDOUT"])))
    return Struck(struck.path, struck.scenario, done=code == struck.scenario.truth.code)


def everything_fails(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let every unit fail in one attempt: it stops early, blames none, and the next attempt finds nothing lost."""
    scratch = harness.new_path()
    scratch.mkdir()
    units = 60
    truth = harness.scenario("sixty", units=units)
    keys = [f"u{k:05d}" for k in range(units)]
    failing = harness.scenario(f"failing {scratch.name}", like=truth, units=units, fail_once=keys, scratch=str(scratch))
    failing.config["engine"]["retries"] = 0
    failing.config["engine"]["give_up_after"] = int(rng.integers(5, 25))
    path = harness.prepare(failing.config)
    code = harness.attempt(path)
    assert code == 1, f"exit {code} where everything fails"
    assert not (path / "checkpoints/squares/quarantine.json").exists()
    assert len(list(scratch.iterdir())) < units, "all units were tried"
    for key in keys:
        (scratch / f"tried-{key}").touch()
    return Struck(path, failing)


def whole_deaths(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill the whole job as often as a unit may die: no unit that was in flight is given up for it."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    faults = 0
    for _ in range(scenario.config["engine"]["max_unit_deaths"]):
        process = start_ranks(path, 3)
        try:
            pids = rank_pids(path)
            time.sleep(float(rng.uniform(0, 0.2)))
            faults += kill(pids) > 0
        finally:
            harness.end_of(process)
        wait_until_free(path)
        (path / "progress.json").unlink(missing_ok=True)
        harness.prepare(scenario.config, path)
    return Struck(path, scenario, faults=faults)
