"""A run directory is code: its configuration names commands and modules. Whoever can write it decides what runs.

What is executed is what ``config.yaml`` says. Whoever puts another file in its place leaves one of their own there, and
whoever writes into it has to be allowed to: so its owner and mode tell whose words it holds, whatever the folders
around it allow. They are looked at on the open file that is then read, by every command that acts upon it and by the
ranks again, which may start days later.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hpc.errors import TRUST, RunDirError
from hpc.rundir import RunDir
from hpc.store.newfile import create, hidden_name
from hpc.watch.sweeps import FILE as SWEEP_FILE

_TRUSTED_ANYWAY: Final = 0
"""Root, who can do everything without this."""

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def load_trusted(run: RunDir, *, trusted: bool) -> dict[str, Any]:
    """Return the configuration of a run to be acted upon; ask first if it may be the words of others.

    Parameters
    ----------
    run
        The run.
    trusted
        Whether the user has said that it may.

    Raises
    ------
    hpc.errors.RunDirError
        If they do not want to go on or cannot be asked, and as `RunDir.load_config` does.
    hpc.errors.UnreadableError
        As `RunDir.load_config` does.
    """
    looked: list[os.stat_result] = []
    config = run.load_config(looked.append)
    if not trusted:
        _ask({**_found(run.path), **dict.fromkeys([run.config_file], looked[0])}, run.path)
    return config


def load_own(run: RunDir) -> dict[str, Any]:
    """Return the configuration of a run if nobody but this user and root can have written it: for ranks.

    The folder is not looked at: a run of others that was trusted once has a configuration of this user's own since.

    Raises
    ------
    hpc.errors.RunDirError, hpc.errors.UnreadableError
        As `load_trusted` does, without asking.
    """
    looked: list[os.stat_result] = []
    config = run.load_config(looked.append)
    if found := strangers({run.config_file: looked[0]}):
        msg = f"{_told(found)}; look at it, then go on with tessera resume, or start the ranks with {TRUST}"
        raise RunDirError(msg)
    return config


def require_trust(sweep: Path, *, trusted: bool) -> None:
    """Ask before the runs that a sweep names are believed to be those of this user's sweep.

    Raises
    ------
    hpc.errors.RunDirError
        If they do not want to go on, or cannot be asked.
    """
    if not trusted:
        _ask(_found(sweep, SWEEP_FILE), sweep)


def strangers(found: Mapping[Path, os.stat_result], me: int | None = None) -> list[str]:
    """Return which of some files and folders others than this user and root can have written, and who.

    Parameters
    ----------
    found
        What the file system says of each.
    me
        Number of this user.
    """
    me = os.geteuid() if me is None else me
    told = []
    for path in [path for path, status in found.items() if _stranger(path, status, {me})]:
        # Some file systems give every file to one user, or let everybody write it, whoever made it and how.
        mine = _new_file(path if stat.S_ISDIR(found[path].st_mode) else path.parent)
        owners = {me} if mine is None else {me, mine.st_uid}
        modes = mine is None or not mine.st_mode & _OTHERS_WRITE
        if text := _stranger(path, found[path], owners, modes=modes):
            told.append(text)
    return told


def _stranger(path: Path, status: os.stat_result, owners: set[int], *, modes: bool = True) -> str:
    if status.st_uid not in {*owners, _TRUSTED_ANYWAY}:
        return f"{path} belongs to {_user(status.st_uid)}"
    # In a folder that a group may write, what they put in the place of a file is theirs; one that everybody may write
    # is no place for a run, unless each may remove only their own.
    folder = stat.S_ISDIR(status.st_mode)
    if modes and status.st_mode & stat.S_IWOTH and not (folder and status.st_mode & stat.S_ISVTX):
        return f"{path} can be written by everybody"
    if modes and status.st_mode & stat.S_IWGRP and not folder:
        return f"{path} can be written by the group {_group(status.st_gid)}"
    return ""


def _found(folder: Path, *names: str) -> dict[Path, os.stat_result]:
    """Return what the file system says of a folder and files in it; what is not there is left out."""
    found = {}
    for path in (folder, *(folder / name for name in names)):
        with suppress(OSError):
            found[path] = path.stat()
    return found


def _new_file(folder: Path) -> os.stat_result | None:
    """Return how a new file that is this user's alone looks in a folder; None if none can be made there."""
    probe = hidden_name(folder / "owner")
    try:
        return create(probe, mode=0o600)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            probe.unlink()


def _ask(found: Mapping[Path, os.stat_result], path: Path) -> None:
    said = strangers(found)
    if not said:
        return
    told = _told(said)
    if sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"{told}.\ngo on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in {"y", "yes"}:
            return
    mine = [f"chmod go-w {p}" for p, status in found.items() if status.st_uid == os.geteuid()]
    remedy = f" (if it is yours, keep others out: {'; '.join(mine)})" if mine and "can be written" in told else ""
    msg = f"{path}: {told}; look at it, then add {TRUST}{remedy}"
    raise RunDirError(msg)


def _told(found: list[str]) -> str:
    return (
        f"{'; '.join(found)}. Going on runs what its config.yaml names, as you: cluster.mpiexec, cluster.python, "
        "cluster.setup, the modules of job._target_ and model files"
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
