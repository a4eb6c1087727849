"""New files where others may write, too: names that nobody can guess, and nothing followed or overwritten."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp-"
"""Marks temporary names."""

_OURS: Final = re.compile(r".+\.tmp-(?:[0-9a-f]{32}|[0-9]+-[0-9a-f]{8})")
"""A whole temporary name, of this version or an older one."""

_FRESH: Final = 60.0
"""Seconds for which a temporary file beside config.yaml may be that of a command that is about to start ranks."""


def create(path: Path, content: bytes = b"", mode: int = 0o666) -> os.stat_result:
    """Make a file that is not there yet; nothing is followed or overwritten, whoever put it there.

    Parameters
    ----------
    path
        The file.
    content
        What it holds.
    mode
        Its permissions, of which the umask takes some away.

    Returns
    -------
    os.stat_result
        What the file system says of it.

    Raises
    ------
    OSError
        As raised by the file system; nothing is left behind.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            return os.fstat(descriptor)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def temporary_name(path: Path) -> Path:
    """Return the name under which a file is written before it is put in its place."""
    return path.with_name(f"{path.name}{TEMPORARY}{secrets.token_hex(16)}")


def is_temporary(name: str) -> bool:
    """Say whether this is the whole of a name that `temporary_name` gives, or an older version gave."""
    return _OURS.fullmatch(name) is not None


def hidden_name(path: Path) -> Path:
    """Return such a name for those who do not hold the run's lock: a starting run does not clear it away."""
    return path.with_name(f".{path.name}.{secrets.token_hex(16)}")


def replace(path: Path, content: bytes, temporary: Path) -> None:
    """Put a new file in the place of ``path`` atomically but without fsync.

    Raises
    ------
    OSError
        As raised by the file system; nothing is left behind.
    """
    create(temporary, content)
    try:
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def temporaries(run: Path) -> Iterator[Path]:
    """Yield the engine's own temporary files in a run directory: by their whole name, where the engine writes.

    Below ``checkpoints`` everything is the engine's.
    """
    for folder in sorted((run / "checkpoints").glob("*")):
        yield from _files(folder, ours=False)
    for folder in (run / "results", run / "report"):
        for below, folders, _ in os.walk(folder):
            folders.sort()
            yield from _files(Path(below))
    yield from _files(run)


def remove_temporaries(run: Path) -> list[Path]:
    """Delete what killed writers left behind; only the holder of the run's lock may call this."""
    left = []
    for path in temporaries(run):
        with suppress(OSError):
            if path.parent == run and (run / "lock").stat().st_mtime - path.stat().st_mtime < _FRESH:
                continue
            path.unlink()
            left.append(path)
    return left


def _files(folder: Path, *, ours: bool = True) -> Iterator[Path]:
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            named = is_temporary(path.name) if ours else TEMPORARY in path.name
            if named and path.is_file() and not path.is_symlink():
                yield path
