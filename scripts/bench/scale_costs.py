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
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc.job import Unit
from hpc.ranks import SerialRanks
from hpc.reduce import sum_chunks
from hpc.store.journal import Journal
from hpc.store.segments import Finished, Listing, segment_names, united, write_segment
from hpc.survey import survey
from hpc.watch.events import Events
from hpc.watch.progress import Progress, Pulse

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpc.desk import DeskThread

MESSAGES = 5_000
CLIENTS = 2
AHEAD = 100
PULSES = 20
"""Signs of life before a rank looks whether they were heard; a real rank sends one every few seconds."""


@dataclass(frozen=True)
class Costs:
    """Seconds, of processor time where no disk is involved: the machine may have other work.

    Attributes
    ----------
    request
        Of rank 0's desk for one answered request, looking into the mailbox apart.
    pulse
        Of the desk for one sign of life.
    progress_rank
        Of one rank's line in one writing of ``progress.json``.
    segment
        Of writing one small segment file, fsync included.
    scan_file
        Of reading one segment's keys and one journal at a resume, on the rank whose share it is.
    file_name
        Of rank 0 for each name in the folder at a resume.
    unit_key
        Of rank 0 for each unit that another rank found: unpickling it and noting where it lies.
    sum_join
        Of joining two ranks' parts of a sum (1,000 numbers): unpickling, and adding what has become whole.
    """

    request: float
    pulse: float
    progress_rank: float
    segment: float
    scan_file: float
    file_name: float
    unit_key: float
    sum_join: float


def measure() -> Costs:
    """Measure everything; takes some seconds."""
    request, pulse = _desk()
    with tempfile.TemporaryDirectory() as name:
        segment, scanned = _segments(Path(name))
        progress = _progress(Path(name))
        return Costs(request, pulse, progress, segment, scanned, _names(Path(name)), _keys(), _sum_join())


def _median(action: Callable[[], object], times: int = 7, clock: Callable[[], float] = time.process_time) -> float:
    def once() -> float:
        start = clock()
        action()
        return clock() - start

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
        spent = _clocked(DeskThread)
        thread = DeskThread(desk, comm, lambda _: comm.Abort(1))
    comm.barrier()
    if comm.rank:
        source, finished = RemoteDesk(comm), ()
        for _ in range(MESSAGES // AHEAD):  # many at a time, so that the desk never waits
            for _ in range(AHEAD):
                source.ask(Receipt(finished))
            for _ in range(AHEAD):
                finished = tuple((unit.key, 1.0) for unit in source.answer().units)
    _wait(comm)
    if comm.rank == 0:
        asked = statistics.fmean(spent)
        spent.clear()
    comm.barrier()
    if comm.rank:
        for k in range(MESSAGES):
            source.pulse(Pulse(comm.rank, "host", 1, float(k), "unit", k, 1.0, 100.0), "")
            if k % PULSES == 0:
                source.settle(10)
        source.settle(10)
    _wait(comm)
    if comm.rank == 0:
        thread.close()
        print(json.dumps([asked, statistics.fmean(spent)]))


def _clocked(desk: type[DeskThread]) -> list[float]:
    """Let the desk note the processor time that each message takes it; return where."""
    spent: list[float] = []
    handle = desk._handle  # noqa: SLF001 - it is what is measured

    def timed(self: DeskThread, source: int) -> None:
        start = time.thread_time()
        handle(self, source)
        spent.append(time.thread_time() - start)

    desk._handle = timed  # type: ignore[method-assign]  # noqa: SLF001
    return spent


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

    seconds = _median(write, 100, time.perf_counter)
    for number in range(100):
        journal = Journal(folder, 1, number)
        for k in range(4):
            journal.begin(f"u{number:05d}-{k}")
            journal.end(f"u{number:05d}-{k}")
        journal.close()
    return seconds, _median(lambda: survey(folder, SerialRanks(), whole=False), 3, time.perf_counter) / 100


def _names(folder: Path) -> float:
    crowded = folder / "crowded"
    crowded.mkdir()
    for number in range(5_000):
        (crowded / f"seg-0001-{number:05d}-000000.h5").touch()
    return _median(lambda: segment_names(crowded)) / 5_000


def _keys() -> float:
    listings = [Listing(f"seg-{n:05d}", [f"u{n:05d}-{k}" for k in range(4)], [1.0] * 4) for n in range(5_000)]
    message = pickle.dumps(listings)
    return _median(lambda: united(pickle.loads(message))) / 20_000  # noqa: S301 - what mpi4py does with an object


def _progress(folder: Path) -> float:
    ranks = 2_000
    progress = Progress(folder / "progress.json", size=ranks)
    progress.plan([("bench", "map")])
    progress.begin(0, 10 * ranks)
    for rank in range(ranks):
        progress.pulse(Pulse(rank, f"node{rank:05d}", 12345, time.time(), "patch-r001-c002", 5, 12.5, 512.0))
    return _median(progress.write) / ranks


class _Half:
    """One of two ranks in the middle of a sum over many; keeps what it would hand on."""

    def fold(self, value: Any, join: Callable[[Any, Any], Any]) -> None:
        self.value, self.join = value, join

    def bcast_arrays(self, arrays: object) -> object:
        return arrays


def _sum_join() -> float:
    halves = []
    for mine in (range(333), range(333, 667)):  # no power of two: many tree nodes have to travel
        half = _Half()
        parts = ({"jtj": np.ones((30, 30)), "jtr": np.ones(100)} for _ in mine)
        sum_chunks(half, 1000, mine, parts)  # type: ignore[arg-type]
        halves.append(half)
    left, right = halves
    message = pickle.dumps(right.value)
    return _median(lambda: left.join(left.value, pickle.loads(message)), 200)  # noqa: S301 - as above


if __name__ == "__main__":
    if "PMI_SIZE" in os.environ:
        _flood()
    else:
        print(json.dumps(asdict(measure()), indent=1))
