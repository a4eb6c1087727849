"""Whether all nodes see the same run directory: a folder on a node's own disk looks the same and is not."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Final

from hpc.errors import RunDirError
from hpc.ranks import Ranks
from hpc.store.newfile import create, hidden_name

_PATIENCE: Final = 15.0
"""Seconds that a network file system may take to show a new file to another node."""


def require_shared(run: Path, ranks: Ranks) -> None:
    """Write a token on rank 0 and look for it on every rank. Collective.

    Raises
    ------
    hpc.errors.RunDirError
        On every rank if one does not see it; the message names the hosts.
    """
    if ranks.size == 1:
        return
    token = hidden_name(run / "token")
    if ranks.rank == 0 and run.is_dir():
        create(token)
    token = run / ranks.bcast(token.name)
    found = ranks.gather((socket.gethostname(), _appears(token)))
    blind = None
    if found is not None:
        token.unlink(missing_ok=True)
        blind = sorted({host for host, seen in found if not seen})
    blind = ranks.bcast(blind)
    if blind:
        msg = (
            f"{run}: is not the same directory on all nodes: {', '.join(blind[:8])} do not see what rank 0 writes; "
            "put run.dir on a file system that all nodes share (tessera doctor DIR tries one)"
        )
        raise RunDirError(msg)


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + (_PATIENCE if file.parent.is_dir() else 0.0)
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        if file.parent.is_dir():
            list(file.parent.iterdir())  # makes NFS look again
    return True
