"""Which code, packages, MPI and machine made a run: enough to make it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import hpc
from hpc.rundir import FORMAT, RunDir
from hpc.store.atomic import write_json

_PACKAGES: Final = (
    "numpy",
    "scipy",
    "h5py",
    "mpi4py",
    "mpich",
    "hydra-core",
    "omegaconf",
    "submitit",
    "astropy",
    "photutils",
    "sep",
    "jax",
    "torch",
)


def record_attempt(run: RunDir, config_hash: str, size: int, threads: int) -> int:
    """Add this attempt to ``provenance.json``.

    Returns
    -------
    int
        The attempt's number, 1 for the first.
    """
    try:
        record = json.loads(run.provenance_file.read_bytes())
    except (OSError, ValueError):
        record = {}
    attempts = [*record.get("attempts", []), _attempt(config_hash, size, threads)]
    write_json(
        run.provenance_file,
        {
            "format": FORMAT,
            "version": hpc.__version__,
            "created": record.get("created", attempts[0]["started"]),
            "attempts": attempts,
        },
    )
    return len(attempts)


def _attempt(config_hash: str, size: int, threads: int) -> dict[str, Any]:
    return {
        "started": time.time(),
        "config_hash": config_hash,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": os.environ.get("TESSERA_COMMAND", " ".join(sys.argv)),
        "cwd": str(Path.cwd()),
        "ranks": size,
        "threads_per_process": threads,
        "python": sys.version,
        "platform": platform.platform(),
        "packages": _versions(),
        "mpi": _mpi_library(),
        "code": _code_state(Path(hpc.__file__).parent),
        "slurm": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_JOB") or k == "SLURM_NTASKS"},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _mpi_library() -> str | None:
    module = sys.modules.get("mpi4py.MPI")
    return module.Get_library_version().splitlines()[0] if module is not None else None


def _code_state(directory: Path) -> dict[str, str] | None:
    """Return commit and a hash of the uncommitted difference, None outside a checkout."""
    try:
        commit = _git(directory, "rev-parse", "HEAD").decode().strip()
        dirty = _git(directory, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": hashlib.sha256(dirty).hexdigest() if dirty else ""}


def _git(directory: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(directory), *arguments], check=True, capture_output=True, timeout=10).stdout
