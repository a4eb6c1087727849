"""Which code, packages, MPI and machine made a run: enough to make it again."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hpc
from hpc.code import Code
from hpc.errors import CorruptFileError, RunDirError
from hpc.rundir import FORMAT, RunDir
from hpc.store.origin import refuse_other_origin
from hpc.store.reading import names_in
from hpc.store.records import read_record, write_record

_ATTEMPT_FILE: Final = re.compile(r"(?:damaged-)?(?:seg|begun)-(\d+)-.*")

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
    "jaxlib",
    "torch",
    "pillow",
    "tokenizers",
)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What is relied on of an attempt."""

    config_hash: str


@dataclass(frozen=True, slots=True)
class ProvenanceRecord:
    """What is relied on of ``provenance.json``."""

    version: str
    attempts: tuple[_Attempt, ...]


def record_attempt(run: RunDir, config_hash: str, size: int, threads: int, code: Code) -> int:
    """Add this attempt to ``provenance.json``.

    Returns
    -------
    int
        The attempt's number, 1 for the first. It is above that of every file in ``checkpoints`` even if the record
        was lost: files are named after it, and none may take the place of another.

    Raises
    ------
    hpc.errors.RunDirError
        If the configuration is not the one that earlier attempts worked with.
    """
    try:
        record = read_record(run.provenance_file, ProvenanceRecord) or {}
    except CorruptFileError as error:
        logging.getLogger("tessera").warning("%s; it was set aside and a new one begun", error)
        run.provenance_file.replace(run.path / "damaged-provenance.json")
        record = {}
    before = record.get("attempts", [])
    if before and before[-1]["config_hash"] != config_hash:
        msg = (
            f"{run.config_file}: is not the configuration that this run was started with (its job or seed changed, or "
            "the file is damaged); restore it, or start a new run with the same command and another run.dir"
        )
        raise RunDirError(msg)
    if not before:
        refuse_other_origin(run.path / "checkpoints", config_hash)
    number = 1 + max([len(before), *(int(n) for n in _numbers(run))])
    attempts = [*before, {"number": number, **_attempt(config_hash, size, threads, code)}]
    write_record(
        run.provenance_file,
        {
            "format": FORMAT,
            "version": hpc.__version__,
            "created": record.get("created", attempts[0]["started"]),
            "attempts": attempts,
        },
    )
    return number


def _numbers(run: RunDir) -> Iterator[str]:
    """Yield the attempts' numbers in file names such as ``seg-0002-00000-000001.h5``."""
    checkpoints = run.path / "checkpoints"
    for stage in names_in(checkpoints):
        for name in names_in(checkpoints / stage, "*-*"):
            match = _ATTEMPT_FILE.fullmatch(name)
            if match:
                yield match[1]


def _attempt(config_hash: str, size: int, threads: int, code: Code) -> dict[str, Any]:
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
        "packages": versions(),
        "mpi": _mpi_library(),
        "code": {"commit": code.commit, "dirty": code.digest if code.changed else "", "digest": code.digest},
        "slurm": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_JOB") or k == "SLURM_NTASKS"},
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results come from, as far as they are installed."""
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
