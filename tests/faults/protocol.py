"""Faults inside a rank: killed or refused by the file system at the named points of the write protocol."""

from __future__ import annotations

import json
import shutil

import numpy as np
from harness import Harness, Scenario, Struck, output_of

from hpc.retry import forget_quarantine
from hpc.rundir import RunDir

TARGETS = ("seg-*.h5", "gen-*.h5", "gen-*.json", "complete.json", "quarantine.json", "provenance.json", "inputs.json")
ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
NEVER = 10**9


def points(harness: Harness, scenario: Scenario, files: str = "*") -> int:
    """Return how many points of the write protocol an undisturbed run passes, for files of these names."""
    key = f"points of {scenario.name} {files}"
    if key not in harness.notes:
        path = harness.prepare(scenario.config)
        harness.attempt(path, fault=f"*@{files}:{NEVER}:kill")
        harness.notes[key] = harness.passed(path)
    return harness.notes[key]


def any_scenario(harness: Harness, rng: np.random.Generator) -> Scenario:
    """Return the plain scenario, or at times the one with a poisoned unit."""
    return harness.scenario("poisoned", fail=["u00003"]) if rng.random() < 0.2 else harness.scenario()


def partial_run(harness: Harness, rng: np.random.Generator, scenario: Scenario | None = None) -> Struck:
    """Return a copy of a run that was killed somewhere; a few are made and copied again and again."""
    scenario = scenario or any_scenario(harness, rng)
    key = f"{scenario.name} {rng.integers(6)}"
    if key not in harness.stock:
        harness.stock[key] = killed_at_a_point(harness, rng, scenario, early=0.3).path
    path = harness.new_path()
    shutil.copytree(harness.stock[key], path)
    return Struck(path, scenario)


def killed_at_a_point(
    harness: Harness, rng: np.random.Generator, scenario: Scenario | None = None, early: float = 0.0
) -> Struck:
    """Kill between any two steps of the write protocol, whichever file is being written."""
    scenario = scenario or any_scenario(harness, rng)
    total = points(harness, scenario)
    path = harness.prepare(scenario.config)
    moment = int(rng.integers(1 + int(early * total), 1 + int(0.9 * total)))
    code = harness.attempt(path, fault=f"*:{moment}:kill")
    return Struck(path, scenario, faults=int(code == -9))


def killed_writing(files: str):
    """Return the kind that kills at a random step of writing one sort of file."""

    def kind(harness: Harness, rng: np.random.Generator) -> Struck:
        poisoned = files == "quarantine.json"
        scenario = harness.scenario("poisoned", fail=["u00003"]) if poisoned else harness.scenario()
        path = harness.prepare(scenario.config)
        moment = int(rng.integers(1, 1 + points(harness, scenario, files)))
        code = harness.attempt(path, fault=f"*@{files}:{moment}:kill")
        return Struck(path, scenario, faults=int(code == -9))

    return kind


def killed_again_and_again(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill an attempt, and the resume, and the resume of that."""
    struck = killed_at_a_point(harness, rng)
    faults = struck.faults
    for _ in range(2):
        harness.prepare(struck.scenario.config, struck.path)
        moment = int(rng.integers(1, points(harness, struck.scenario)))
        faults += harness.attempt(struck.path, fault=f"*:{moment}:kill") == -9
    return Struck(struck.path, struck.scenario, faults)


def killed_at_an_instant(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill a rank after a random time, wherever it is."""
    scenario = any_scenario(harness, rng)
    path = harness.prepare(scenario.config)
    code = harness.attempt(path, kill_after=float(rng.uniform(0.02, 0.25)))
    return Struck(path, scenario, faults=int(code == -9))


def refused_by_the_file_system(harness: Harness, rng: np.random.Generator) -> Struck:
    """Let the file system refuse a step of a write, once or several times in a row."""
    files = str(rng.choice(TARGETS))
    scenario = harness.scenario("poisoned", fail=["u00003"]) if files == "quarantine.json" else harness.scenario()
    moment = int(rng.integers(1, 1 + points(harness, scenario, files)))
    error, times = rng.choice(ERRORS), int(rng.integers(1, 5))
    path = harness.prepare(scenario.config)
    code = harness.attempt(path, fault=f"*@{files}:{moment}:{error}*{times}")
    went_on = code == scenario.truth.code
    if files.startswith(("seg", "gen")):
        assert went_on, f"{error} while writing {files} failed the run: {output_of(path).read_text()}"
    return Struck(path, scenario, faults=int(harness.passed(path) >= moment), done=went_on)


def deadly_unit(harness: Harness, rng: np.random.Generator) -> Struck:
    """A unit kills its process until it is put in quarantine; the run then ends without it."""
    without = harness.scenario("without u00004", fail=["u00004"])
    deadly = harness.scenario("deadly", like=without, kill=["u00004"])
    limit = deadly.config["engine"]["max_unit_deaths"]
    path = harness.prepare(deadly.config)
    for deaths in range(limit):
        code = harness.attempt(path)
        assert code == -9, f"attempt {deaths + 1} ended with {code}"
        if rng.random() < 0.5:
            tear_last_line(path)
        harness.prepare(deadly.config, path)
    return Struck(path, deadly, faults=limit, ranks=1)


def tear_last_line(path) -> None:
    """Leave half a line at the end of the newest journal, as a node loss would."""
    newest = max((path / "checkpoints").glob("*/begun-*.txt"))
    with newest.open("a") as file:
        file.write("+u000")


def retried_and_killed(harness: Harness, rng: np.random.Generator) -> Struck:
    """Kill a run that tries its quarantined units again; in the end nothing is missing."""
    scratch = harness.new_path()
    scratch.mkdir()
    healed = harness.scenario(
        f"healed {scratch.name}", like=harness.scenario(), fail_once=["u00003"], scratch=str(scratch)
    )
    healed.config["engine"]["retries"] = 0
    path = harness.prepare(healed.config)
    code = harness.attempt(path)
    assert code == 3, f"exit {code} instead of 3 with a quarantined unit"
    assert list(json.loads((path / "checkpoints/squares/quarantine.json").read_bytes())) == ["u00003"]
    assert forget_quarantine(RunDir(path)) == 1
    harness.prepare(healed.config, path)
    moment = int(rng.integers(1, 60))
    return Struck(path, healed, faults=int(harness.attempt(path, fault=f"*:{moment}:kill") == -9))
