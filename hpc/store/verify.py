"""Look at every file that a resume reads and say what is sound, what is not, and what a resume would use.

Nothing is ever written, and a run may be going on: what its ranks remove meanwhile is passed over. What the file
system does not give out now is called so; nothing is said of its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hpc.errors import CorruptFileError, RunDirError, UnreadableError
from hpc.identity import has_results, read_identity
from hpc.inputs import Inputs, differences, look
from hpc.kernel_record import NAME as KERNELS
from hpc.kernel_record import other_kernels, read_kernels
from hpc.provenance import ProvenanceRecord
from hpc.rundir import RunDir, config_hash
from hpc.store.generations import load_generation, load_newest
from hpc.store.journal import deaths, entries, journal_names
from hpc.store.lock import is_held, read_owner
from hpc.store.newfile import temporaries
from hpc.store.reading import content_of, is_refusal, names_in
from hpc.store.records import read_keyed, read_record
from hpc.store.sealing import COMPLETE, harm, read_complete, sealed_files
from hpc.store.segments import list_segment, read_whole
from hpc.watch.events import scan_events

_NAMED: Final = 10
"""Changed inputs that are listed."""

Status = Literal["ok", "note", "bad", "unread"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one file or stage.

    Attributes
    ----------
    subject
        Path below the run directory, or the name of a stage.
    status
        ``ok``; ``note`` for what is harmless; ``bad`` for what was lost or must be done again; ``unread`` for what
        cannot be read now.
    text
        What it holds, or what is wrong with it.
    """

    subject: str
    status: Status
    text: str


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
            _name(path, run),
            "note",
            "being written" if working else "left by a killed writer; never read, removed next",
        )
    try:
        folders = [run.stage(name) for name in names_in(run.path / "checkpoints")]
    except OSError as error:
        yield _unread("checkpoints", error)
        return
    expected = _expected_hash(run)
    for directory in folders:
        if directory.is_dir():
            yield from _Stage(run, directory, working, expected).verdicts()
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
            yield _unread(f"results/{file.name}", error)
            continue
        text = f"{wrong}; a resume makes it again" if wrong else f"as stage {file.stage} wrote it"
        yield Verdict(f"results/{file.name}", "ok" if not wrong else "note" if working else "bad", text)


def _unread(subject: str, error: OSError | UnreadableError) -> Verdict:
    return Verdict(subject, "unread", f"cannot be read now ({error}); whether it is sound is not known")


def _config(run: RunDir) -> Verdict:
    """Compare the configuration with the one the attempts worked with."""
    try:
        config = run.load_config()
        record = read_record(run.provenance_file, ProvenanceRecord) or {}
    except (OSError, UnreadableError) as error:
        return _unread("config.yaml", error)
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
    return Verdict("config.yaml", "ok", f"as in {_count(len(attempts), 'attempt')}")


def _provenance(run: RunDir) -> Verdict:
    name = run.provenance_file.name
    try:
        record = read_record(run.provenance_file, ProvenanceRecord)
    except OSError as error:
        return _unread(name, error)
    except CorruptFileError as error:
        return Verdict(name, "bad", f"{error}; a resume sets it aside and begins a new one")
    if record is None:
        return Verdict(name, "note", "missing; no attempt has begun, or it was removed")
    return Verdict(name, "ok", f"{_count(len(record['attempts']), 'attempt')}, tessera {record['version']}")


def _kernels(run: RunDir) -> Iterator[Verdict]:
    """Say which attempts ran other kernels than the first."""
    try:
        record = read_kernels(run.path)
    except OSError as error:
        yield _unread(KERNELS, error)
        return
    except CorruptFileError as error:
        yield Verdict(KERNELS, "bad", f"{error}; with which kernels the attempts ran is not known")
        return
    if record is None:
        return
    others = _others(run)
    pinned = "" if record["pinned"] else ", not pinned"
    if not others:
        yield Verdict(KERNELS, "ok", f"{record['level']}{pinned}, in {_count(len(record['attempts']), 'attempt')}")
    for attempt, texts in sorted(others.items()):
        yield Verdict(KERNELS, "note", f"bits may differ in what attempt {attempt} computed: {'; '.join(texts)}")


def _others(run: RunDir) -> dict[int, list[str]]:
    try:
        return other_kernels(run.path)
    except (OSError, CorruptFileError):
        return {}


def _computed_by(home: Mapping[str, str], attempts: Iterable[int]) -> list[str]:
    """Return the units that one of some attempts computed: segments are named after theirs."""
    prefixes = tuple(f"seg-{attempt:04d}-" for attempt in attempts)
    return sorted(key for key, name in home.items() if name.startswith(prefixes))


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
        yield _unread(name, error)
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
                name, "ok", f"{_count(recorded.inputs.count, 'input')} as recorded, code {recorded.code.told}"
            )


def _watched(run: RunDir) -> Iterator[Verdict]:
    """Look at the files that people watch; a resume does without them, but for ``--retry-failed``."""
    try:
        yield from _watched_files(run)
    except OSError as error:
        yield _unread("progress.json, events.jsonl", error)


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
    text = f"{len(lines) - cut} records" + (f"; {_count(cut, 'line')} cut short or damaged, passed over" if cut else "")
    return Verdict("events.jsonl", "note" if cut else "ok", text)


def _lock(run: RunDir, *, working: bool) -> Iterator[Verdict]:
    if run.lock_file.exists():
        owner = read_owner(run.lock_file)
        who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "nobody that can be read"
        yield Verdict(
            "lock", "note", f"{who} works here" if working else f"left by {who}; the next attempt takes it over"
        )


@dataclass
class _Stage:
    """One stage's folder."""

    run: RunDir
    directory: Path
    working: bool
    config_hash: str
    home: dict[str, str] = field(default_factory=dict)
    quarantine: set[str] = field(default_factory=set)
    damaged: list[Path] = field(default_factory=list)
    complete: dict[str, Any] | None = None

    def verdicts(self) -> Iterator[Verdict]:
        """Check every file, then sum up."""
        unread = 0
        for verdict in self._files():
            unread += verdict.status == "unread"
            yield verdict
        name = self.directory.name
        if unread:
            text = f"{_count(unread, 'file')} cannot be read now: what a resume would use is not known"
            yield Verdict(name, "unread", text)
            return
        try:
            yield self._loop() if self._is_loop else self._map()
        except OSError as error:
            yield _unread(name, error)

    def _files(self) -> Iterator[Verdict]:
        # Whether the stage is complete comes first: a run at work may complete it while its files are being read.
        parts = (self._complete, self._set_aside, self._segments, self._generations, self._quarantine, self._journals)
        for part in parts:
            try:
                yield from part()
            except OSError as error:
                if not is_refusal(error):
                    raise
                yield _unread(_name(self.directory, self.run), error)

    def _set_aside(self) -> Iterator[Verdict]:
        for path in self._named("damaged-*"):
            yield self._of(path, "note", "was damaged and set aside; what it held was computed again")

    def _segments(self) -> Iterator[Verdict]:
        for path in self._named("seg-*.h5"):
            try:
                verdict = self._segment(path)
            except OSError as error:
                verdict = _unread(_name(path, self.run), error)
            self.damaged += [path] * (verdict.status == "bad")
            yield verdict

    def _complete(self) -> Iterator[Verdict]:
        file = self.directory / COMPLETE
        try:
            self.complete = read_complete(self.directory)
        except CorruptFileError as error:
            yield self._of(file, "bad", f"{error}; a resume looks for itself what is done")
        else:
            if self.complete is not None:
                yield self._of(file, "ok", "the stage is complete")

    @property
    def _is_loop(self) -> bool:
        return bool(names_in(self.directory, "gen-*")) or "steps" in (self.complete or {})

    def _named(self, pattern: str) -> list[Path]:
        return [self.directory / name for name in names_in(self.directory, pattern)]

    def _segment(self, path: Path) -> Verdict:
        try:
            keys, nbytes = read_whole(path)
        except CorruptFileError as error:
            return self._of(path, "bad", f"{error}; its units will be run again")
        origin = list_segment(path).config_hash
        if origin and self.config_hash and origin != self.config_hash:
            return self._of(path, "bad", "was computed with another configuration; a resume refuses to mix the two")
        doubled = [key for key in keys if self.home.setdefault(key, path.name) != path.name]
        text = f"{_count(len(keys), 'unit')}, {nbytes / 2**20:.2f} MiB"
        if doubled:
            return self._of(path, "note", f"{text}; {len(doubled)} of them are in an earlier segment too, which counts")
        return self._of(path, "ok", text)

    def _generations(self) -> Iterator[Verdict]:
        for record in self._named("gen-*.json"):
            try:
                number, state = load_generation(record)
            except OSError as error:
                yield _unread(_name(record, self.run), error)
            except CorruptFileError as error:
                if record.exists():  # or the working run has retired it meanwhile
                    yield self._of(record, "bad", f"{error}; a resume goes back to the generation before")
            else:
                size = sum(a.nbytes for a in state.values()) / 2**20
                yield self._of(record, "ok", f"state after step {number}, {size:.2f} MiB")
        for data in self._named("gen-*.h5"):
            if not data.with_suffix(".json").exists() and data.exists():
                yield self._of(data, "note", "not committed; not used")

    def _quarantine(self) -> Iterator[Verdict]:
        file = self.directory / "quarantine.json"
        records, problem = read_keyed(file)
        self.quarantine.update(records)
        if problem:
            yield self._of(file, "bad", f"{problem}; their units are tried again")
        elif records:
            yield self._of(file, "note", f"{_count(len(records), 'unit')} in quarantine: {_some(set(records))}")

    def _journals(self) -> Iterator[Verdict]:
        for path in self._named("begun-*.txt"):
            try:
                text = content_of(path).decode(errors="replace")
            except FileNotFoundError:  # the working run has removed it meanwhile
                continue
            except OSError as error:
                yield _unread(_name(path, self.run), error)
                continue
            begun = sum(sign == "+" for sign, _ in entries(text))
            lines = len(text.splitlines())
            cut = lines - sum(1 for _ in entries(text))
            note = f"; {_count(cut, 'line')} cut short or damaged, passed over" if cut else ""
            yield self._of(path, "note" if cut else "ok", f"{_count(begun, 'unit')} begun{note}")
        for path in self._named("ended-*.json"):
            try:
                record = read_record(path) or {}
            except CorruptFileError as error:
                yield self._of(path, "note", f"{error}; any unit in flight may have been the cause")
            except OSError as error:
                yield _unread(_name(path, self.run), error)
            else:
                rank = record.get("rank")
                yield self._of(path, "ok", "ended by an error" if rank is None else f"rank {rank} died first")

    def _loop(self) -> Verdict:
        if self.complete is not None:
            return Verdict(self.directory.name, "ok", "complete: a resume passes it over")
        newest = load_newest(self.directory)
        use = f"the state after step {newest.number}" if newest.state is not None else "nothing and start anew"
        return Verdict(self.directory.name, "bad" if newest.fallbacks else "ok", f"a resume would use {use}")

    def _map(self) -> Verdict:
        complete, home, quarantine, damaged = self.complete, self.home, self.quarantine, self.damaged
        missing = complete.get("units", 0) - len(home.keys() | quarantine) if complete else 0
        text = f"a resume would use {_count(len(home), 'unit')} of {_count(len(set(home.values())), 'segment')}"
        if missing > 0:
            text += f"; {_count(missing, 'unit')} of a complete stage are missing and would be run again"
        elif complete:
            text += "; the stage is complete"
        if other := _computed_by(home, _others(self.run)):
            text += f"; bits of {_count(len(other), 'unit')} may differ, from other kernels: {_some(set(other))}"
        died = deaths(self.directory, journal_names(self.directory)).keys() - home.keys() - quarantine
        if died:
            text += f"; begun and not ended: {_some(died)}" + (" (being computed)" if self.working else "")
        return Verdict(self.directory.name, "bad" if missing > 0 or damaged else "ok", text)

    def _of(self, path: Path, status: Status, text: str) -> Verdict:
        return Verdict(_name(path, self.run), status, text.replace(f"{path}: ", "").replace(f"{self.run.path}/", ""))


def _name(path: Path, run: RunDir) -> str:
    return str(path.relative_to(run.path))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _some(keys: set[str]) -> str:
    shown = sorted(keys)[:5]
    return ", ".join(shown) + (" …" if len(keys) > len(shown) else "")
