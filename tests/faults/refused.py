"""Faults of the file system at a resume and at the end: what cannot be read now, and results that went missing."""

from __future__ import annotations

import numpy as np
from harness import Harness, Struck, output_of
from protocol import partial_run

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
