"""Look at every file of a run's checkpoints and say what is sound, and what a resume would use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpc.errors import CorruptFileError
from hpc.rundir import RunDir
from hpc.store.atomic import TEMPORARY
from hpc.store.generations import load_generation, load_newest
from hpc.store.journal import deaths
from hpc.store.segments import Segment, scan


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one file or stage.

    Attributes
    ----------
    subject
        Path below the run directory, or the name of a stage.
    status
        ``ok``; ``note`` for what is harmless; ``bad`` for what was lost or must be done again.
    text
        What it holds, or what is wrong with it.
    """

    subject: str
    status: Literal["ok", "note", "bad"]
    text: str


def verify_run(run: RunDir) -> Iterator[Verdict]:
    """Check every segment, generation, commit record and journal of a run, reading all of them in full.

    Yields
    ------
    Verdict
        One per file, then one per stage that says what a resume would use.
    """
    for directory in sorted(p for p in (run.path / "checkpoints").glob("*") if p.is_dir()):
        yield from _leftovers(directory, run)
        yield from _segments(directory, run)
        yield from _generations(directory, run)
        yield _summary(directory)


def _leftovers(directory: Path, run: RunDir) -> Iterator[Verdict]:
    for path in sorted(directory.glob(f"*{TEMPORARY}*")):
        yield Verdict(_name(path, run), "note", "left by a killed writer; never read, removed by the next start")
    for path in sorted(directory.glob("damaged-*")):
        yield Verdict(_name(path, run), "note", "a damaged segment that was set aside; its units were run again")


def _segments(directory: Path, run: RunDir) -> Iterator[Verdict]:
    for path in sorted(directory.glob("seg-*.h5")):
        try:
            segment = Segment(path)
        except CorruptFileError as error:
            yield Verdict(_name(path, run), "bad", f"{error}; its units will be run again")
        else:
            yield Verdict(_name(path, run), "ok", f"{len(segment)} units, {segment.nbytes / 2**20:.1f} MiB")


def _generations(directory: Path, run: RunDir) -> Iterator[Verdict]:
    for record in sorted(directory.glob("gen-*.json")):
        try:
            number, state = load_generation(record)
        except CorruptFileError as error:
            yield Verdict(_name(record, run), "bad", str(error))
        else:
            size = sum(a.nbytes for a in state.values()) / 2**20
            yield Verdict(_name(record, run), "ok", f"state after step {number}, {size:.1f} MiB")
    for data in sorted(directory.glob("gen-*.h5")):
        if not data.with_suffix(".json").exists():
            yield Verdict(_name(data, run), "note", "never committed; not used")


def _summary(directory: Path) -> Verdict:
    stage = directory.name
    found = scan(directory)
    quarantine = _json(directory / "quarantine.json")
    complete = _json(directory / "complete.json")
    if list(directory.glob("gen-*")) or "steps" in complete:
        newest = load_newest(directory)
        state = f"the state after step {newest.number}" if newest.state is not None else "nothing: it starts anew"
        if complete:
            state += "; the stage is complete"
        return Verdict(stage, "bad" if newest.fallbacks else "ok", f"a resume would use {state}")
    text = f"a resume would use {len(found.home)} units of {len(set(found.home.values()))} segments"
    missing = complete.get("units", 0) - len(complete.get("quarantined", [])) - len(found.home) if complete else 0
    notes = [
        (found.doubled, f"{len(found.doubled)} units are in two segments, the first counts"),
        (quarantine, f"{len(quarantine)} units in quarantine"),
        (deaths(directory), f"units begun and never ended: {', '.join(sorted(deaths(directory))[:5])}"),
        (complete, "the stage is complete"),
        (missing > 0, f"{missing} UNITS ARE MISSING from a complete stage: remove its complete.json and resume"),
    ]
    text += "".join(f"; {note}" for present, note in notes if present)
    return Verdict(stage, "bad" if missing > 0 or found.damaged else "ok", text)


def _name(path: Path, run: RunDir) -> str:
    return str(path.relative_to(run.path))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
