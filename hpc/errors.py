"""Every error the engine raises on purpose; each message names the cause and the remedy.

A message is two sentences: what is wrong (with the file, key or rank) and what to do about it.
The exit code is part of the error's type, so that every door (command line, rank, sbatch script)
answers the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_QUARANTINED: Final = 3
EXIT_COME_BACK: Final = 75
"""``EX_TEMPFAIL`` of sysexits.h: stopped and saved. Of ranks: their time was over, so the job comes back by itself."""
EXIT_TOLD_TO_STOP: Final = 76
"""Of ranks: stopped and saved because somebody wanted it. The ``tessera`` command answers `EXIT_COME_BACK` for both."""

TRUST: Final = "--trust-owner"
"""Flag of who has looked at a run directory that others can have written, see `hpc.ownership`."""


class TesseraError(Exception):
    """Base of all errors that are explained to the user without a traceback."""

    exit_code: ClassVar[int] = EXIT_FAILED


class ConfigError(TesseraError, ValueError):
    """A configuration key or value is wrong."""

    exit_code = EXIT_BAD_INPUT


class InputError(TesseraError, ValueError):
    """An input file or its content cannot be used."""

    exit_code = EXIT_BAD_INPUT


class RunDirError(TesseraError):
    """The run directory cannot be created, written, or continued."""

    exit_code = EXIT_BAD_INPUT


class ChangedConfigError(RunDirError):
    """A run is to be continued with another configuration than it was started with."""


class ChangedInputsError(RunDirError):
    """A run is to be continued with other input files than it was started with."""


class ChangedCodeError(RunDirError):
    """A run is to be continued by other code than it was started with."""


class LockedError(RunDirError):
    """Another process is working in the run directory."""


class LockLostError(LockedError):
    """Another process has taken the run over from this one, which must not write any more."""


class OtherKernelsError(RunDirError):
    """The run would go on with other kernels of the numeric libraries, which was to be refused."""


class LaunchError(TesseraError):
    """The ranks could not be started as asked."""

    exit_code = EXIT_BAD_INPUT


class OutputError(TesseraError):
    """What was asked for could not be written to standard output."""


class CorruptFileError(TesseraError):
    """A checkpoint file does not hold what was written to it."""


class UnreadableError(TesseraError):
    """A file cannot be read now, which says nothing of its content; nothing was changed."""


class ResultError(TesseraError):
    """A job ran to its end, but its results are not what was asked for: a fit that did not converge."""


class AllFailedError(TesseraError):
    """Every unit of a stage fails in the same way, so the cause is not in the units."""


class RankError(TesseraError):
    """A rank failed; the message names rank, stage, unit and cause."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Say which valid names come closest to a mistyped one.

    Parameters
    ----------
    word
        What the user typed.
    valid
        The names that would have been accepted.

    Returns
    -------
    str
        ``did you mean 'ranks'? valid: …``, or only the valid names if none is near.
    """
    import difflib

    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"
