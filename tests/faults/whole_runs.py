"""Faults of whole runs, with real launchers and disks: kills from outside, full disks, directories that go away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from harness import PATIENCE, Harness, Struck, child_environment, output_of, tessera

from hpc.errors import LockedError
from hpc.store.lock import living_owner

SLOW = {"units": 30, "steps": 20, "seconds": 0.02}
"""Long enough that most kills come while it works."""


def start(path: Path, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start a process of its own session that writes where attempts do."""
    with output_of(path).open("wb") as output:
        return subprocess.Popen(
            command,
            env={**child_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_ranks(path: Path, ranks: int, **environment: str) -> subprocess.Popen[bytes]:
    """Start MPI ranks on a prepared run."""
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "hpc.rank", str(path)]
    return start(path, command, TESSERA_RANKS=str(ranks), **environment)


def rank_pids(path: Path) -> list[int]:
    """Return the ranks' process ids, waiting until all have given a sign of life."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            progress = json.loads((path / "progress.json").read_bytes())
            if len(progress["ranks"]) == progress["size"]:
                return [rank["pid"] for rank in progress["ranks"]]
        time.sleep(0.02)
    msg = f"the ranks of {path} gave no sign of life"
    raise AssertionError(msg)


def kill(pids: list[int]) -> int:
    """Kill processes; return how many there were."""
    count = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            count += 1
    return count


def wait_until_free(path: Path) -> None:
    """Wait until nobody works in the run: what outlives its launcher may go on for a while, and is respected."""
    end = time.monotonic() + PATIENCE
    while (owner := living_owner(path / "lock")) is not None:
        assert time.monotonic() < end, f"{owner} still works in {path}"
        time.sleep(0.05)


def ranks_killed(how_many: int):
    """Return the kind that kills one rank of three, or all (0), at a random instant."""

    def kind(harness: Harness, rng: np.random.Generator) -> Struck:
        scenario = harness.scenario("slow", **SLOW)
        path = harness.prepare(scenario.config)
        process = start_ranks(path, 3)
        pids = rank_pids(path)
        time.sleep(float(rng.uniform(0, 0.8)))
        struck = kill(pids if how_many == 0 else [pids[rng.integers(3)]])
        harness.end_of(process)
        wait_until_free(path)
        return Struck(path, scenario, faults=int(struck > 0))

    return kind


def launcher_killed(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill mpiexec at a random instant, also while the ranks start."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    process = start_ranks(path, 2)
    time.sleep(float(rng.uniform(0.05, 2.0)))
    struck = process.poll() is None
    process.kill()
    harness.end_of(process)
    wait_until_free(path)
    return Struck(path, scenario, faults=int(struck))


def tessera_killed(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill the ``tessera`` command itself; its ranks may finish, and nobody else may work there meanwhile."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    process = start(path, [sys.executable, "-m", "hpc", "resume", str(path), "cluster.ranks=2"])
    time.sleep(float(rng.uniform(0.2, 2.5)))
    struck = process.poll() is None
    process.kill()
    harness.end_of(process)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        wait_until_free(path)
        try:
            code = harness.resume(path, scenario.config, 1)
        except LockedError:
            continue  # the orphaned ranks were only just starting
        if code != 2:
            break
    return Struck(path, scenario, faults=int(struck), done=code == scenario.truth.code)


def two_at_once(harness: Harness, rng: np.random.Generator) -> Struck:
    """Resume a killed run twice at the same moment: one works, the other is refused and says who works there."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    harness.attempt(path, kill_after=float(rng.uniform(0.05, 0.4)))
    harness.prepare(scenario.config, path)
    command = [sys.executable, "-m", "hpc.rank", str(path)]
    pair = [subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE) for _ in range(2)]
    with harness.timed():
        said = [process.communicate(timeout=PATIENCE)[1].decode() for process in pair]
    codes = sorted(process.returncode for process in pair)
    assert codes == [0, 2], f"exit codes {codes}: {said}"
    winner, loser = sorted(pair, key=lambda process: process.returncode)
    assert f"being worked on by process {winner.pid} on" in said[pair.index(loser)], said
    return Struck(path, scenario, done=True)


def directory_gone(harness: Harness, rng: np.random.Generator) -> Struck:
    """Rename or remove the run directory under a working run; put it back, or begin again."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare({**scenario.config, "checkpoint": {**scenario.config["checkpoint"], "deadline": 2.0}})
    process = start_ranks(path, 2)
    rank_pids(path)
    time.sleep(float(rng.uniform(0, 0.5)))
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    if rng.random() < 0.5:
        shutil.rmtree(away)
    try:
        harness.end_of(process)
    finally:
        process.kill()
    if away.exists():
        shutil.rmtree(path, ignore_errors=True)
        away.rename(path)
    else:
        shutil.rmtree(path, ignore_errors=True)
    return Struck(path, scenario)


def moved(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill a run and move it, at times to another file system: it goes on where it lies, and nothing stays behind."""
    scenario = harness.scenario("slow", **SLOW)
    old = harness.prepare(scenario.config)
    code = harness.attempt(old, kill_after=float(rng.uniform(0.1, 1.0)))
    place = Path(tempfile.mkdtemp(prefix="tessera-faults-")) if rng.random() < 0.5 else harness.new_path()
    place.mkdir(exist_ok=True)
    new = place / "moved run"
    shutil.move(old, new)
    with harness.timed():
        tessera("resume", new, f"cluster.ranks={rng.integers(1, 4)}", codes=[scenario.truth.code])
    assert not old.exists(), f"the moved run wrote to {old}"
    path = harness.new_path()
    shutil.move(new, path)
    place.rmdir()
    return Struck(path, scenario, faults=int(code == -9), done=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system on a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tessera-faults", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether a small file system can be mounted here: root in a container often cannot."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True).returncode == 0


def full_disk(harness: Harness, rng: np.random.Generator) -> Struck:
    """Fill a real file system under a working run; at times make room before it gives up."""
    scenario = harness.scenario("slow", **SLOW)
    impatient = {**scenario.config, "checkpoint": {**scenario.config["checkpoint"], "deadline": 2.0}}
    disk, path = harness.new_path(), harness.new_path()
    with small_disk(disk, "2m"):
        harness.prepare(impatient, disk)
        process = start(disk, [sys.executable, "-m", "hpc", "resume", str(disk), "cluster.ranks=2"])
        rank_pids(disk)
        time.sleep(float(rng.uniform(0, 0.6)))
        ballast = disk / "logs" / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        if relieved := rng.random() < 0.5:
            time.sleep(0.5)
            ballast.unlink()
        code = harness.end_of(process)
        ballast.unlink(missing_ok=True)
        said = output_of(disk).read_text() + (disk / "logs" / "launch.log").read_text()
        assert not relieved or code == 0, f"there was room again, but the run failed with {code}: {said}"
        shutil.copytree(disk, path)
    return Struck(path, scenario, done=code == 0)


def file_size_limit(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let the kernel refuse files beyond a size, as a quota does."""
    scenario = harness.scenario("large", units=12, steps=8, every=1000.0)
    path = harness.prepare({**scenario.config, "checkpoint": {**scenario.config["checkpoint"], "deadline": 0.3}})
    code = harness.attempt(path, file_limit=int(rng.integers(3000, 12000)))
    return Struck(path, scenario, faults=int(code != scenario.truth.code))
