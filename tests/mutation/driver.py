"""Read thousands of damaged files in a process of its own, with little memory and a clock: ``python -m mutation.driver``.

Every reading has to end with a result or an error that is meant for people. What a process cannot survive (a crash in a
library, a loop in C) is seen by the one that started it, which goes on behind that damage.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

from mutation.formats import FORMATS, Format
from mutation.mutate import mutated

MEMORY = 8 << 30
"""Bytes of address space; the libraries alone map up to three GiB."""

PATIENCE = 10.0
"""Seconds for a file of some kB."""


class _Hang(BaseException):
    pass


def _too_long(number, frame):
    raise _Hang


def kind_of(error: BaseException) -> str:
    """Return ``explained`` for an error of ours, else what it is."""
    if isinstance(error, _Hang):
        return "hang"
    ours = type(error).__module__.startswith(("hpc.", "tessera."))
    return "explained" if ours else type(error).__name__


def main(folder: Path, seed: int, number: int, first: int, names: list[str]) -> None:
    """Damage the file of each format so many times, of the first one from ``first`` on."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_long)
    for name in names:
        below = folder / name.replace(" ", "-").replace("/", "-")
        below.mkdir()
        _campaign(name, below, folder / "at", seed, range(first, number))
        first = 0


def _campaign(name: str, folder: Path, at: Path, seed: int, numbers: range) -> None:
    fmt = FORMATS[name]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    path = fmt.make(folder)
    sound = path.read_bytes()
    try:
        fmt.read(path)  # imports what it needs, and has to succeed, or to refuse what is no input (a lock)
    except Exception as error:
        if kind_of(error) != "explained":
            raise
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    place = os.open(at, os.O_WRONLY | os.O_CREAT)
    for number in numbers:
        os.pwrite(place, f"{number:12d} {name:40}".encode(), 0)
        path.write_bytes(mutated(sound, random.Random(f"{name} {seed} {number}")))
        began = time.monotonic()
        kind, told = _reading(fmt, path)
        record = {"format": name, "number": number, "kind": kind, "seconds": round(time.monotonic() - began, 3)}
        print(json.dumps({**record, "told": told}))
    os.close(place)


def _reading(fmt: Format, path: Path) -> tuple[str, str]:
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        fmt.read(path)
    except BaseException as error:  # noqa: BLE001
        kind = kind_of(error)
        return kind, "" if kind == "explained" else "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read", ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:])
