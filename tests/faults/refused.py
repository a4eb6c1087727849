"""Faults of the file system at a resume and at the end: what cannot be read now, and results that went missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from damage import finished_or_partial, flip, truncate
from harness import Harness, Struck, output_of
from protocol import any_scenario, partial_run

from hpc.retry import forget_quarantine
from hpc.rundir import RunDir
from hpc.store.verify import verify_run

READ = ("seg-*.h5", "gen-*.h5", "gen-*.json", "complete.json", "begun-*.txt", "provenance.json", "config.yaml")
REFUSALS = ("EIO", "EACCES", "EMFILE", "ESTALE", "ENOMEM")


def unreadable_at_a_resume(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let the file system refuse reads for a moment: the resume waits, and sets nothing aside."""
    struck = partial_run(harness, rng)
    there = [files for files in READ if any(struck.path.rglob(files))]
    files, error = str(rng.choice(there)), str(rng.choice(REFUSALS))
    before = set(struck.path.rglob("damaged-*"))
    harness.prepare(struck.scenario.config, struck.path)
    moment, times = 1 + int(files.startswith("seg") and rng.integers(2)), int(rng.integers(1, 4))
    code = harness.attempt(struck.path, fault=f"read@{files}:{moment}:{error}*{times}")
    said = output_of(struck.path).read_text()
    assert code == struck.scenario.truth.code, f"{error} at reading {files}: exit {code}: {said}"
    assert set(struck.path.rglob("damaged-*")) == before, f"{error} at reading {files}: sound files were set aside"
    return Struck(struck.path, struck.scenario, faults=int(harness.passed(struck.path) >= moment), done=True)


def results_harmed_after_the_end(harness: Harness, rng: np.random.Generator) -> Struck:
    """Remove, empty, cut or change results of a finished run: `verify` tells, and the resume makes them again."""
    scenario = any_scenario(harness, rng)
    path = harness.prepare(scenario.config)
    assert harness.attempt(path) == scenario.truth.code
    files = sorted((path / "results").iterdir())
    for file in [files[rng.integers(len(files))]] if rng.random() < 0.7 else files:
        change = (Path.unlink, lambda file: os.truncate(file, 0), lambda file: truncate(file, rng))[rng.integers(3)]
        flip(file, rng) if rng.random() < 0.3 else change(file)
    bad = [verdict for verdict in verify_run(RunDir(path)) if verdict.status == "bad"]
    assert bad, "verify did not see that results were harmed"
    assert all(verdict.subject.startswith("results/") for verdict in bad), bad
    return Struck(path, scenario)


def provenance_lost_and_seed_changed(harness: Harness, rng: np.random.Generator) -> Struck:
    """Lose the provenance and change the seed: the attempt is refused, until the configuration is restored."""
    struck = finished_or_partial(harness, rng)
    stored = [f for p in ("seg-*.h5", "gen-*.json", "complete.json") for f in struck.path.glob(f"checkpoints/*/{p}")]
    harness.prepare(struck.scenario.config, struck.path)
    file = struck.path / "config.yaml"
    whole = file.read_text()
    assert "seed: 5" in whole
    (struck.path / "provenance.json").unlink(missing_ok=True)
    file.write_text(whole.replace("seed: 5", "seed: 6"))
    if stored:  # or nothing of the first seed is there
        code = harness.attempt(struck.path)
        assert code == 2, f"exit {code}: another seed was not refused"
    file.write_text(whole)
    return Struck(struck.path, struck.scenario)


def retried_with_damaged_progress(harness: Harness, rng: np.random.Generator) -> Struck:
    """Try quarantined units again although progress.json is damaged or lies: nothing stale passes for complete."""
    scratch = harness.new_path()
    scratch.mkdir()
    healed = harness.scenario(
        f"healed {scratch.name}", like=harness.scenario(), fail_once=["u00003"], scratch=str(scratch)
    )
    healed.config["engine"]["retries"] = 0
    path = harness.prepare(healed.config)
    assert harness.attempt(path) == 3
    file, victim = path / "progress.json", path.parent / f"{path.name}.victim"
    progress = json.loads(file.read_bytes())
    stage = progress["stages"][1]
    progress["stages"][1:] = [{**stage, "name": "wall"}, {**stage, "name": f"../../../{victim.name}"}]
    victim.write_text("precious")
    change = (lambda: file.write_text(json.dumps(progress)), lambda: flip(file, rng), lambda: truncate(file, rng))
    change[rng.integers(3)]()
    assert forget_quarantine(RunDir(path)) == 1
    assert not (path / "checkpoints" / "walk").exists()
    assert victim.read_text() == "precious"
    return Struck(path, healed)
