"""Ranks on this machine: started, followed on the screen, stopped on Ctrl-C, and their end explained.

The ranks run in a session of their own, so that a Ctrl-C in the terminal reaches only this process, which
asks them to save. A second one kills them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from hpc import leftovers
from hpc.errors import (
    EXIT_BAD_INPUT,
    EXIT_COME_BACK,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_QUARANTINED,
    EXIT_TOLD_TO_STOP,
)
from hpc.launch.environment import rank_command, rank_environment, share_cpus
from hpc.launch.follow import Display, display
from hpc.launch.outcome import Ending, explain, record_silent_death
from hpc.settings import LocalCluster
from hpc.watch.status import read_status

_POLL: Final = 0.25
"""Seconds between looks at the run; the ranks write about once a second."""

_SPOKEN: Final = frozenset({EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_QUARANTINED, EXIT_COME_BACK})
"""Exit codes with which the ranks end on their own accord."""


class Interrupts:
    """How often this process was asked to stop."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int, frame: FrameType | None) -> None:
        """Count a signal."""
        del number, frame
        self.count += 1


def launch(run: Path, cluster: LocalCluster) -> int:
    """Run the ranks of a prepared run directory here and stay until they end.

    Parameters
    ----------
    run
        The run directory, absolute, with its ``config.yaml``.
    cluster
        How many ranks with how many threads.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed, 2 bad input, 3 with quarantined units, 75 stopped and resumable.

    Raises
    ------
    hpc.errors.LaunchError
        If there is no mpiexec for more than one rank.
    """
    crew = share_cpus(cluster)
    command = rank_command(["-m", "hpc.rank", str(run)], crew.ranks, cluster.mpiexec)
    log = run / "logs" / "launch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with _interrupts() as interrupts, log.open("ab") as output:
        log_start = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=rank_environment(crew),
            start_new_session=True,
        )
        try:
            with display(run) as screen:
                _follow(process, run, interrupts, screen, started)
        finally:
            _end(process)
            leftovers.clear()
    code = _exit_code(process.returncode, interrupts.count)
    ending = Ending(run, code, process.returncode, started, interrupts.count, log, log_start)
    if code == EXIT_FAILED:
        record_silent_death(ending)
    print_ending(ending)
    return code


def print_ending(ending: Ending) -> None:
    """Print how the run ended."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(explain(ending))


@contextmanager
def _interrupts() -> Iterator[Interrupts]:
    """Count stop signals instead of dying of them, for the block; a closed terminal counts as one."""
    interrupts = Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupts.add) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(
    process: subprocess.Popen[bytes], run: Path, interrupts: Interrupts, screen: Display, started: float
) -> None:
    """Show progress until the ranks end, passing stop requests on."""
    obeyed = 0
    while process.poll() is None:
        if interrupts.count > obeyed:
            obeyed = interrupts.count
            if obeyed == 1:
                screen.say("stopping: saving what is finished … (once more to kill without saving)")
                process.send_signal(signal.SIGTERM)
            else:
                screen.say("killing the ranks")
                _kill(process, run, started)
        screen.update(read_status(run), started)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
    screen.update(read_status(run), started)


def _kill(process: subprocess.Popen[bytes], run: Path, started: float) -> None:
    """Kill mpiexec's process group, and the ranks too where it put them in groups of their own."""
    status = read_status(run)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if status.updated is None or status.updated < started:
        return
    for rank in status.ranks:
        with suppress(PermissionError):
            rank.process.signal(signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no ranks behind if this process itself fails."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def _exit_code(returned: int, interrupted: int) -> int:
    """Return what the ranks' end means; ranks that were told to stop and died of it can be resumed."""
    if returned == EXIT_TOLD_TO_STOP:
        return EXIT_COME_BACK
    if returned in _SPOKEN and not (returned == EXIT_FAILED and interrupted > 1):
        return returned
    return EXIT_COME_BACK if interrupted else EXIT_FAILED
