"""The first thing a task does on its node: ``python -P -m hpc.launch.node FOLDER``, in the place of submitit's own.

What submitit carries is a pickle, and whoever can replace it runs code in the name of whose job it is. So the folder
must be as the submission made it, its owner's alone, before anything in it is read.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hpc.errors import EXIT_BAD_INPUT, LaunchError
from hpc.terminal import complain

PRIVATE: Final = 0o700
"""Mode of a submission's folder."""


def open_private(folder: Path) -> int:
    """Return a descriptor of a folder that nobody else can write to or read.

    What is opened below the descriptor lies in the folder that was looked at, whatever its path names by then.

    Raises
    ------
    hpc.errors.LaunchError
        If it cannot be opened, or is not this user's alone.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        msg = f"{folder}: the folder of the submission cannot be opened ({error.strerror}); submit the run again"
        raise LaunchError(msg) from error
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077:
        return descriptor
    os.close(descriptor)
    msg = (
        f"{folder}: belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, so others may have put "
        f"their own code there; it must belong to you (user {os.geteuid()}) with mode {PRIVATE:o}: "
        "submit the run again with tessera resume"
    )
    raise LaunchError(msg)


def main(arguments: list[str]) -> None:
    """Let submitit start what lies in the folder, after a look at who could have put it there."""
    try:
        descriptor = open_private(Path(arguments[0]))
    except LaunchError as error:
        complain(f"tessera: {error}")
        sys.exit(EXIT_BAD_INPUT)
    process_job = _process_job()
    process_job(Path(f"/proc/self/fd/{descriptor}"))


def _process_job() -> Callable[[Path], None]:
    """Return submitit's function without the numpy that its module would import: kernels are not chosen yet."""
    before = sys.modules.get("numpy")
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        from submitit.core.submission import process_job
    finally:
        del sys.modules["numpy"]
        if before is not None:
            sys.modules["numpy"] = before
    found: Callable[[Path], None] = process_job
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
