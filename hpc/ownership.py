"""A run directory is code: its configuration names commands and modules. Whoever can write it, decides what runs."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path

from hpc.errors import RunDirError
from hpc.terminal import visible

_TRUSTED_ANYWAY = 0
"""Root, who can do everything without this."""


def require_trust(run: Path, *, trusted: bool) -> None:
    """Ask before a run directory is believed that others than this user can have written; refuse without a terminal.

    Parameters
    ----------
    run
        The directory of a run or of a sweep.
    trusted
        Whether the user has said so already.

    Raises
    ------
    hpc.errors.RunDirError
        If they do not want to go on, or cannot be asked.
    """
    found = [] if trusted else strangers(run)
    if not found:
        return
    told = (
        f"{'; '.join(found)}. Going on runs what its config.yaml names, as you: cluster.mpiexec, cluster.python, "
        "cluster.setup, the modules of job._target_ and model files"
    )
    if sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(visible(f"{told}.\ngo on? [y/N] "))
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in {"y", "yes"}:
            return
    msg = f"{told}; look at it, then add --trust-owner"
    raise RunDirError(msg)


def strangers(run: Path, me: int | None = None) -> list[str]:
    """Return who else can have written a run directory or its configuration; what is not there is left out."""
    me = os.geteuid() if me is None else me
    found = []
    for path in (run, run / "config.yaml", run / "sweep.json"):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_uid not in {me, _TRUSTED_ANYWAY}:
            found.append(f"{path} belongs to {_name(status.st_uid)}")
        elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            found.append(f"{path} can be written by everybody")
    return found


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
