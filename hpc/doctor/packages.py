"""Whether Python has the packages that runs need, and which versions."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

import hpc
from hpc.doctor.finding import Finding

_DISTRIBUTION: Final = "tessera-hpc"
_OPTIONAL: Final = ("torch", "jax")


def check() -> Finding:
    """Look for every distribution this package declares that it needs; import none of them."""
    try:
        declared = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return Finding("packages", "fail", f"{_DISTRIBUTION} is not installed", "pip install tessera-hpc")
    needed = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in declared if "extra ==" not in line]
    missing = [name for name in needed if _version(name) is None]
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    shown = [f"{name} {_version(name)}" for name in (*needed, *_OPTIONAL) if _version(name)]
    text = f"tessera {hpc.__version__}, Python {platform.python_version()}, {', '.join(shown)}"
    return Finding("packages", "ok", text)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
