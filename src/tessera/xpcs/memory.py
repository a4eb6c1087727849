"""Whether a machine has room for matrices that cannot be read piece by piece."""

from __future__ import annotations

from pathlib import Path

from tessera.xpcs.errors import XpcsFileError


def require_memory(nbytes: int, source: str, otherwise: str) -> None:
    """See whether this machine has room for matrices that have to be unpacked.

    Parameters
    ----------
    nbytes
        What they take.
    source, otherwise
        The file, and what else can be done, for the message.

    Raises
    ------
    XpcsFileError
        If there is no room.
    """
    free = _available()
    if free is not None and nbytes > free:
        msg = (
            f"{source}: its matrices are unpacked once per node, to {nbytes / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are available here; use a node with more memory, select fewer angles or frames, "
            f"or {otherwise}"
        )
        raise XpcsFileError(msg)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found.split()[1]) * 1024
