"""Fixtures for all tests: runs of the engine through its real launcher, and the shared data if it is there."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared"


# Ranks whose peers are cut off die inside the MPI library: that is tested, and no reason to fill a disk with core files.
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
# Started in the background of a script, this process ignores SIGINT, and so would every run that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Compiled models of the tests stay with the checkout, out of the user's cache.
os.environ.setdefault("TESSERA_JAX_CACHE", str(CHECKOUT / ".pytest_cache" / "jax"))


def pytest_report_header() -> str:
    return f"shared data: {'present' if SHARED.is_dir() else 'ABSENT, the tests marked shared will be skipped'}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and scene generators beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture
def bytes_read() -> Callable[[], int]:
    """How many bytes this process has read from files so far."""
    return lambda: int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture
def store_with_filter() -> Callable[[Path, str, int], None]:
    """Store a dataset of an HDF5 file again, as if by a filter that is not installed here."""

    def store(path: Path, name: str, number: int) -> None:
        with h5py.File(path, "a") as file:
            shape = file[name].shape
            del file[name]
            created = h5p.create(h5p.DATASET_CREATE)
            created.set_chunk(shape)
            created.set_filter(number, h5z.FLAG_OPTIONAL)
            space = h5s.create_simple(shape)
            data = h5d.create(file.id, name.encode(), h5t.NATIVE_DOUBLE, space, created)
            data.write_direct_chunk((0,) * len(shape), bytes(500))

    return store


@dataclass(frozen=True)
class Finished:
    """A process that ran ranks, and its run directory."""

    code: int
    output: str
    path: Path

    def text(self, name: str) -> str:
        return (self.path / name).read_text()

    def json(self, name: str) -> dict:
        return json.loads(self.text(name))

    def events(self, kind: str) -> list[dict]:
        records = [json.loads(line) for line in self.text("events.jsonl").splitlines()]
        return [r for r in records if r["event"] == kind]


def rank_command(path: Path, ranks: int) -> list[str]:
    command = [sys.executable, "-m", "hpc.rank", str(path)]
    if ranks > 1:
        mpiexec = Path(sys.executable).with_name("mpiexec")
        command = [str(mpiexec), "-n", str(ranks), *command]
    return command


def rank_environment(ranks: int) -> dict[str, str]:
    path = os.pathsep.join([str(CHECKOUT / "tests" / "hpc"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "TESSERA_RANKS": str(ranks)}


def start_toy(
    path: Path, ranks: int = 1, *, threads=1, checkpoint=None, engine=None, seed=5, **options
) -> subprocess.Popen:
    """Start the toy workload's ranks on a prepared run directory."""
    from hpc.rundir import RunDir

    config = {
        "job": {"_target_": "toyjob.ToyJob", "name": "toy", **options},
        "run": {"dir": str(path)},
        "cluster": {"ranks": ranks, "threads_per_process": threads},
        "checkpoint": checkpoint or {},
        "engine": {"heartbeat": 0.1, **(engine or {})},
        "seed": seed,
    }
    RunDir.prepare(path, config)
    with output_of(path).open("w") as output:
        return subprocess.Popen(
            rank_command(path, ranks),
            env=rank_environment(ranks),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def output_of(path: Path) -> Path:
    """Where the ranks of a run write what they say."""
    return path.with_name(f"{path.name}.out")


@pytest.fixture
def toy(tmp_path):
    """Run the toy workload through real ranks; returns what became of it."""

    def run(name: str = "run", ranks: int = 1, **keywords) -> Finished:
        process = start_toy(tmp_path / name, ranks, **keywords)
        code = process.wait(timeout=120)
        return Finished(code, output_of(tmp_path / name).read_text(), tmp_path / name)

    return run
