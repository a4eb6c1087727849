"""Every kind of file that a user may hand in: how to make a small sound one, and how the jobs read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Format:
    """``make(folder)`` returns the file to be damaged; ``read(path)`` reads it to its last byte."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]


def _all() -> dict[str, Format]:
    from mutation import fit_files, run_files, sky_files, vision_files, xpcs_files

    found: dict[str, Format] = {}
    for module in (run_files, sky_files, xpcs_files, fit_files, vision_files):
        found |= module.formats()
    return found


FORMATS = _all()
