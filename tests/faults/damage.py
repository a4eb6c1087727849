"""Faults of what lies on disk: truncated, flipped, missing, left over, of another schema or another time."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import numpy as np
from harness import Harness, Struck
from protocol import partial_run

from hpc.errors import LockedError
from hpc.store.atomic import read_hdf5, write_hdf5
from hpc.store.records import read_record, sealed, write_record

PATTERNS = (
    "checkpoints/*/seg-*.h5",
    "checkpoints/*/gen-*.h5",
    "checkpoints/*/gen-*.json",
    "checkpoints/*/complete.json",
    "checkpoints/*/quarantine.json",
    "checkpoints/*/begun-*.txt",
    "checkpoints/*/ended-*.json",
    "progress.json",
    "events.jsonl",
    "provenance.json",
    "inputs.json",
)
"""Every sort of file that an attempt leaves and another one may read."""


def stored_file(path: Path, rng: np.random.Generator) -> Path:
    """Pick a sort of file, then one of that sort."""
    sorts = [files for pattern in PATTERNS if (files := sorted(path.glob(pattern)))]
    sort = sorts[rng.integers(len(sorts))]
    return sort[rng.integers(len(sort))]


def flip(file: Path, rng: np.random.Generator) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    if content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)


def truncate(file: Path, rng: np.random.Generator) -> None:
    """Cut the end off."""
    os.truncate(file, int(rng.integers(file.stat().st_size)) if file.stat().st_size else 0)


def finished_or_partial(harness: Harness, rng: np.random.Generator) -> Struck:
    """Return a copy of a killed run, or at times of one that was complete."""
    struck = partial_run(harness, rng)
    if rng.random() < 0.25:
        harness.resume(struck.path, struck.scenario.config, 1)
    return struck


def truncated(harness: Harness, rng: np.random.Generator) -> Struck:
    """Cut off the end of one file."""
    struck = finished_or_partial(harness, rng)
    truncate(stored_file(struck.path, rng), rng)
    return struck


def flipped(harness: Harness, rng: np.random.Generator) -> Struck:
    """Flip a bit of one file."""
    struck = finished_or_partial(harness, rng)
    flip(stored_file(struck.path, rng), rng)
    return struck


def flipped_in_data(harness: Harness, rng: np.random.Generator) -> Struck:
    """Flip a bit of a segment or generation."""
    struck = finished_or_partial(harness, rng)
    files = sorted((struck.path / "checkpoints").glob("*/*.h5"))
    flip(files[rng.integers(len(files))], rng)
    return struck


def several_damaged(harness: Harness, rng: np.random.Generator) -> Struck:
    """Damage three files in three ways."""
    struck = finished_or_partial(harness, rng)
    for change in (flip, truncate, lambda file, _: file.unlink()):
        change(stored_file(struck.path, rng), rng)
    return Struck(struck.path, struck.scenario, faults=3)


def missing(harness: Harness, rng: np.random.Generator) -> Struck:
    """Remove one file."""
    struck = finished_or_partial(harness, rng)
    stored_file(struck.path, rng).unlink()
    return struck


def damaged_config(harness: Harness, rng: np.random.Generator) -> Struck:
    """Flip a bit of config.yaml: the attempt is refused or its answer right; restored, the run goes on."""
    struck = partial_run(harness, rng)
    file = struck.path / "config.yaml"
    whole = file.read_bytes()
    flip(file, rng)
    code = harness.attempt(struck.path)
    assert code in (1, 2, struck.scenario.truth.code), code
    done = code == struck.scenario.truth.code
    file.write_bytes(whole)
    return Struck(struck.path, struck.scenario, done=done)


def left_over(harness: Harness, rng: np.random.Generator) -> Struck:
    """Put the temporary files of killed writers beside the good ones."""
    struck = partial_run(harness, rng)
    for _ in range(3):
        file = stored_file(struck.path, rng)
        content = file.read_bytes()
        file.with_name(f"{file.name}.tmp-{rng.integers(9999)}-ab").write_bytes(
            content[: rng.integers(len(content) + 1)]
        )
    return struck


def other_schema(harness: Harness, rng: np.random.Generator) -> Struck:
    """Put files of another schema, perfectly sound by their checksums, in the place of ours."""
    struck = finished_or_partial(harness, rng)
    files = [f for p in PATTERNS[:4] for f in struck.path.glob(p)]
    file = files[rng.integers(len(files))]
    if file.suffix == ".h5":
        arrays, attributes = read_hdf5(file)
        write_hdf5(file, arrays, {**attributes, "schema": 99})
    elif file.name.startswith("gen-"):
        write_record(file, {**(read_record(file) or {}), "schema": 99})
    else:
        file.write_text(json.dumps({"complete": True}))
    return struck


def clock_jump(harness: Harness, rng: np.random.Generator) -> Struck:
    """Date everything into the past or the future, and let the killed attempt live in another time."""
    struck = partial_run(harness, rng)
    shift = float(rng.choice([-3e8, -4000.0, 4000.0, 3e8]))
    harness.prepare(struck.scenario.config, struck.path)
    code = harness.attempt(struck.path, clock=shift, fault=f"*:{rng.integers(1, 60)}:kill")
    for file in struck.path.rglob("*"):
        os.utime(file, (time.time() + shift, time.time() + shift))
    return Struck(struck.path, struck.scenario, faults=1 + (code == -9))


def dead_lock(harness: Harness, rng: np.random.Generator) -> Struck:
    """Leave the lock of a dead owner: here, here under a pid that lives again, on a silent host, or unreadable."""
    struck = partial_run(harness, rng)
    lock = struck.path / "lock"
    owner = {"host": socket.gethostname(), "pid": 2**22 - 7, "started": "1", "token": "t", "slurm_job": None}
    content = [
        json.dumps(sealed(owner)),
        json.dumps(sealed({**owner, "pid": os.getpid()})),
        json.dumps(sealed({**owner, "host": "elsewhere"})),
        "",
        "{",
    ]
    number = int(rng.integers(5))
    lock.write_text(content[number])
    if number >= 2:  # nobody can tell whether its owner lives, until it has been silent for a minute
        expect_refusal(harness, struck)
        os.utime(lock, (time.time() - 1000, time.time() - 1000))
    return struck


def expect_refusal(harness: Harness, struck: Struck) -> None:
    """Fail unless the run is taken to be in somebody's hands."""
    try:
        harness.prepare(struck.scenario.config, struck.path)
    except LockedError as error:
        assert "elsewhere" in str(error) or "cannot be read" in str(error)  # noqa: PT017 - both outcomes are checked
    else:
        msg = "a lock that was touched a moment ago was not respected"
        raise AssertionError(msg)


def damaged_lock(harness: Harness, rng: np.random.Generator) -> Struck:
    """Flip a bit in a dead owner's lock: it may hold the run up for a minute of silence, never longer."""
    struck = partial_run(harness, rng)
    lock = struck.path / "lock"
    if not lock.exists():
        return Struck(struck.path, struck.scenario, faults=0)
    flip(lock, rng)
    expect_refusal(harness, struck)
    os.utime(lock, (time.time() - 1000, time.time() - 1000))
    return struck
