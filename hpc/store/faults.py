"""Named points of the write protocol where the fault harness may strike.

``TESSERA_FAULT=POINT:COUNT:ACTION`` strikes when a process passes POINT for the COUNT-th time. ACTION is
``kill`` (SIGKILL to this process), ``hang`` (sleep for an hour), or an errno name such as ``ENOSPC`` or ``EIO``,
which is raised as the file system would; ``ENOSPC*5`` raises it five times in a row.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Final

_SPEC: Final = os.environ.get("TESSERA_FAULT", "")
_passed: dict[str, int] = {}


def reached(point: str) -> None:
    """Do nothing, unless the harness asked for a fault at this point."""
    if _SPEC:
        _strike(point)


def _strike(point: str) -> None:
    wanted, count, action = _SPEC.split(":")
    if point != wanted:
        return
    _passed[point] = _passed.get(point, 0) + 1
    name, _, times = action.partition("*")
    if not int(count) <= _passed[point] < int(count) + int(times or 1):
        return
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "hang":
        time.sleep(3600)
    else:
        code = getattr(errno, name)
        raise OSError(code, os.strerror(code), f"fault injected at {point}")
