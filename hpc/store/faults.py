"""Named points of the write protocol, and ``read`` before a file is read, where the fault harness may strike.

``TESSERA_FAULT=POINT[@FILES]:COUNT:ACTION`` strikes when a process passes POINT (or any, for ``*``) on its way to a
file whose name matches the pattern FILES, for the COUNT-th time. ACTION is ``kill`` (SIGKILL to this process),
``hang`` (sleep for an hour), or an errno name such as ``ENOSPC`` or ``EIO``, which is raised as the file system
would; ``ENOSPC*5`` raises it five times in a row.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final


@dataclass(slots=True)
class Fault:
    """A fault that waits for its moment.

    Attributes
    ----------
    passed
        How often a matching point was passed so far.
    """

    point: str
    files: str
    count: int
    action: str
    times: int = 1
    passed: int = 0

    @classmethod
    def parse(cls, spec: str) -> Fault:
        """Read ``POINT[@FILES]:COUNT:ACTION``."""
        where, count, what = spec.split(":")
        point, _, files = where.partition("@")
        action, _, times = what.partition("*")
        return cls(point, files or "*", int(count), action, int(times or 1))

    def meet(self, point: str, name: str) -> None:
        """Strike if this is the moment."""
        if self.point not in ("*", point) or not fnmatch(name, self.files):
            return
        self.passed += 1
        if not self.count <= self.passed < self.count + self.times:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "hang":
            time.sleep(3600)
        else:
            code = getattr(errno, self.action)
            raise OSError(code, os.strerror(code), f"fault injected at {point} of {name}")


_SPEC: Final = os.environ.get("TESSERA_FAULT", "")
armed: Fault | None = Fault.parse(_SPEC) if _SPEC else None
"""The fault of this process; None unless the harness asked for one."""


def reached(point: str, path: Path) -> None:
    """Do nothing, unless the harness asked for a fault at this point of the writing of ``path``."""
    if armed is not None:
        armed.meet(point, path.name)
