"""A SLURM cluster for the tests of this folder, and runs of the toy workload on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT
from slurm_jobs import DEVCLUSTER, OWN_SCRIPT, Cluster, ToyRun

CI = os.environ.get("CI", "").lower() in {"1", "true"}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mpi)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Four nodes of four CPUs, each with its own network."""
    _need_slurm()
    directory = tmp_path_factory.mktemp("slurm") / "c"
    command = [sys.executable, str(DEVCLUSTER)]
    up = [*command, "up", "--nodes", "4", "--netns", "--directory", str(directory)]
    if CI:  # elsewhere nobody's system gets packages because somebody ran the tests
        up.append("--install")
    started = subprocess.run(up, capture_output=True, text=True, timeout=280)
    assert started.returncode == 0, started.stderr
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "PMI"))}
    path = os.pathsep.join([str(CHECKOUT / "tests" / "hpc"), os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(sys.executable).parent), clean.get("PATH", os.defpath)])
    names = {"SLURM_CONF": str(directory / "slurm.conf"), "PYTHONPATH": path, "PATH": programs}
    yield Cluster(directory, {**clean, **names})
    subprocess.run([*command, "down", "--directory", str(directory)], check=True, timeout=60)


def _need_slurm() -> None:
    """Skip where there can be no cluster; where nothing may be skipped, fail."""
    installed = shutil.which("slurmctld", path="/usr/sbin:/usr/local/sbin")
    if os.geteuid() != 0 or not (installed or (CI and shutil.which("apt-get"))):
        reason = "NO SLURM TESTS: they need root and SLURM's daemons (slurm/devcluster up --install brings them)"
        if CI:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def toy_run(tmp_path) -> Callable[..., ToyRun]:
    """Prepare a run of the toy workload and its script."""

    def make(name="run", *, per_node=2, mpi="pmi2", engine=None, checkpoint=None, **options) -> ToyRun:
        from hpc.rundir import RunDir

        path = tmp_path / name
        config = {
            "job": {"_target_": "toyjob.ToyJob", "name": "toy", **options},
            "run": {"dir": str(path)},
            "cluster": {"threads_per_process": 1},
            "checkpoint": {"every": 0.5, **(checkpoint or {})},
            "engine": {"heartbeat": 0.3, "grace": 5, **(engine or {})},
            "seed": 5,
        }
        RunDir.prepare(path, config)
        script = tmp_path / f"{name}.sh"
        script.write_text(OWN_SCRIPT.format(per_node=per_node, mpi=mpi, python=sys.executable, run=path))
        return ToyRun(path, script)

    return make
