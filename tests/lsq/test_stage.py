"""A fit in the engine: the same bits on any number of ranks, and however often it was killed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpc.context import Context
from hpc.rundir import RunDir
from hpc.store.lock import read_owner

pytestmark = pytest.mark.mpi

HERE = Path(__file__).resolve().parent


def prepare(path: Path, ranks: int, **options) -> Path:
    config = {
        "job": {"_target_": "numpyjob.NumpyFitJob", "name": "numpyfit", **options},
        "run": {"dir": str(path)},
        "cluster": {"ranks": ranks, "threads_per_process": 1},
        "checkpoint": {"every": "1 step"},
        "engine": {"heartbeat": 0.1},
        "seed": 3,
    }
    RunDir.prepare(path, config)
    return path


def start(path: Path, ranks: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "hpc.rank", str(path)]
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TESSERA_RANKS": str(ranks)}
    with path.with_name(f"{path.name}.out").open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def finished(path: Path, ranks: int) -> dict:
    code = start(path, ranks).wait(timeout=120)
    assert code == 0, path.with_name(f"{path.name}.out").read_text()
    return json.loads((path / "results" / "fit.json").read_text())


def test_ranks_do_not_show(tmp_path):
    """Tournament in groups of ranks, warm-up, Gauss-Newton, sandwich: the same bits on one, two and three ranks."""
    options = {"starts": 5, "warmup": 4, "sandwich": True}
    one, two, three = (finished(prepare(tmp_path / f"r{n}", n, **options), n) for n in (1, 2, 3))
    assert one["status"] == "CONVERGED"
    assert one == two == three
    truth = {"a": 1.4, "w": 2.2, "phi": 0.3, "g": 0.1}
    for name, value in truth.items():
        assert float.fromhex(one[name]) == pytest.approx(value, abs=0.02)
    assert float.fromhex(one["again"]) > 0


def test_killed_at_random_and_resumed_on_other_ranks(tmp_path):
    """Six times all ranks die by SIGKILL at a random instant; the end has the bits of the undisturbed fit."""
    options = {"starts": 4, "warmup": 12, "sandwich": True}
    whole = finished(prepare(tmp_path / "whole", 1, **options), 1)
    path, draw, struck = tmp_path / "run", random.Random(20), 0
    prepare(path, 1, seconds=0.05, **options)
    for attempt in range(6):
        ranks = (1, 2)[attempt % 2]
        process = start(path, ranks)
        wait_for_a_step(path, process)
        time.sleep(draw.uniform(0, 0.3))
        struck += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        wait_for(lambda: free(path))
    assert struck >= 4  # the fit is long enough for most kills to meet it
    assert finished(path, 1) == whole


def steps(path: Path) -> tuple:
    try:
        progress = json.loads((path / "progress.json").read_text())
        return progress["attempt"], progress["stages"][0]["done"]
    except (OSError, ValueError, IndexError):
        return ()


def wait_for_a_step(path: Path, process: subprocess.Popen) -> None:
    known = steps(path)
    wait_for(lambda: steps(path) != known or process.poll() is not None)


def free(path: Path) -> bool:
    owner = read_owner(path / "lock")
    return not (owner and Path(f"/proc/{owner['pid']}").exists())


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def job():
    spec = importlib.util.spec_from_file_location("numpyjob", HERE / "numpyjob.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["numpyjob"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["numpyjob"]


def walk(stage, ctx):
    """Return all states of a loop."""
    states = [stage.start(ctx)]
    while not stage.done(states[-1]):
        states.append(stage.step(states[-1], ctx))
    return states


@pytest.mark.parametrize("given", [{"starts": 3, "warmup": 3}, {"warmup": 5}, {"far": True}])
def test_any_state_leads_to_the_same_end_in_a_new_process(job, tmp_path, given):
    ctx = Context(results_dir=tmp_path)
    options = job.FitOptions(**given)
    states = walk(job.NumpyFitJob(options).stages()[0], ctx)
    assert len(states) > 8
    for state in states:
        copy = {k: np.array(v) for k, v in state.items()}
        fresh = job.NumpyFitJob(options).stages()[0]
        while not fresh.done(copy):
            copy = fresh.step(copy, ctx)
        assert copy.keys() == states[-1].keys()
        assert all(np.array_equal(copy[k], states[-1][k], equal_nan=True) for k in copy)


def test_says_how_it_gets_on(job, tmp_path):
    ctx = Context(results_dir=tmp_path)
    stage = job.NumpyFitJob(job.FitOptions(starts=3, warmup=3)).stages()[0]
    state, told = stage.start(ctx), []
    while not stage.done(state):
        state = stage.step(state, ctx)
        told.append((stage.figures(state), stage.steps(state)))
    phases = list(dict.fromkeys(f["phase"] for f, _ in told))
    assert phases[0] == "multi-start round 1"
    assert phases[-4:] == ["warm-up", "gauss-newton", "results", "done"]
    counts = [done for _, (done, _) in told]
    assert counts == sorted(counts)
    assert told[-1][1][0] == told[-1][1][1]
    costs = [f["cost"] for f, _ in told if f["phase"] != "first"]
    assert costs[-1] == min(costs)
    last = told[-2][0]
    assert {"cost", "step", "gradient", "radius", "decrement", "points/s"} <= last.keys()
    assert stage.figures(state)["gradient"] < 1e-6


def test_foretells_the_passes_to_come(job, tmp_path):
    stage = job.NumpyFitJob(job.FitOptions()).stages()[0]
    foretold = [stage.steps(state) for state in walk(stage, Context(results_dir=tmp_path))]
    end = foretold[-1][0]
    assert foretold[0] == (0, 0)  # not yet known
    guesses = [total for done, total in foretold[2:-2] if total]
    assert guesses
    assert abs(guesses[-1] - end) <= 2


def test_profile_is_written(job, tmp_path):
    ctx = Context(results_dir=tmp_path)
    stage = job.NumpyFitJob(job.FitOptions(warmup=3, profile=True)).stages()[0]
    stage.finish(walk(stage, ctx)[-1], ctx)
    tree = json.loads((tmp_path / "profile" / "timing.json").read_text())
    names = {tree["name"]}
    parts = list(tree["parts"])
    while parts:
        part = parts.pop()
        names.add(part["name"])
        parts += part["parts"]
    assert {"fit", "normalisation", "warm-up", "solve", "reduction", "chunks", "checkpoint"} <= names
    assert "warm-up" in (tmp_path / "profile" / "timing.txt").read_text()
