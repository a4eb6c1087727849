"""A SLURM cluster for the tests of this folder, which play on it side by side.

Most of a test's time here is waiting: for a time limit, for a node to be given up, for a job to come back. So the
functions of all tests that ask for ``stage`` are started together in threads, each on nodes of its own, and when
pytest calls one of them it waits for its end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from conftest import CHECKOUT
from slurm_jobs import DEVCLUSTER, QUICK, TOY, Cluster, Stage

CI = os.environ.get("CI", "").lower() in {"1", "true"}

NODES = 14
TOGETHER = 6
"""Tests at a time: each has some Python processes to start, and the machine may have two cores."""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mpi)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Nodes of four CPUs, each with its own network."""
    _need_slurm()
    directory = tmp_path_factory.mktemp("slurm") / "c"
    command = [sys.executable, str(DEVCLUSTER)]
    up = [*command, "up", "--nodes", str(NODES), "--netns", "--directory", str(directory)]
    if CI:  # elsewhere nobody's system gets packages because somebody ran the tests
        up.append("--install")
    started = subprocess.run(up, capture_output=True, text=True, timeout=280)
    assert started.returncode == 0, started.stderr
    yield Cluster(directory, environment_of(directory))
    subprocess.run([*command, "down", "--directory", str(directory)], check=True, timeout=60)


def environment_of(directory: Path) -> dict[str, str]:
    """Return the environment of a user of a cluster, who can also import the toy workload."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "PMI"))}
    path = os.pathsep.join([str(CHECKOUT / "tests" / "hpc"), os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(sys.executable).parent), clean.get("PATH", os.defpath)])
    names = {"SLURM_CONF": str(directory / "slurm.conf"), "PYTHONPATH": path, "PATH": programs}
    return {**clean, **names, "TESSERA_VENV": sys.prefix}


def _need_slurm() -> None:
    """Skip where there can be no cluster; where nothing may be skipped, fail."""
    installed = shutil.which("slurmctld", path="/usr/sbin:/usr/local/sbin")
    if os.geteuid() != 0 or not (installed or (CI and shutil.which("apt-get"))):
        reason = "NO SLURM TESTS: they need root and SLURM's daemons (slurm/devcluster up --install brings them)"
        if CI:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def playing(request, cluster, tmp_path_factory) -> Iterator[dict[str, Future[None]]]:
    """Start all tests that want a stage, the longest first."""
    here = tmp_path_factory.mktemp("here") / "run"
    cluster.tessera(*TOY, *QUICK, f"run.dir={here}", "cluster.ranks=1", "cluster.threads_per_process=1")
    expected = {p.name: p.read_bytes() for p in sorted((here / "results").iterdir())}
    items = [item for item in request.session.items if "stage" in getattr(item, "fixturenames", ())]
    with ThreadPoolExecutor(TOGETHER) as pool:
        yield {
            item.nodeid: pool.submit(item.function, Stage(cluster, tmp_path_factory.mktemp("stage"), expected))
            for item in sorted(items, key=lambda item: item.get_closest_marker("slow") is None)
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def stage(request, playing) -> Future[None]:
    """Stand for this test's place on the cluster: its function gets a `Stage`."""
    return playing[request.node.nodeid]


@pytest.fixture
def alone(playing, cluster, tmp_path_factory) -> Stage:
    """Wait until the others have played: for what is a matter of seconds."""
    wait(playing.values(), 250)
    return Stage(cluster, tmp_path_factory.mktemp("alone"), {})


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Wait for a test that plays already."""
    play = pyfuncitem.funcargs.get("stage")
    if play is None:
        return None
    play.result()
    return True
