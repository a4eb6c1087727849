"""What the engine's operations cost on this machine: the input of ``scripts/bench/scale``."""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc.job import Unit
from hpc.store.segments import Finished, scan, write_segment
from hpc.watch.events import Events
from hpc.watch.progress import Progress, Pulse

if TYPE_CHECKING:
    from mpi4py import MPI

MESSAGES = 5_000
CLIENTS = 2
AHEAD = 100


@dataclass(frozen=True)
class Costs:
    """Seconds.

    Attributes
    ----------
    request
        Of rank 0's desk for one answered request, everything included.
    pulse
        Of the desk for one sign of life.
    progress_rank
        Of one rank's line in one writing of ``progress.json``.
    segment
        Of writing one small segment file, fsync included.
    scan_file
        Of reading one segment's keys at a resume.
    sum_part
        Of rank 0 for one rank's part of a sum (1,000 numbers): unpickling, merging, adding.
    """

    request: float
    pulse: float
    progress_rank: float
    segment: float
    scan_file: float
    sum_part: float


def measure() -> Costs:
    """Measure everything; takes some seconds."""
    request, pulse = _desk()
    with tempfile.TemporaryDirectory() as name:
        segment, scanned = _segments(Path(name))
        return Costs(request, pulse, _progress(Path(name)), segment, scanned, _sum_part())


def _median(action: Callable[[], object], times: int = 7) -> float:
    def once() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(times))


def _desk() -> tuple[float, float]:
    """Let ranks flood the real desk with real messages over MPI; return its seconds for each."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(1 + CLIENTS), sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    request, pulse = json.loads(done.stdout.splitlines()[-1])
    return request, pulse


def _flood() -> None:
    """Be a rank of the flood."""
    from mpi4py import MPI

    from hpc.desk import Desk, DeskThread, Receipt, RemoteDesk
    from hpc.schedule import Queue

    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        progress = Progress(None, size=comm.size)
        progress.plan([("flood", "map")])
        desk = Desk(progress, Events(Path("/dev/null")))
        progress.begin(0, CLIENTS * MESSAGES)
        # Batches of one unit: the most messages per unit that there can be.
        units = [Unit(f"u{k:06d}") for k in range(2 * CLIENTS * MESSAGES)]
        desk.open(Queue(units, 10**9), {}, Path("/dev/null"))
        thread = DeskThread(desk, comm, lambda _: comm.Abort(1))
    comm.barrier()
    start = time.perf_counter()
    if comm.rank:
        source, finished = RemoteDesk(comm), ()
        for _ in range(MESSAGES // AHEAD):  # many at a time, so that the desk never waits
            for _ in range(AHEAD):
                source.ask(Receipt(finished))
            for _ in range(AHEAD):
                finished = tuple((unit.key, 1.0) for unit in source.answer().units)
    _wait(comm)
    asked = time.perf_counter()
    if comm.rank:
        for k in range(MESSAGES):
            source.pulse(Pulse(comm.rank, "host", 1, float(k), "unit", k, 1.0, 100.0), "")
        # An answer says that all pulses before it have been taken.
        source.ask(Receipt())
        source.answer()
    _wait(comm)
    pulsed = time.perf_counter()
    if comm.rank == 0:
        thread.close()
        total = CLIENTS * MESSAGES
        print(json.dumps([(asked - start) / total, (pulsed - asked) / total]))


def _wait(comm: MPI.Intracomm) -> None:
    """Meet without taking the processor from the desk."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def _segments(folder: Path) -> tuple[float, float]:
    files = iter(range(10**6))

    def write() -> None:
        number = next(files)
        units = [Finished(f"u{number:05d}-{k}", {"x": np.arange(100.0)}, 1.0, 1, 0) for k in range(4)]
        write_segment(folder / f"seg-{number:05d}.h5", "bench", units)

    seconds = _median(write, 100)
    return seconds, _median(lambda: scan(folder), 3) / 100


def _progress(folder: Path) -> float:
    ranks = 2_000
    progress = Progress(folder / "progress.json", size=ranks)
    progress.plan([("bench", "map")])
    progress.begin(0, 10 * ranks)
    for rank in range(ranks):
        progress.pulse(Pulse(rank, f"node{rank:05d}", 12345, time.time(), "patch-r001-c002", 5, 12.5, 512.0))
    return _median(progress.write) / ranks


def _sum_part() -> float:
    part = {(0, 1): {"jtj": np.ones((30, 30)), "jtr": np.ones(100)}}
    message = pickle.dumps(part)
    total = {"jtj": np.ones((30, 30)), "jtr": np.ones(100)}

    def take() -> None:
        for _ in range(1000):
            sums = pickle.loads(message)[0, 1]  # noqa: S301 - what mpi4py does with a gathered object
            for name in total:
                total[name] += sums[name]

    return _median(take) / 1000


if __name__ == "__main__":
    if "PMI_SIZE" in os.environ:
        _flood()
    else:
        print(json.dumps(asdict(measure()), indent=1))
