"""Child side of the harness: runs attempts at runs of the toy workload, many a second.

Two ways, both with the code that a real rank runs. ``attempts.py fork`` forks a fresh process for every attempt, so
that it may be killed; ``mpiexec -n 3 attempts.py ranks`` keeps MPI ranks alive between attempts that are
expected to succeed. Requests come in as lines of JSON, answers go out likewise.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import toyjob

import hpc.rank
import hpc.report.write
from hpc.load import load_job
from hpc.options import build
from hpc.run import run_job
from hpc.rundir import RunDir
from hpc.settings import Settings
from hpc.store import faults, patience, writer
from hpc.whereabouts import Whereabouts

PRELOADED = (h5py, np, toyjob, hpc.report.write)
"""Imported once here, so that an attempt costs tens of milliseconds."""

writer._FIRST_PAUSE = patience._FIRST_PAUSE = 0.01
hpc.rank._CONFIG_PAUSES = (0.01,) * 9


def serve_forks() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            live(request)
        if request["kill_after"] is not None:
            time.sleep(request["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        answer({"code": os.waitstatus_to_exitcode(status)})


def lose_answers(code: int) -> None:
    """Let ``os.link`` do its work and fail all the same."""
    real = os.link

    def link(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise OSError(code, os.strerror(code))

    os.link = link


def live(request: dict[str, Any]) -> None:
    """Be one rank, and leave without coming back."""
    code = 99
    try:
        sys.stdin.close()
        with Path(request["output"]).open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if request["fault"]:
            faults.armed = faults.Fault.parse(request["fault"])
        if request["file_limit"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
        if request["clock"]:
            real, shift = time.time, request["clock"]
            time.time = lambda: real() + shift
        if request["lost_link"]:
            lose_answers(getattr(errno, request["lost_link"]))
        code = hpc.rank.main([request["path"]])
        if faults.armed is not None:
            Path(request["output"]).with_suffix(".passed").write_text(str(faults.armed.passed))
    finally:
        os._exit(code)


def serve_ranks() -> None:
    from mpi4py import MPI

    from hpc.ranks import MpiRanks

    world = MpiRanks(MPI.COMM_WORLD)
    groups = {size: MPI.COMM_WORLD.Split(int(world.rank >= size), world.rank) for size in range(2, world.size + 1)}
    ranks = {size: MpiRanks(group) for size, group in groups.items()}
    while True:
        request = world.bcast(json.loads(sys.stdin.readline() or "null") if world.rank == 0 else None)
        if request is None:
            return
        code = 0
        if world.rank < request["ranks"]:
            run = RunDir(Path(request["path"]))
            settings = build(Settings, run.load_config(), "config")
            code = run_job(load_job(settings.job), run, settings, ranks[request["ranks"]], 1, Whereabouts())
        world.barrier()
        if world.rank == 0:
            answer({"code": code})


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    serve_ranks() if sys.argv[1] == "ranks" else serve_forks()
