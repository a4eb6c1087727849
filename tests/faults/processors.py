"""Faults of the CPU: a run that is stopped on one kind and goes on on another, or is told other kernels.

Each attempt is a process of its own, because the numeric libraries choose their kernels when they are loaded. What is
right is known from undisturbed runs on each kind; which unit was computed where, from what lay there in between.
"""

from __future__ import annotations

import hashlib
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import (
    PATIENCE,
    Arrays,
    Harness,
    Scenario,
    Struck,
    Truth,
    output_of,
    result_files,
    stored_units,
    tessera,
    toy_config,
)
from whole_runs import start, start_ranks, wait_until_free

from hpc import cpu
from hpc.store.segments import Segment

BEST = cpu.level()
LESS = "x86-64-v3" if BEST == "x86-64-v4" else "x86-64-v2"
BLAS = {"x86-64-v3": "Haswell", "x86-64-v2": "Nehalem"}
PLAIN = {cpu.LOWER: BEST}
LESSER = {cpu.LOWER: LESS}
TOLD = {cpu.LOWER: BEST, "OPENBLAS_CORETYPE": BLAS[LESS]}
"""What a rank on the best CPU finds in its environment, one on a lesser one, and one whose user has chosen."""

WORK = {"units": 12, "steps": 0, "every": 0.0, "numeric": True}


@dataclass(frozen=True)
class Switch:
    """A change between two attempts.

    Attributes
    ----------
    kernels
        ``engine.kernels``.
    first, then
        Environment of the ranks before and after.
    bits
        Environments of the undisturbed runs whose bits the units of the two attempts must have.
    """

    kernels: str
    first: dict[str, str]
    then: dict[str, str]
    bits: tuple[dict[str, str], dict[str, str]]


SWITCHES = (
    Switch("auto", LESSER, PLAIN, (LESSER, LESSER)),
    Switch("auto", PLAIN, LESSER, (PLAIN, LESSER)),
    Switch("auto", TOLD, PLAIN, (TOLD, TOLD)),
    Switch("auto", PLAIN, TOLD, (PLAIN, TOLD)),
    Switch("portable", PLAIN, LESSER, (LESSER, LESSER)),
    Switch("portable", LESSER, PLAIN, (LESSER, LESSER)),
)


def can_switch() -> bool:
    """Whether this CPU can stand for two kinds: with AVX2 and without, or also with AVX-512."""
    return BEST in ("x86-64-v3", "x86-64-v4")


def fresh(harness: Harness, path: Path, ranks: int, environment: dict[str, str]) -> int:
    """Run ranks to their end in processes of their own; return the exit code."""
    return harness.end_of(_started(path, ranks, environment))


def _started(path: Path, ranks: int, environment: dict[str, str]):
    if ranks > 1:
        return start_ranks(path, ranks, **environment)
    return start(path, [sys.executable, "-m", "hpc.rank", str(path)], **environment)


def undisturbed(harness: Harness, environment: dict[str, str]) -> Truth:
    """Return what a whole run in an environment leaves."""
    name = f"numeric with {environment}"
    if name not in harness.scenarios:
        config = toy_config(**WORK)
        path = harness.prepare(config)
        code = fresh(harness, path, 1, environment)
        assert code == 0, output_of(path).read_text()
        harness.scenarios[name] = Scenario(name, config, Truth(code, result_files(path), stored_units(path)[0]))
    return harness.scenarios[name].truth


def switched(harness: Harness, rng: np.random.Generator) -> Struck:
    """Stop a run and go on with other CPUs or other variables: the bits stay, or everybody is told from where on not."""
    usable = [s for s in SWITCHES if s.kernels == "auto" or BEST == "x86-64-v4"]  # below it, portable is v2 and says so
    switch = usable[rng.integers(len(usable))]
    config = toy_config(**WORK, seconds=0.04)
    config["engine"]["kernels"] = switch.kernels
    path = harness.prepare(config)
    first, then = (undisturbed(harness, environment) for environment in switch.bits)
    stays = switch.bits[0] == switch.bits[1]
    assert stays or first.units != then.units, "this CPU cannot stand for two kinds"
    before = _stopped(harness, rng, path, switch)
    assert before.items() <= first.units.items(), "units of the first attempt have other bits than on its CPU"
    if not stays and rng.random() < 0.4:
        _expect_refusal(harness, path, config, switch)
    harness.prepare(config, path)
    ranks = int(rng.choice([1, 1, 2]))
    code = fresh(harness, path, ranks, switch.then)
    assert code == 0, f"exit {code}: {output_of(path).read_text()}"
    units = {key: arrays if key in before else then.units[key] for key, arrays in first.units.items()}
    _expect_words(path, sorted(units.keys() - before.keys()), stays=stays)
    truth = Truth(0, {"squares.txt": _result(path)}, units)
    return Struck(path, Scenario("switched", config, truth), faults=int(len(before) < len(units)), done=True)


def _stopped(harness: Harness, rng: np.random.Generator, path: Path, switch: Switch) -> Arrays:
    """Stop the first attempt in the midst of its units, by a signal or a kill; return what it stored."""
    process = _started(path, int(rng.choice([1, 1, 2])), switch.first)
    end = time.monotonic() + PATIENCE
    while not any(path.glob("checkpoints/*/seg-*")) and process.poll() is None:
        assert time.monotonic() < end, output_of(path).read_text()
        time.sleep(0.01)
    time.sleep(float(rng.uniform(0, 0.2)))
    process.send_signal((signal.SIGTERM, signal.SIGKILL)[rng.integers(2)])
    harness.end_of(process)
    wait_until_free(path)
    return stored_units(path)[0]


def _expect_refusal(harness: Harness, path: Path, config: dict, switch: Switch) -> None:
    """Fail unless ``engine.other_kernels=refuse`` stops the attempt before it computes anything."""
    before = {p: p.read_bytes() for p in path.glob("checkpoints/*/*.h5")}
    harness.prepare({**config, "engine": {**config["engine"], "other_kernels": "refuse"}}, path)
    code = fresh(harness, path, 1, switch.then)
    said = output_of(path).read_text()
    if not any(path.glob("checkpoints/*/complete.json")):
        assert code == 2, f"exit {code} although other kernels are refused: {said}"
        assert "engine.other_kernels=go_on" in said, said
    assert before == {p: p.read_bytes() for p in path.glob("checkpoints/*/*.h5")}, f"computed all the same: {said}"


def _expect_words(path: Path, computed_then: list[str], *, stays: bool) -> None:
    """Fail unless status, report and verify say what is true of the bits of those units."""
    places = {"status": tessera("status", path), "verify": tessera("verify", path)}
    places["report"] = (path / "report" / "index.html").read_text()
    places = {name: " ".join(text.split()) for name, text in places.items()}
    if not computed_then:
        return
    attempt = max(int(file.name.split("-")[1]) for file in path.glob("checkpoints/*/seg-*.h5"))
    said = {name for name, text in places.items() if f"bits may differ from attempt {attempt} on" in text}
    if stays:
        # A CPU without FMA takes other ways in libm, which is said although these units do not meet them.
        assert not said or LESS == "x86-64-v2", f"the bits are the same, but {said} say that they may differ"
        return
    assert said == set(places), f"the bits differ, but only {said or 'nobody'} says so: {places['verify']}"
    found = re.search(r"bits of (\d+) units? may differ, from other kernels: ([^;│]*)", places["verify"])
    assert found, places["verify"]
    named = re.findall(r"u\d{5}", found[2])
    assert int(found[1]) == len(computed_then), f"{found[0]}, but the second attempt computed {computed_then}"
    assert named, found[0]
    assert set(named) <= set(computed_then), f"{found[0]}, but the second attempt computed {computed_then}"


def _result(path: Path) -> bytes:
    """Return what the results file must hold for the arrays that are stored, by the harness's own sums."""
    segments = [Segment(file) for file in path.glob("checkpoints/*/seg-*.h5")]
    units = {key: segment[key] for segment in segments for key in segment.keys}
    digest = hashlib.sha256()
    for key in sorted(units):
        digest.update(key.encode())
        for name in sorted(units[key]):
            digest.update(units[key][name].tobytes())
    total = sum(int(key[1:]) ** 2 for key in units)
    return f"{len(units)} {total} {digest.hexdigest()}\n".encode()
