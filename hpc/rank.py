"""One rank of a run: ``python -P -m hpc.rank [--trust-owner] RUN``, started by mpiexec, srun, or alone.

The order matters: the thread budget and the ranks' agreement on kernels before any numeric import, MPI before the
workload, and whatever goes wrong ends *all* ranks within seconds with a record of who, where and why.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hpc import threads
from hpc.ending import end_on_exceptions, end_process
from hpc.errors import (
    EXIT_BAD_INPUT,
    EXIT_COME_BACK,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_QUARANTINED,
    EXIT_TOLD_TO_STOP,
    TRUST,
    LockedError,
    RunDirError,
    TesseraError,
    UnreadableError,
)
from hpc.stop import StopFlag, ignore, listen
from hpc.store.newfile import create, hidden_name
from hpc.store.plain import read_json
from hpc.terminal import complain, guard_output
from hpc.whereabouts import Whereabouts, this_stay

if TYPE_CHECKING:
    from hpc.kernels import Kernels
    from hpc.ranks import Ranks

_failing = threading.Lock()

LOG_BYTES: Final = 8 << 20
"""Bytes of a rank's log; what is older is kept once more, as ``rank-NNNNN.log.1``."""

_RELEASE: Final = 2.0
"""Seconds that a failing rank leaves rank 0 to give up the lock."""

_CONFIG_PAUSES: Final = (0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2, 2)
"""Seconds between tries to read a configuration that cannot be read now; how long to wait for others it says itself."""


def live(arguments: list[str] | None = None) -> NoReturn:
    """Be a rank, and end this process with its exit code.

    A rank that has come to a good end has no threads left. One that has failed may have, and ends without waiting.
    """
    code = main(arguments)
    if code in {EXIT_DONE, EXIT_QUARANTINED, EXIT_COME_BACK, EXIT_TOLD_TO_STOP}:
        ignore()
        sys.exit(code)
    end_process(code)


def main(arguments: list[str] | None = None) -> int:
    """Run this rank's share of the run in the given directory; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    trusted = arguments[:1] == [TRUST]
    if len(arguments) != 1 + trusted:
        sys.stderr.write(f"usage: python -P -m hpc.rank [{TRUST}] RUN\n")
        return EXIT_BAD_INPUT
    path = Path(arguments[-1]).absolute()
    guard_output()  # nothing that a unit prints may fail it, on a full disk or for want of a reader
    ranks: Ranks | None = None
    here = Whereabouts()
    flag = StopFlag()
    end_on_exceptions(lambda error: end_process(_fail(path, ranks, error, here)))
    try:
        listen(flag)  # before anything that takes time: a signal must not kill a rank that is still importing
        config, problem = _config(path, trusted=trusted)
        budget = threads.budget(config.get("cluster", {}).get("threads_per_process", "auto"))
        threads.set_environment(budget)
        from hpc.ranks import world
        from hpc.sharing import require_shared

        ranks = world()
        require_shared(path, ranks)
        if problem is not None:
            raise problem  # noqa: TRY301 - the ranks had to meet first
        _log_to(path / "logs" / f"rank-{ranks.rank:05d}.log")
        kernels = _pin_kernels(path, config, ranks)
        code = _run(path, config, ranks, budget, kernels, here, flag)
        ranks.leave()
    except BaseException as error:  # noqa: BLE001 - any way out of here must take the other ranks along
        return _fail(path, ranks, error, here)
    else:
        return code


def _config(path: Path, *, trusted: bool) -> tuple[dict[str, Any], TesseraError | None]:
    """Return the configuration, or what is wrong with it."""
    from hpc.ownership import load_own
    from hpc.rundir import RunDir

    pauses = iter(_CONFIG_PAUSES)
    while True:
        try:
            run = RunDir.open(path)
            return run.load_config() if trusted else load_own(run), None
        except UnreadableError as error:
            pause = next(pauses, None)
            if pause is None:
                return {}, error
            time.sleep(pause)
        except RunDirError as error:
            return {}, error


def _pin_kernels(path: Path, config: dict[str, Any], ranks: Ranks) -> Kernels:
    """Agree with all ranks on the kernels of the numeric libraries, none of which is loaded yet. Collective."""
    from hpc import cpu
    from hpc.kernel_record import first_of
    from hpc.kernels import pin
    from hpc.store.patience import read_patiently

    levels = ranks.gather(cpu.level())
    agreed = None
    if levels is not None:
        warn = logging.getLogger("tessera").warning
        agreed = cpu.lowest(levels), read_patiently(lambda: first_of(path), sum(_CONFIG_PAUSES), warn)
    agreed = ranks.bcast(agreed)
    engine = config.get("engine")
    return pin(str(engine.get("kernels", "auto")) if isinstance(engine, dict) else "auto", *agreed)


def _run(
    path: Path,
    config: dict[str, Any],
    ranks: Ranks,
    budget: int,
    kernels: Kernels,
    here: Whereabouts,
    flag: StopFlag,
) -> int:
    from hpc.load import load_job
    from hpc.options import build
    from hpc.run import run_job
    from hpc.rundir import RunDir
    from hpc.settings import Settings

    settings = build(Settings, config, "config")
    return run_job(load_job(settings.job), RunDir(path), settings, ranks, budget, here, flag, kernels)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # On a full disk a line of the log is lost; a complaint on stderr would end mpiexec, whose output is a file too.
    logging.raiseExceptions = False
    # A workload that warns for every pixel must not fill the disk: the newest two files' worth is kept.
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


def _fail(path: Path, ranks: Ranks | None, error: BaseException, here: Whereabouts) -> int:
    """Leave word of a failure and end the other ranks; return the exit code if there are none."""
    _failing.acquire()  # once: what fails in another thread meanwhile, or in this one's wake, is not the cause
    code = error.exit_code if isinstance(error, TesseraError) else EXIT_FAILED
    number = ranks.rank if ranks is not None else int(os.environ.get("PMI_RANK", os.environ.get("SLURM_PROCID", "0")))
    record = {
        "rank": number,
        "stay": this_stay(),
        "host": socket.gethostname(),
        "stage": here.stage,
        "unit": here.unit,
        "error": f"{type(error).__name__}: {error}",
        "message": str(error),
        "expected": isinstance(error, TesseraError),
        "exit_code": code,
        "traceback": "".join(traceback.format_exception(error)),
    }
    if logging.getLogger().hasHandlers() or not record["expected"]:  # else stderr below says all there is to say
        logging.getLogger("tessera").critical("%s", record["traceback"])
    if not isinstance(error, LockedError):  # the run is in good hands: this is no failure of it
        _leave_record(path / "failure.json", record)
    where = f" in stage {record['stage']}" if record["stage"] else ""
    where += f", unit {record['unit']}" if record["unit"] else ""
    complain(f"tessera: rank {number} ({record['host']}) failed{where}: {record['error']}")
    if ranks is not None and ranks.size > 1:
        if record["expected"] and number > 0 and not isinstance(error, LockedError):
            _await_release(path / "lock")
        ranks.abort(code)
    return code


def _await_release(lock: Path) -> None:
    """Let rank 0 give up the lock, for what is refused is refused on all ranks at once.

    Left behind by a killed rank, the lock would keep a resume on another node waiting for a minute.
    """
    end = time.monotonic() + _RELEASE
    while lock.exists() and time.monotonic() < end:
        time.sleep(0.02)


def _leave_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record unless another rank was first: the first failure is the cause, the others follow from it."""
    mine = hidden_name(path)
    with suppress(OSError):
        create(mine, json.dumps(record, indent=1).encode())
        with suppress(OSError, ValueError, AttributeError):
            if read_json(path).get("stay", "") != record["stay"]:  # of the job's stay before this one
                path.unlink()
        with suppress(FileExistsError):
            os.link(mine, path)
        mine.unlink()


if __name__ == "__main__":
    live()
