"""What a resume would use of one stage's folder: every file of it is read in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpc.errors import CorruptFileError, UnreadableError
from hpc.kernel_record import Apart, other_kernels
from hpc.rundir import RunDir
from hpc.store.generations import load_generation, load_newest
from hpc.store.journal import deaths, entries, journal_names
from hpc.store.reading import content_of, is_refusal, names_in
from hpc.store.records import read_keyed, read_record
from hpc.store.sealing import COMPLETE, read_complete
from hpc.store.segments import list_segment, read_whole

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


@dataclass
class StageFiles:
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
            text = f"{count_of(unread, 'file')} cannot be read now: what a resume would use is not known"
            yield Verdict(name, "unread", text)
            return
        try:
            yield self._loop() if self._is_loop else self._map()
        except OSError as error:
            yield not_read(name, error)

    def _files(self) -> Iterator[Verdict]:
        # Whether the stage is complete comes first: a run at work may complete it while its files are being read.
        parts = (self._complete, self._set_aside, self._segments, self._generations, self._quarantine, self._journals)
        for part in parts:
            try:
                yield from part()
            except OSError as error:
                if not is_refusal(error):
                    raise
                yield not_read(name_of(self.directory, self.run), error)

    def _set_aside(self) -> Iterator[Verdict]:
        for path in self._named("damaged-*"):
            yield self._of(path, "note", "was damaged and set aside; what it held was computed again")

    def _segments(self) -> Iterator[Verdict]:
        for path in self._named("seg-*.h5"):
            try:
                verdict = self._segment(path)
            except OSError as error:
                verdict = not_read(name_of(path, self.run), error)
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
        text = f"{count_of(len(keys), 'unit')}, {nbytes / 2**20:.2f} MiB"
        if doubled:
            return self._of(path, "note", f"{text}; {len(doubled)} of them are in an earlier segment too, which counts")
        return self._of(path, "ok", text)

    def _generations(self) -> Iterator[Verdict]:
        for record in self._named("gen-*.json"):
            try:
                number, state = load_generation(record)
            except OSError as error:
                yield not_read(name_of(record, self.run), error)
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
            yield self._of(file, "note", f"{count_of(len(records), 'unit')} in quarantine: {_some(set(records))}")

    def _journals(self) -> Iterator[Verdict]:
        for path in self._named("begun-*.txt"):
            try:
                text = content_of(path).decode(errors="replace")
            except FileNotFoundError:  # the working run has removed it meanwhile
                continue
            except OSError as error:
                yield not_read(name_of(path, self.run), error)
                continue
            begun = sum(sign == "+" for sign, _ in entries(text))
            lines = len(text.splitlines())
            cut = lines - sum(1 for _ in entries(text))
            note = f"; {count_of(cut, 'line')} cut short or damaged, passed over" if cut else ""
            yield self._of(path, "note" if cut else "ok", f"{count_of(begun, 'unit')} begun{note}")
        for path in self._named("ended-*.json"):
            try:
                record = read_record(path) or {}
            except CorruptFileError as error:
                yield self._of(path, "note", f"{error}; any unit in flight may have been the cause")
            except OSError as error:
                yield not_read(name_of(path, self.run), error)
            else:
                rank = record.get("rank")
                yield self._of(path, "ok", "ended by an error" if rank is None else f"rank {rank} died first")

    def _loop(self) -> Verdict:
        others = kernels_apart(self.run).values()
        begun = [b for apart in others for b in apart.began if b.stage == self.directory.name]
        other = (
            f"; bits may differ from step {min(b.before for b in begun) + 1} on, from other kernels" if begun else ""
        )
        if self.complete is not None:
            return Verdict(self.directory.name, "ok", f"complete: a resume passes it over{other}")
        newest = load_newest(self.directory)
        use = f"the state after step {newest.number}" if newest.state is not None else "nothing and start anew"
        return Verdict(self.directory.name, "bad" if newest.fallbacks else "ok", f"a resume would use {use}{other}")

    def _map(self) -> Verdict:
        complete, home, quarantine, damaged = self.complete, self.home, self.quarantine, self.damaged
        missing = complete.get("units", 0) - len(home.keys() | quarantine) if complete else 0
        text = f"a resume would use {count_of(len(home), 'unit')} of {count_of(len(set(home.values())), 'segment')}"
        if missing > 0:
            text += f"; {count_of(missing, 'unit')} of a complete stage are missing and would be run again"
        elif complete:
            text += "; the stage is complete"
        if other := _computed_by(home, kernels_apart(self.run)):
            text += f"; bits of {count_of(len(other), 'unit')} may differ, from other kernels: {_some(set(other))}"
        died = deaths(self.directory, journal_names(self.directory)).keys() - home.keys() - quarantine
        if died:
            text += f"; begun and not ended: {_some(died)}" + (" (being computed)" if self.working else "")
        return Verdict(self.directory.name, "bad" if missing > 0 or damaged else "ok", text)

    def _of(self, path: Path, status: Status, text: str) -> Verdict:
        return Verdict(name_of(path, self.run), status, text.replace(f"{path}: ", "").replace(f"{self.run.path}/", ""))


def _computed_by(home: Mapping[str, str], attempts: Iterable[int]) -> list[str]:
    """Return the units that one of some attempts computed: segments are named after theirs."""
    prefixes = tuple(f"seg-{attempt:04d}-" for attempt in attempts)
    return sorted(key for key, name in home.items() if name.startswith(prefixes))


def kernels_apart(run: RunDir) -> dict[int, Apart]:
    """Return where bits of some attempts may differ, by attempt; nothing where that is not known."""
    try:
        return other_kernels(run.path)
    except (OSError, CorruptFileError):
        return {}


def not_read(subject: str, error: OSError | UnreadableError) -> Verdict:
    """Return the verdict on what the file system does not give out now."""
    return Verdict(subject, "unread", f"cannot be read now ({error}); whether it is sound is not known")


def name_of(path: Path, run: RunDir) -> str:
    """Return a path below the run directory."""
    return str(path.relative_to(run.path))


def count_of(number: int, what: str) -> str:
    """Return ``1 unit`` or ``2 units``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def _some(keys: set[str]) -> str:
    shown = sorted(keys)[:5]
    return ", ".join(shown) + (" …" if len(keys) > len(shown) else "")
