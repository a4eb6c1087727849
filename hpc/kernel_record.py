"""``RUN/kernels.json``: which kernels every attempt ran, and from which unit on the bits of a run may differ."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hpc.errors import CorruptFileError, OtherKernelsError
from hpc.kernels import Kernels, Recorded
from hpc.store.reading import any_stored
from hpc.store.records import read_record, write_record

NAME: Final = "kernels.json"

_DAMAGED: Final = "damaged-kernels.json"
_SAVED: Final = ("seg-*", "gen-*")
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What one rank runs.

    Attributes
    ----------
    host, cpu
        Where, and the level of that CPU.
    libraries
        As `hpc.kernels.loaded` returns it.
    wrong
        As `hpc.kernels.unlike_asked` returns it.
    """

    host: str
    cpu: str
    libraries: Mapping[str, str]
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """Where an attempt began in a stage.

    Attributes
    ----------
    stage
        Its name.
    kind
        ``unit`` or ``step``.
    before
        How many of them earlier attempts had done.
    of
        How many there are; 0 where that is not known.
    """

    stage: str
    kind: str
    before: int
    of: int

    def told(self) -> str:
        """Return the words for it."""
        if self.of and self.before >= self.of:
            return f"in what stage {self.stage} makes of its {self.kind}s"
        if not self.before:
            return f"in all of stage {self.stage}"
        return f"in stage {self.stage} from {self.kind} {self.before + 1}{f' of {self.of}' if self.of else ''} on"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What is relied on of an attempt."""

    attempt: int
    differs: tuple[str, ...]
    began: tuple[Begun, ...] = ()


@dataclass(frozen=True, slots=True)
class _Record:
    """What is relied on of the file."""

    level: str
    pinned: bool
    cpu: str
    variables: Mapping[str, str]
    libraries: Mapping[str, str]
    attempts: tuple[_Attempt, ...]


def read_kernels(run: Path) -> dict[str, Any] | None:
    """Return the record of a run, None if it has none; raises as `hpc.store.records.read_record` does."""
    return read_record(run / NAME, _Record)


def first_of(run: Path) -> Recorded | None:
    """Return what the first attempt of a run ran on; None if there was none, or its record is damaged."""
    record = _sound(run)
    if record is None:
        return None
    return Recorded(record["level"], record["pinned"], record["cpu"], record["variables"])


def refuse_lower(kernels: Kernels, recorded: Recorded | None, cpus: Iterable[tuple[str, str]]) -> None:
    """Refuse to go on where a node lacks what the run was started with.

    Parameters
    ----------
    kernels, recorded
        Of this attempt and the first.
    cpus
        Host and level of each rank.

    Raises
    ------
    hpc.errors.OtherKernelsError
        With the nodes and the remedy.
    """
    if recorded is not None and recorded.pinned and kernels.level != recorded.level:
        hosts = sorted({host for host, level in cpus if level == kernels.cpu})
        reason = (
            f"engine.kernels={kernels.setting} asks for {kernels.level}"
            if kernels.level != kernels.cpu
            else f"{_some(hosts)} has only {kernels.cpu}"
        )
        raise OtherKernelsError(_refusal(f"was started with kernels of level {recorded.level}, but {reason}"))


def note_attempt(
    run: Path, attempt: int, kernels: Kernels, ranks: Sequence[Found], began: Sequence[Begun] = (), *, refuse: bool
) -> list[str]:
    """Add what an attempt runs to the record, or correct it; rank 0 only, with the run's lock held.

    Parameters
    ----------
    run
        The run directory.
    attempt
        Its number.
    kernels
        Its choice.
    ranks
        What each rank found loaded.
    began
        Where it has begun in stages so far.
    refuse
        Whether other kernels than before are refused.

    Returns
    -------
    list of str
        Why bits may differ, one sentence each; not those that the record held for this attempt already.

    Raises
    ------
    hpc.errors.OtherKernelsError
        If bits may differ, and that is to be refused.
    """
    unknown = _set_aside(run)
    before = _sound(run)
    record = before or {
        "level": kernels.level,
        "pinned": kernels.pinned,
        "cpu": kernels.cpu,
        "variables": dict(kernels.variables),
        "libraries": {},
        "attempts": [],
    }
    others = [a for a in record["attempts"] if a["attempt"] != attempt]
    earlier = next((a["differs"] for a in record["attempts"] if a["attempt"] == attempt), list[str]())
    differs = [*earlier, *_apart(ranks), *_unlike_first(record, ranks)]
    if before is None and attempt > 1 and any_stored(run / "checkpoints", _SAVED):
        differs.append(f"with which kernels earlier attempts ran is not known: {NAME} {unknown or 'is missing'}")
    differs = list(dict.fromkeys([*differs, *(text for found in ranks for text in found.wrong)]))
    if differs and refuse:
        raise OtherKernelsError(_refusal(f"would go on with other kernels: {'; '.join(differs)}"))
    libraries = ranks[0].libraries
    entry = {
        "attempt": attempt,
        "setting": kernels.setting,
        "level": kernels.level,
        "pinned": kernels.pinned,
        "cpus": {level: sorted({f.host for f in ranks if f.cpu == level}) for level in {f.cpu for f in ranks}},
        "variables": dict(kernels.variables),
        "given": list(kernels.given),
        "libraries": dict(libraries),
        "differs": differs,
        "began": [asdict(begun) for begun in began],
    }
    record = {**record, "libraries": {**libraries, **record["libraries"]}, "attempts": [*others, entry]}
    if record != before:
        write_record(run / NAME, record)
    return [text for text in differs if text not in earlier]


def note_begun(run: Path, attempt: int, began: Sequence[Begun]) -> None:
    """Add where an attempt has begun in stages, if its bits may differ; rank 0 only."""
    record = _sound(run)
    entry = next((a for a in record["attempts"] if a["attempt"] == attempt), None) if record else None
    if record is not None and entry is not None and entry["differs"]:
        entry["began"] = [asdict(begun) for begun in began]
        write_record(run / NAME, record)


@dataclass(frozen=True, slots=True)
class Apart:
    """An attempt whose bits may differ from those of the first.

    Attributes
    ----------
    reasons
        Why, a sentence each.
    began
        Where it began in the stages that it worked at.
    """

    reasons: tuple[str, ...]
    began: tuple[Begun, ...]

    def told(self) -> str:
        """Return where bits may differ, and why."""
        return f"{', '.join(begun.told() for begun in self.began)}: {'; '.join(self.reasons)}"


def other_kernels(run: Path) -> dict[int, Apart]:
    """Return where and why the bits of some attempts may differ, by attempt; not those that came to no stage.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the record is damaged.
    OSError
        If it cannot be read now.
    """
    record = read_kernels(run)
    attempts = record["attempts"] if record else []
    return {
        a["attempt"]: Apart(tuple(a["differs"]), tuple(Begun(**b) for b in a["began"]))
        for a in attempts
        if a["differs"] and a.get("began")
    }


def told(run: Path) -> str:
    """Return one line for people about kernels that changed within a run, empty if none did."""
    try:
        found = other_kernels(run)
    except CorruptFileError:
        return f"{NAME} is damaged: with which kernels the attempts ran is not known"
    except OSError as error:
        return f"{NAME} cannot be read now ({error.strerror}): with which kernels the attempts ran is not known"
    if not found:
        return ""
    first = min(found)
    return f"bits may differ from attempt {first} on, {found[first].told()}"


def _apart(ranks: Sequence[Found]) -> list[str]:
    """Say in which libraries the ranks of this attempt differ."""
    return [
        f"the ranks run different kernels of {library}: {', '.join(sorted(kinds))}"
        for library in sorted({name for found in ranks for name in found.libraries})
        if len(kinds := {f.libraries[library] for f in ranks if library in f.libraries}) > 1
    ]


def _unlike_first(record: Mapping[str, Any], ranks: Sequence[Found]) -> list[str]:
    first: Mapping[str, str] = record["libraries"]
    return [
        f"{library} runs {now}, the run was started with {first[library]}"
        for library, now in sorted(ranks[0].libraries.items())
        if library in first and first[library] != now
    ]


def _sound(run: Path) -> dict[str, Any] | None:
    try:
        return read_kernels(run)
    except CorruptFileError:
        return None


def _set_aside(run: Path) -> str:
    """Put a damaged record aside; return what became of it."""
    try:
        read_kernels(run)
    except CorruptFileError as error:
        logging.getLogger("tessera").warning("%s; it was set aside and a new one begun", error)
        (run / NAME).replace(run / _DAMAGED)
        return f"was damaged and set aside as {_DAMAGED}"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _refusal(reason: str) -> str:
    return (
        f"this run {reason}; its last bits would differ. Resume it on nodes like the first (cluster.constraint, "
        "cluster.partition), or accept that with engine.other_kernels=go_on"
    )
