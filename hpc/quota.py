"""How many CPUs the control groups of this process pay for: containers are often limited in time, not in CPUs.

A process over its quota is stopped for the rest of each period (CFS bandwidth, https://docs.kernel.org/scheduler/
sched-bwc.html), so threads beyond it only wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/proc/self/cgroup")
_MOUNT: Final = Path("/sys/fs/cgroup")


def quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """Return the least quota of this process's control groups and those above them, in CPUs; None without one.

    Parameters
    ----------
    groups
        Which groups the process is in.
    mount
        Where they are mounted; of version 1 or 2, or both.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            for folder in (mount, mount / "unified"):
                found += filter(None, (_second_version(group) for group in _upwards(folder, path)))
        elif "cpu" in controllers.split(","):
            for folder in (mount / "cpu", mount / controllers):
                found += filter(None, (_first_version(group) for group in _upwards(folder, path)))
    return min(found, default=None)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield a group and those above it, the root last: in a container often nothing else of them is to be seen."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for end in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:end])


def _second_version(group: Path) -> float | None:
    """Read ``cpu.max``: quota or ``max``, and period, in µs."""
    words = _words(group / "cpu.max")
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _first_version(group: Path) -> float | None:
    """Read quota, -1 for none, and period in µs."""
    runtime, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    return _ratio(runtime[0], period[0]) if runtime and period else None


def _ratio(runtime: str, period: str) -> float | None:
    if not (runtime.isdigit() and period.isdigit() and int(runtime) and int(period)):
        return None
    return int(runtime) / int(period)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []
