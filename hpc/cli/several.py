"""Verbs on several paths: one that cannot be dealt with does not stop the others; a request to stop does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hpc.launch.sweep import SEVERITY, in_turn
from hpc.terminal import say


def each(paths: Sequence[Path], do: Callable[[Path], int]) -> int:
    """Do something to each path; return the worst exit code. The error of a single path is raised."""
    if len(paths) == 1:
        return do(paths[0])

    def one(path: Path) -> int:
        say(f"{path}:")
        return do(path)

    codes = in_turn(paths, one)
    for path in paths[len(codes) :]:
        say(f"{path}: not begun")
    return max(codes, key=SEVERITY.index)
