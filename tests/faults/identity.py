"""Faults of what a run is computed from: another input file, other code under the same version."""

from __future__ import annotations

import numpy as np
from harness import Harness, Scenario, Struck, output_of
from protocol import partial_run

from hpc.identity import has_results, read_identity
from hpc.rundir import RunDir
from hpc.store.records import read_record, write_record


def with_input(harness: Harness) -> Scenario:
    """Return a scenario whose results are computed from a file."""
    file = harness.scratch / "factor.txt"
    if not file.exists():
        file.write_text("1.5\n")
    return harness.scenario("with input", factor=str(file))


def begun(harness: Harness, rng: np.random.Generator) -> Struck | None:
    """Return a killed run that has stored results of its input, None if this one was killed too early."""
    struck = partial_run(harness, rng, with_input(harness))
    run = RunDir(struck.path)
    return struck if has_results(run) and read_identity(run) is not None else None


def expect_refusal(harness: Harness, struck: Struck, words: str) -> None:
    """Fail unless an attempt is refused, with these words, and nothing was computed."""
    before = {p: p.read_bytes() for p in struck.path.glob("checkpoints/*/*.h5")}
    code = harness.attempt(struck.path)
    said = output_of(struck.path).read_text()
    assert code == 2, f"exit {code} instead of a refusal: {said}"
    assert words in said, said
    assert before == {p: p.read_bytes() for p in struck.path.glob("checkpoints/*/*.h5")}


def changed_input(harness: Harness, rng: np.random.Generator) -> Struck:
    """Change an input of a killed run: the attempt is refused until it is put back."""
    struck = begun(harness, rng)
    if struck is None:
        return partial_without_fault(harness, rng)
    file = harness.scratch / "factor.txt"
    whole = file.read_bytes()
    sort = ("content", "size", "missing")[rng.integers(3)]
    if sort == "missing":
        file.unlink()
    else:
        file.write_text("2.5\n" if sort == "content" else "1.55\n")
    try:
        expect_refusal(harness, struck, str(file))
    finally:
        file.write_bytes(whole)
    return struck


def changed_code(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let a killed run have been started by other code of the same version: refused until that is back."""
    struck = begun(harness, rng)
    if struck is None:
        return partial_without_fault(harness, rng)
    record = struck.path / "inputs.json"
    whole, content = record.read_bytes(), read_record(record) or {}
    files = dict(content["code"]["files"])
    name = sorted(files)[rng.integers(len(files))]
    files[name] = "0" * 32
    write_record(record, {**content, "code": {**content["code"], "files": files}})
    expect_refusal(harness, struck, f"{name}: was edited")
    record.write_bytes(whole)
    return struck


def partial_without_fault(harness: Harness, rng: np.random.Generator) -> Struck:
    """Return a killed run on which nothing else struck."""
    struck = partial_run(harness, rng, with_input(harness))
    return Struck(struck.path, struck.scenario, faults=0)
