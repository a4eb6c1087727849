"""A fit has the same bits however many CPUs and threads there are, also where products of matrices are large."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest


def waves(name: str, number: int) -> str:
    """Source of a model: a sum of so many cosines."""
    names = ", ".join(f"a{i}" for i in range(number))
    product = f"jnp.cos(0.31 * jnp.arange({number})[:, None] * x).T @ jnp.stack([{names}])"
    return f"\ndef {name}(x, {names}):\n    return {product}\n"


MODELS = f"import jax.numpy as jnp\n{waves('many', 100)}{waves('few', 8)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cpus")
    (path / "models.py").write_text(MODELS)
    x = np.linspace(0, 10, 40_000)
    with h5py.File(path / "d.h5", "w") as file:
        file["x"], file["y"] = x, 3 * np.exp(-x / 2) + 1 + np.random.default_rng(0).normal(0, 0.1, x.size)
    return path


def fit(folder: Path, run: Path, words: list[str], cpus: int, threads: int) -> bytes:
    """Fit on as many CPUs as XLA is made to believe in, and return what was found."""
    job = ["job=lsq", "job.data.path=d.h5", "job.data.x=[x]", "job.data.y=y", *words]
    here = [f"run.dir={run}", "cluster.ranks=1", f"cluster.threads_per_process={threads}"]
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *job, *here],
        cwd=folder,
        env={**os.environ, "NPROC": str(cpus)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (run / "results" / "fit.h5").read_bytes()


@pytest.mark.mpi
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["job.model=models.py:many"], id="many-parameters"),
        pytest.param(["job.model=models.py:few", "job.errors=sandwich"], id="one-chunk"),
    ],
)
def test_cpus_and_threads_do_not_show(folder, tmp_path, words):
    assert fit(folder, tmp_path / "one", words, 1, 1) == fit(folder, tmp_path / "many", words, 8, 3)
