"""Ranks on this machine: started, followed on the screen, stopped on Ctrl-C, and their end explained.

The ranks run in a session of their own, so that a Ctrl-C in the terminal reaches only this process, which
asks them to save. A second one kills them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
from hpc.launch import drain
from hpc.launch.environment import Crew, rank_command, rank_environment, share_cpus
from hpc.launch.follow import Display, display
from hpc.launch.interrupts import Interrupts, interrupts, with_all_signals
from hpc.launch.outcome import Ending, explain, record_silent_death
from hpc.settings import LocalCluster
from hpc.watch.status import read_status

_POLL: Final = 0.25
"""Seconds between looks at the run; the ranks write about once a second."""

_LAST_WORDS: Final = 5.0
"""Seconds for the ranks' output to reach its file after their end."""

_SAVING: Final = "stopping: saving what is finished … (once more to kill without saving)"

_SPOKEN: Final = frozenset({EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_QUARANTINED, EXIT_COME_BACK})
"""Exit codes with which the ranks end on their own accord."""


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
    started = time.time()
    with interrupts() as asked:
        with _keeping(log) as (output, log_start):
            process = _started(command, crew, output)
            try:
                asked.pass_on(lambda count: _stop(process, run, started, count))
                with display(run) as screen:
                    _follow(process, run, asked, screen, started)
            finally:
                _end(process)
                leftovers.clear()
        code = _exit_code(process.returncode, asked.count)
        ending = Ending(run, code, process.returncode, started, asked.count, log, log_start)
        if code == EXIT_FAILED:
            record_silent_death(ending)
        print_ending(ending)  # here, so that a second Ctrl-C does not cut off the words after the first
    return code


def _started(command: list[str], crew: Crew, output: int) -> subprocess.Popen[bytes]:
    """Start the ranks, and leave ``output`` to them."""
    try:
        with with_all_signals():
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=rank_environment(crew),
                start_new_session=True,
            )
    finally:
        os.close(output)


def print_ending(ending: Ending) -> None:
    """Print how the run ended."""
    from hpc.watch.console import console

    console().print(explain(ending))


@contextmanager
def _keeping(log: Path) -> Iterator[tuple[int, int]]:
    """Yield a descriptor for the ranks' output, to be closed by whoever takes it, and the size of the log before."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(file).st_size
    except OSError:  # no room for a log is no reason not to run
        yield os.open(os.devnull, os.O_WRONLY), 0
        return
    os.close(file)
    source, sink = os.pipe()
    words = [sys.executable, "-I", "-S", drain.__file__, str(log)]
    keeper = subprocess.Popen(words, stdin=source, stdout=subprocess.DEVNULL, start_new_session=True)
    os.close(source)
    try:
        yield sink, size
    finally:
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(_LAST_WORDS)


def _stop(process: subprocess.Popen[bytes], run: Path, started: float, count: int) -> None:
    """Pass a request to stop on; more than one means at once."""
    if process.poll() is not None:
        return
    if count == 1:
        process.send_signal(signal.SIGTERM)
    else:
        _kill(process, run, started)


def _follow(process: subprocess.Popen[bytes], run: Path, asked: Interrupts, screen: Display, started: float) -> None:
    """Show progress until the ranks end."""
    told = 0
    while process.poll() is None:
        asked.look()
        if asked.count > told:
            told = asked.count
            screen.say(_SAVING if told == 1 else "killing the ranks")
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
