"""Look at every file that a resume reads and say what is sound, what is not, and what a resume would use.

Nothing is ever written, and a run may be going on: what its ranks remove meanwhile is passed over. What the file
system does not give out now is called so; nothing is said of its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hpc.errors import CorruptFileError, RunDirError, UnreadableError
from hpc.identity import has_results, read_identity
from hpc.inputs import Inputs, differences, look
from hpc.kernel_record import NAME as KERNELS
from hpc.kernel_record import read_kernels
from hpc.provenance import ProvenanceRecord
from hpc.rundir import RunDir, config_hash
from hpc.store.lock import is_held, read_owner
from hpc.store.newfile import temporaries
from hpc.store.reading import content_of, is_refusal, names_in
from hpc.store.records import read_record
from hpc.store.sealing import harm, sealed_files
from hpc.store.verify_stage import StageFiles, Verdict, count_of, kernels_apart, name_of, not_read
from hpc.watch.events import scan_events

_NAMED: Final = 10
"""Changed inputs that are listed."""


def verify_run(run: RunDir) -> Iterator[Verdict]:
    """Check every file of a run that another attempt reads, all of them in full.

    Yields
    ------
    Verdict
        One per file, and after each stage's files one that says what a resume would use of them.
    """
    working = is_held(run.lock_file)
    yield _config(run)
    yield _provenance(run)
    yield from _kernels(run)
    yield from _identity(run)
    yield from _watched(run)
    yield from _lock(run, working=working)
    for path in temporaries(run.path):
        yield Verdict(
            name_of(path, run),
            "note",
            "being written" if working else "left by a killed writer; never read, removed next",
        )
    try:
        folders = [run.stage(name) for name in names_in(run.path / "checkpoints")]
    except OSError as error:
        yield not_read("checkpoints", error)
        return
    expected = _expected_hash(run)
    for directory in folders:
        if directory.is_dir():
            yield from StageFiles(run, directory, working, expected).verdicts()
    yield from _results(run, folders, working=working)


def _expected_hash(run: RunDir) -> str:
    """Return the hash of the configuration, "" if there is none that can be read."""
    try:
        config = run.load_config()
    except (RunDirError, UnreadableError):
        return ""
    return config_hash({"job": config["job"], "seed": config.get("seed", 0)})


def _results(run: RunDir, folders: Sequence[Path], *, working: bool) -> Iterator[Verdict]:
    """Compare the results with the seals of the stages that wrote them."""
    for file in sealed_files(folders):
        try:
            wrong = harm(run.results, file)
        except OSError as error:
            yield not_read(f"results/{file.name}", error)
            continue
        text = f"{wrong}; a resume makes it again" if wrong else f"as stage {file.stage} wrote it"
        yield Verdict(f"results/{file.name}", "ok" if not wrong else "note" if working else "bad", text)


def _config(run: RunDir) -> Verdict:
    """Compare the configuration with the one the attempts worked with."""
    try:
        config = run.load_config()
        record = read_record(run.provenance_file, ProvenanceRecord) or {}
    except (OSError, UnreadableError) as error:
        return not_read("config.yaml", error)
    except RunDirError as error:
        return Verdict("config.yaml", "bad", str(error))
    except CorruptFileError:
        return Verdict("config.yaml", "note", "readable; what it was at the start is not known")
    attempts = record.get("attempts", [])
    if attempts and attempts[-1]["config_hash"] != config_hash({"job": config["job"], "seed": config.get("seed", 0)}):
        return Verdict(
            "config.yaml",
            "bad",
            "not what the run was started with (job or seed differ): restore it, resume refuses it",
        )
    return Verdict("config.yaml", "ok", f"as in {count_of(len(attempts), 'attempt')}")


def _provenance(run: RunDir) -> Verdict:
    name = run.provenance_file.name
    try:
        record = read_record(run.provenance_file, ProvenanceRecord)
    except OSError as error:
        return not_read(name, error)
    except CorruptFileError as error:
        return Verdict(name, "bad", f"{error}; a resume sets it aside and begins a new one")
    if record is None:
        return Verdict(name, "note", "missing; no attempt has begun, or it was removed")
    return Verdict(name, "ok", f"{count_of(len(record['attempts']), 'attempt')}, tessera {record['version']}")


def _kernels(run: RunDir) -> Iterator[Verdict]:
    """Say which attempts ran other kernels than the first."""
    try:
        record = read_kernels(run.path)
    except OSError as error:
        yield not_read(KERNELS, error)
        return
    except CorruptFileError as error:
        yield Verdict(KERNELS, "bad", f"{error}; with which kernels the attempts ran is not known")
        return
    if record is None:
        return
    others = kernels_apart(run)
    pinned = "" if record["pinned"] else ", not pinned"
    if not others:
        yield Verdict(KERNELS, "ok", f"{record['level']}{pinned}, in {count_of(len(record['attempts']), 'attempt')}")
    for attempt, apart in sorted(others.items()):
        yield Verdict(KERNELS, "note", f"bits may differ in what attempt {attempt} computed, {apart.told()}")


def _identity(run: RunDir) -> Iterator[Verdict]:
    """Compare the inputs with what the run was started with, and tell what it went on with."""
    name = run.inputs_file.name
    try:
        recorded = read_identity(run)
        if recorded is None:
            if has_results(run):
                yield Verdict(name, "note", "missing: which inputs and code the run was started with is not known")
            return
        files = recorded.inputs.files
        now = Inputs({file.path: file for file in look(list(files), files, frozenset())}, recorded.inputs.folders)
    except CorruptFileError as error:
        yield Verdict(name, "bad", f"{error}; a resume sets it aside, and compares with nothing")
    except OSError as error:
        yield not_read(name, error)
    else:
        for other in recorded.others:
            yield Verdict(name, "note", other)
        found = differences(recorded.inputs, now)
        for line in found.changed[:_NAMED]:
            yield Verdict(name, "note", f"a resume is refused: {line}")
        for line in found.doubted[:_NAMED]:
            yield Verdict(name, "note", f"not known to be as it was: {line}")
        if not found.changed and not found.doubted:
            yield Verdict(
                name, "ok", f"{count_of(recorded.inputs.count, 'input')} as recorded, code {recorded.code.told}"
            )


def _watched(run: RunDir) -> Iterator[Verdict]:
    """Look at the files that people watch; a resume does without them, but for ``--retry-failed``."""
    try:
        yield from _watched_files(run)
    except OSError as error:
        yield not_read("progress.json, events.jsonl", error)


def _require_readable(file: Path) -> None:
    """Raise what the file system has against reading a file."""
    try:
        content_of(file)
    except ValueError:
        return
    except OSError as error:
        if is_refusal(error):
            raise


def _watched_files(run: RunDir) -> Iterator[Verdict]:
    if run.progress_file.exists():
        progress = run.read_progress()
        if progress is None:
            _require_readable(run.progress_file)
            yield Verdict("progress.json", "bad", "not readable; the next attempt writes it anew")
        else:
            yield Verdict("progress.json", "ok", str(progress.get("state")))
    if run.events_file.exists():
        yield _events(run)


def _events(run: RunDir) -> Verdict:
    try:
        lines = [found is not None for found in scan_events(run.events_file)]
    except OSError as error:
        return Verdict("events.jsonl", "bad", f"cannot be read ({error.strerror})")
    cut = lines.count(False)
    text = f"{len(lines) - cut} records" + (
        f"; {count_of(cut, 'line')} cut short or damaged, passed over" if cut else ""
    )
    return Verdict("events.jsonl", "note" if cut else "ok", text)


def _lock(run: RunDir, *, working: bool) -> Iterator[Verdict]:
    if run.lock_file.exists():
        owner = read_owner(run.lock_file)
        who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "nobody that can be read"
        yield Verdict(
            "lock", "note", f"{who} works here" if working else f"left by {who}; the next attempt takes it over"
        )
