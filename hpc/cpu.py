"""What kind of CPU this is, as the levels of x86-64 that numeric libraries have code for; without numpy."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

from hpc.errors import LaunchError

LEVELS: Final = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
"""As in the x86-64 psABI, lowest first; every level can do what those before it can."""

LOWER: Final = "TESSERA_CPU_LEVEL"
"""For tests: the level that this machine is taken for, if it is below its own."""

_FLAGS: Final = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
"""What each level adds, in the words of ``/proc/cpuinfo``."""


def level() -> str:
    """Return the highest level that this CPU has; the machine's name (``aarch64``) where it is none of x86-64.

    Raises
    ------
    hpc.errors.LaunchError
        If `LOWER` names no level.
    """
    own = level_of(os.uname().machine, set(_cpuinfo("flags").split()))
    lower = os.environ.get(LOWER)
    if not lower:
        return own
    if lower not in LEVELS:
        msg = f"{LOWER}={lower}: is no level; one of {', '.join(LEVELS)}, or unset it"
        raise LaunchError(msg)
    return lowest([own, lower]) if own in LEVELS else own


def level_of(machine: str, flags: set[str]) -> str:
    """Return the highest level of a machine with these flags."""
    if machine not in ("x86_64", "amd64"):
        return machine
    found = LEVELS[0]
    for name, needed in _FLAGS.items():
        if not needed <= flags:
            break
        found = name
    return found


def lowest(levels: list[str]) -> str:
    """Return the level that all CPUs have; the names of all kinds where some are not x86-64."""
    kinds = sorted(set(levels))
    if all(kind in LEVELS for kind in kinds):
        return min(kinds, key=LEVELS.index)
    return "+".join(kinds)


def vendor() -> str:
    """Return who made the CPU; libraries of one vendor take other ways on another's."""
    return _cpuinfo("vendor_id") or os.uname().machine


@cache
def _cpuinfo(name: str) -> str:
    """Return the first CPU's line of ``/proc/cpuinfo``, empty if there is none."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            line = next((text for text in lines if text.split(":")[0].strip() == name), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()
