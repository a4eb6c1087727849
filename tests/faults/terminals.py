"""Faults of terminals: hang-ups, readers that go away, outputs that take nothing. The exit code must tell the truth."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from harness import PATIENCE, Harness, Struck, child_environment
from whole_runs import SLOW

from hpc.errors import EXIT_COME_BACK


def command(path: Path) -> list[str]:
    """Return the words of a launch."""
    return [sys.executable, "-P", "-m", "hpc", "resume", str(path), "cluster.ranks=2"]


def ended(path: Path) -> str:
    """Return the state that a run has written; empty before its first."""
    with suppress(OSError, ValueError):
        return str(json.loads((path / "progress.json").read_bytes())["state"])
    return ""


def told_truly(path: Path, code: int, truth: int) -> bool:
    """Check an exit code against the run's own state; return whether the run is over."""
    over = code == truth
    early = {130, -signal.SIGHUP, -signal.SIGINT}  # before there were ranks to stop
    assert over or code == EXIT_COME_BACK or code in early, f"exit code {code}"
    assert not over or ended(path) in {"done", "quarantined"}, f"exit code {code} of a run that is {ended(path)}"
    return over


def hung_up(harness: Harness, rng: np.random.Generator) -> Struck:
    """Close the terminal of a run at any moment, or send it Ctrl-C once, or twice."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    terminal, inside = pty.openpty()
    words = ["setsid", "--ctty", *command(path)]
    process = subprocess.Popen(words, env=child_environment(), stdin=inside, stdout=inside, stderr=inside)
    os.close(inside)
    _read_for(terminal, float(rng.uniform(0.1, 2.5)))
    how = int(rng.integers(3))
    for _ in range(how):
        with suppress(OSError):
            os.write(terminal, b"\x03")
        _read_for(terminal, float(rng.uniform(0.02, 0.6)))
    if how == 0:
        os.close(terminal)
    end = time.monotonic() + PATIENCE
    with harness.timed():
        while (code := process.poll()) is None:
            assert time.monotonic() < end, "the command hangs without its terminal"
            if how:
                _read_for(terminal, 0.05)
            else:
                time.sleep(0.05)
    if how:
        os.close(terminal)
    done = told_truly(path, code, scenario.truth.code) or ended(path) == "done"
    return Struck(path, scenario, done=done)


def nobody_reads(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let the reader go away, or the output be full or closed: the run finishes, and its exit code says so."""
    scenario = harness.scenario("slow", **SLOW)
    path = harness.prepare(scenario.config)
    ends = (
        '"$@" | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}',
        '"$@" | sleep 1; exit ${PIPESTATUS[0]}',
        '"$@" >/dev/full 2>&1',
        '"$@" <&- >&- 2>&-',
        f'rm -f "{path}/logs/launch.log"; ln -s /dev/full "{path}/logs/launch.log"; "$@" >/dev/full',
    )
    line = ends[int(rng.integers(len(ends)))]
    with harness.timed():
        done = subprocess.run(["bash", "-c", line, "bash", *command(path)], env=child_environment(), timeout=PATIENCE)
    assert done.returncode == scenario.truth.code, f"{line}: exit code {done.returncode}"
    return Struck(path, scenario, done=True)


def _read_for(terminal: int, seconds: float) -> None:
    """Read what comes, as a terminal does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            try:
                os.read(terminal, 65536)
            except OSError:
                return
