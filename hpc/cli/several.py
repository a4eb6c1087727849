"""Verbs on several paths: one that cannot be dealt with does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hpc.errors import TesseraError
from hpc.launch.sweep import SEVERITY
from hpc.terminal import complain, say


def each(paths: Sequence[Path], do: Callable[[Path], int]) -> int:
    """Do something to each path; return the worst exit code. The error of a single path is raised."""
    if len(paths) == 1:
        return do(paths[0])
    codes = []
    for path in paths:
        say(f"{path}:")
        try:
            codes.append(do(path))
        except TesseraError as error:
            complain(f"error: {error}")
            codes.append(error.exit_code)
    return max(codes, key=SEVERITY.index)
