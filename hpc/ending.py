"""How the process of a rank ends when something went wrong, and how a thread of the engine makes it end.

The order: what this rank has finished is saved, for a few seconds at most; the lock is given up; the record of who
failed, where and why is left; all ranks are ended by MPI_Abort. Where it is a thread of the engine that fails, the
first two are left out. A process that has failed is never left to the interpreter's own end, which stops the writer's
thread in the middle of HDF5 and then waits for it for ever.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from hpc.ranks import Ranks


class EngineThread(threading.Thread):
    """A thread of the engine, started at once; an exception in it ends the run, see `end_on_exceptions`.

    Parameters
    ----------
    name
        Shown in the drawing of docs/architecture.md, and in messages.
    target
        What it does.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        super().__init__(name=name, target=target, args=arguments, daemon=True)
        self.start()


def end_on_exceptions(end: Callable[[BaseException], None]) -> None:
    """Call ``end`` with any exception that leaves a thread of the engine; others are reported as ever."""
    usual = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if isinstance(raised.thread, EngineThread) and raised.exc_value is not None:
            raised.exc_value.add_note(f"raised in the thread {raised.thread.name!r} of the engine")
            end(raised.exc_value)
        else:
            usual(raised)

    threading.excepthook = hook


def under_mpiexec() -> bool:
    """Say whether MPICH's mpiexec started this rank, which ends all ranks when one dies."""
    return "MPI_LOCALNRANKS" in os.environ


def end_process(code: int) -> NoReturn:
    """End this process now, whatever its threads are in the middle of."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def end_with_all(ranks: Ranks, code: int) -> NoReturn:
    """End this process when all ranks have been told to end with the same code.

    mpiexec kills the others as soon as one has ended without MPI_Finalize, and then answers with that signal: it is
    told by MPI_Abort, which keeps the code. srun waits for the others, and would make 137 of MPI_Abort.
    """
    if ranks.size > 1 and under_mpiexec():
        ranks.abort(code)
    end_process(code)
