"""The `tessera` command: a verb, or Hydra overrides that start a run.

Nothing heavy is imported before it is known to be needed: `tessera status` and `--help` answer at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from hpc.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, ConfigError, OutputError, TesseraError, nearest
from hpc.launch.interrupts import hold_back
from hpc.terminal import complain, guarded_output

VERBS: Final = {
    "status": "how far a run, or every run below a folder, is",
    "resume": "go on with a run, or a sweep, that was stopped, on any number of ranks",
    "cancel": "end a run, or all below a folder, in good order",
    "prepare": "make a run directory for a batch script of your own",
    "verify": "read every checkpoint of a run and say what a resume would use",
    "report": "write a run's report page anew",
    "doctor": "check MPI, SLURM, threads, GPUs and the file system",
}
"""The engine's verbs: each is a module of this package with a ``main(arguments)``."""

_INTERRUPTED: Final = 130
"""What shells use for a command that Ctrl-C ended."""

_LATE: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that find the command on its way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        The words after the command's name; None takes those of this process.

    Returns
    -------
    int
        0 done, 1 failed, 2 bad input or configuration, 3 finished with quarantined units, 75 stopped and
        resumable.
    """
    if arguments is None:
        hold_back()
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = EXIT_DONE
    try:
        with guarded_output():
            code = _answer(words)
    except OutputError as error:
        complain(f"error: {error}")
        code = code or error.exit_code
    if arguments is None:
        for number in _LATE:  # the end is decided: a second Ctrl-C must not turn it into another
            signal.signal(number, signal.SIG_IGN)
    return code


def _answer(words: list[str]) -> int:
    try:
        _require_folder()
        return _command(words)(words)
    except TesseraError as error:
        complain(f"error: {error}")
        return error.exit_code
    except RecursionError:
        complain("error: something in the configuration or on the command line is nested too deep; flatten it")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        if error.filename is None:
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        complain(f"error: {name}: {error.strerror}; see that it is there and may be read")
        return EXIT_FAILED


def _require_folder() -> None:
    """Raise if the folder that relative paths start from is gone.

    Raises
    ------
    hpc.errors.ConfigError
        With the remedy.
    """
    try:
        os.getcwd()  # noqa: PTH109 - nothing but the question
    except OSError as error:
        msg = f"the folder in which tessera was started is gone ({error.strerror}); go to one that exists: cd DIRECTORY"
        raise ConfigError(msg) from None


def workload_verbs() -> dict[str, EntryPoint]:
    """Return the verbs that installed workloads bring, by name (entry point group ``hpc.verbs``)."""
    return {entry.name: entry for entry in entry_points(group="hpc.verbs")}


def _command(words: list[str]) -> Callable[[list[str]], int]:
    """Return the function for these words, and take the verb off them."""
    if not words or words[0].startswith(("-", "+", "~")) or "=" in words[0]:
        from hpc.cli.run import main as run

        return run
    verb = words.pop(0)
    if verb in VERBS:
        return _main_of(f"hpc.cli.{verb}")
    others = workload_verbs()
    if verb in others:
        return _loaded(others[verb])
    msg = f"{verb!r} is neither a verb nor a key=value; {nearest(verb, [*VERBS, *others])}; see tessera --help"
    raise ConfigError(msg)


def _main_of(module: str) -> Callable[[list[str]], int]:
    found: Callable[[list[str]], int] = importlib.import_module(module).main
    return found


def _loaded(entry: EntryPoint) -> Callable[[list[str]], int]:
    found: Callable[[list[str]], int] = entry.load()
    return found
