"""The lsq job: a model from a file, data from HDF5, results on disk; the same on any number of ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from hpc.context import Context
from hpc.errors import ConfigError, InputError
from hpc.options import absolute_paths, build
from hpc.report.view import RunView
from hpc.rundir import RunDir
from tessera.lsq.job import LsqJob
from tessera.lsq.job_options import DataOptions, LsqOptions
from tessera.lsq.output import read_fit
from tessera.lsq.report import digits

MODEL = """
import jax.numpy as jnp

def decay(t, a, b, c):
    return a * jnp.exp(-b * t) + c

def steps(x, a, b, c):
    return a * jnp.exp(-b * x[0]) + c

def twice(t, a, b, c):
    return (a + b) * jnp.exp(-t) + c

def broken(t, a, b, c):
    return jnp.log(a - 10) * t
"""
TRUTH = {"a": 2.5, "b": 1.3, "c": 0.5}
N = 40_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model file and its data: 40,000 points with errors, 20 of them bad; the third chunk has outliers."""
    path = tmp_path_factory.mktemp("lsq")
    (path / "fit_model.py").write_text(MODEL)
    rng = np.random.default_rng(4)
    t, sigma = rng.uniform(0, 4, N), rng.uniform(0.02, 0.1, N)
    y = 2.5 * np.exp(-1.3 * t) + 0.5 + sigma * rng.standard_normal(N)
    y[10_000:10_020] += 5
    with h5py.File(path / "d.h5", "w") as file:
        file["t"], file["run/y"], file["err"] = t, y, sigma
        file["good"] = (np.arange(N) % 1000 != 7).astype(np.uint8)
        file["group"] = (np.arange(N) % 2).astype(np.float64)
        spoilt = y.copy()
        spoilt[12_345] = np.nan
        file["spoilt"] = spoilt
    np.savetxt(path / "few.csv", np.column_stack([t[:2], y[:2]]), delimiter=",", header="t,y", comments="")
    return path


def options(folder: Path, **changes) -> LsqOptions:
    values = {
        "model": "fit_model.py:decay",
        "data": {"path": "d.h5", "x": ["t"], "y": "run/y", "sigma": "err"} | changes.pop("data", {}),
        "p0": {"a": 1.0, "b": 0.5, "c": 0.0},
        "config": {"chunk_size": 4000},
    }
    return build(LsqOptions, absolute_paths(LsqOptions, values | changes, folder))


def fitted(folder: Path, results: Path, **changes):
    """Run the job in this process; returns what it wrote and the job."""
    results.mkdir(parents=True, exist_ok=True)
    job, ctx = LsqJob(options(folder, **changes)), Context(results_dir=results)
    job.check()
    job.setup(ctx)
    (stage,) = job.stages()
    state = stage.start(ctx)
    while not stage.done(state):
        state = stage.step(state, ctx)
    stage.finish(state, ctx)
    return json.loads((results / "parameters.json").read_text()), job


def test_results_and_report(folder, tmp_path):
    record, job = fitted(folder, tmp_path / "results", profile=True, absolute_sigma=True, errors="sandwich")
    assert record["success"]
    for name, value in TRUTH.items():
        found = record["parameters"][name]
        assert abs(found["value"] - value) < 5 * found["error"]
    arrays = read_fit(tmp_path / "results" / "fit.h5")
    assert arrays["names"].tolist() == list(TRUTH)
    assert arrays["covariance"].shape == arrays["correlation"].shape == (3, 3)
    assert arrays["history/cost"].shape == arrays["history/accepted"].shape
    chi2, count = arrays["chunk_chi2"], arrays["chunk_count"]
    assert count.tolist() == [4000] * 10
    assert chi2.sum() == pytest.approx(record["chi2"], rel=1e-12)
    assert np.argmax(chi2) == 2
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["a"] == record["parameters"]["a"]["value"]
    sections = job.report(RunView(tmp_path, {}, (), {}))
    assert [s.title for s in sections] == ["Parameters", "Convergence", "Correlation", "Chunks", "Profile"]
    assert sections[3].tables[0].rows[0][0] == 2  # the chunk with the outliers leads
    assert all(f.image.startswith(b"\x89PNG") or b"<svg" in f.image[:300] for s in sections for f in s.figures)
    assert (tmp_path / "results" / "profile" / "trace-pass-000").is_dir()


def test_a_fit_that_fails_is_a_complaint_with_the_remedy(folder, tmp_path):
    record, job = fitted(folder, tmp_path, model="fit_model.py:twice")
    assert not record["success"]
    words = job.complaint(Context(results_dir=tmp_path))
    assert "SINGULAR" in words
    assert "a, b" in words
    _, good = fitted(folder, tmp_path)
    assert good.complaint(Context(results_dir=tmp_path)) is None


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (2.500189487, 4.172e-4, "2.50019"),
        (1500.2, 33.0, "1500"),
        (1234567.8, 450.0, "1.23457e+06"),
        (3.2e-14, 1.2e-15, "3.20e-14"),
        (0.1, None, "0.1"),
        (None, 1.0, None),
        (0.0, 0.5, "0.00"),
    ],
)
def test_values_have_the_digits_of_their_errors(value, error, said):
    assert digits(value, error) == said


def test_report_of_an_unfinished_run(folder, tmp_path):
    (section,) = LsqJob(options(folder)).report(RunView(tmp_path, {}, (), {}))
    assert "not ended" in section.text


def test_mask_groups_linear_and_multistart(folder, tmp_path):
    record, _ = fitted(folder, tmp_path / "m", data={"mask": "good"}, linear=["a", "c"], preset="aggressive")
    assert (record["points"], record["points_left_out"]) == (N - N // 1000, N // 1000)
    record, _ = fitted(
        folder,
        tmp_path / "g",
        model="fit_model.py:steps",
        data={"x": ["t", "group"]},
        groups={"names": ["c"], "row": 1, "count": 2},
        bounds={"a": [0.5, 5], "b": [0, 3], "c": [-1, 2]},
        config={"chunk_size": 4000, "enable_multistart": True, "n_starts": 3},
    )
    assert record["parameters"]["c[0]"]["value"] == pytest.approx(record["parameters"]["c[1]"]["value"], abs=0.01)
    assert record["parameters"]["b"]["value"] == pytest.approx(1.3, abs=0.02)


def test_nan_in_the_data(folder, tmp_path):
    record, _ = fitted(folder, tmp_path / "m", data={"y": "spoilt", "nan_policy": "mask"})
    assert record["points_left_out"] == 1
    record, _ = fitted(folder, tmp_path / "s", data={"y": "spoilt", "nan_policy": "skip"})
    assert record["points_left_out"] == 4000
    with pytest.raises(InputError, match="chunk 3 holds 1 points that are not finite, the first in y at point 12345"):
        fitted(folder, tmp_path / "r", data={"y": "spoilt"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "fit_model.py:rise"}, "no function 'rise'; it has: broken, decay, steps"),
        ({"model": "other.py:decay"}, "does not exist; .* has: fit_model.py"),
        ({"model": "no_such_module:decay"}, "no_such_module cannot be imported"),
        ({"model": "fit_model.py"}, "names no function"),
        ({"data": {"y": "z"}}, r"no z; it holds: err \(40000,\)"),
        ({"data": {"path": "gone.h5"}}, "gone.h5 does not exist"),
        ({"data": {"path": "few.csv", "y": "y", "sigma": None}}, "2 points, which cannot determine 3 parameters"),
        ({"p0": {"a": 1.0, "b": 0.5}}, "p0: .*missing|p0 has 2 values"),
        ({"p0": [1.0, 0.5]}, "p0 has 2 values"),
        ({"bounds": {"q": [0, 1]}}, "job.bounds names q; the parameters are a, b, c"),
        ({"bounds": {"a": [2, 1]}}, "lower bound 2 is not below the upper bound 1"),
        ({"bounds": {"a": [2, None]}}, "a = 1 lies outside its bounds"),
        ({"preset": "agressive"}, "did you mean aggressive"),
        ({"config": {"chunk_sise": 1}}, "did you mean chunk_size"),
    ],
)
def test_wrong_input_is_found_before_anything_starts(folder, changes, words):
    with pytest.raises(InputError, match=words):
        LsqJob(options(folder, **changes)).check()


def test_a_model_without_values_is_found_on_the_first_chunk(folder, tmp_path):
    with pytest.raises(InputError, match="model is nan at the start values a = 1"):
        fitted(folder, tmp_path / "b", model="fit_model.py:broken")


def test_wrong_types_are_complaints_about_keys(folder):
    with pytest.raises(ConfigError, match=r"job.loss: .*soft_l1"):
        options(folder, loss="square")
    with pytest.raises(ConfigError, match=r"job.data.nan_policy"):
        options(folder, data={"nan_policy": "ignore"})


def test_the_documented_defaults_are_the_real_ones(request):
    """conf/job/lsq.yaml has every key of the options, with the default the code has."""
    documented = yaml.safe_load((request.config.rootpath / "conf" / "job" / "lsq.yaml").read_text())
    assert documented.pop("_target_") == "tessera.lsq.job.LsqJob"
    assert documented.pop("name") == "lsq"
    documented |= {"model": "m.py:f", "data": documented["data"] | {"path": "d.h5"}}
    fields = {f.name for f in dataclasses.fields(LsqOptions)}
    assert documented.keys() == fields
    assert documented["data"].keys() == {f.name for f in dataclasses.fields(DataOptions)}
    least = build(LsqOptions, {"model": "m.py:f", "data": {"path": "d.h5", "x": ["x"], "y": "y"}})
    assert build(LsqOptions, documented) == least


@pytest.fixture(scope="module")
def typed(folder, tmp_path_factory) -> Path:
    """A run of one rank from the command line, with paths relative to where it is typed."""
    run = tmp_path_factory.mktemp("typed") / "run"
    words = ["job=lsq", "job.model=fit_model.py:decay", "job.data.path=d.h5", "job.data.x=[t]", "job.data.y=run/y"]
    words += ["job.data.sigma=err", "job.p0={a: 1, b: 0.5, c: 0}", "job.config={chunk_size: 4000}"]
    command = [sys.executable, "-m", "hpc", *words, f"run.dir={run}", "cluster.ranks=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.mark.mpi
def test_from_the_command_line(typed):
    assert json.loads((typed / "results" / "parameters.json").read_text())["success"]
    assert "Correlation" in (typed / "report" / "index.html").read_text()


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "threads"), [(2, 2), (3, 1)])
def test_ranks_and_threads_do_not_show(typed, tmp_path, ranks, threads):
    path = tmp_path / "run"
    config = yaml.safe_load((typed / "config.yaml").read_text())
    config["run"]["dir"] = str(path)
    config["cluster"] |= {"ranks": ranks, "threads_per_process": threads}
    RunDir.prepare(path, config)
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), sys.executable, "-m", "hpc.rank"]
    environment = {**os.environ, "TESSERA_RANKS": str(ranks)}
    done = subprocess.run([*command, str(path)], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert digest(path) == digest(typed)


def digest(run: Path) -> str:
    return hashlib.sha256((run / "results" / "fit.h5").read_bytes()).hexdigest()
