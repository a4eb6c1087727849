"""Whether a run goes on with the inputs and the code that it was started with: recorded, compared, refused or said.

``RUN/inputs.json`` holds both. It is written at the first start, before anything is computed. As long as nothing is
stored that came of them, others may take their place; after that an attempt refuses others, unless it is told to go on.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from hpc.code import Code, changes, code_of
from hpc.errors import ChangedCodeError, ChangedInputsError, ConfigError, CorruptFileError, InputError, TesseraError
from hpc.inputs import Differences, Inputs, differences, expanded, gathered, in_folders, look
from hpc.load import load_job
from hpc.provenance import versions
from hpc.ranks import Ranks, SerialRanks
from hpc.rundir import RunDir
from hpc.settings import Settings, SlurmCluster
from hpc.store.patience import Reading, at_once
from hpc.store.reading import any_stored
from hpc.store.records import read_record, write_record

if TYPE_CHECKING:
    from hpc.job import Job
    from hpc.life import Life

_SHOWN: Final = 10
"""Files that a message names; there may be thousands."""

_DOUBT: Final = "whether large inputs are what they were is not known"

_STORED: Final = ("seg-*.h5", "gen-*.h5", "complete.json")
"""What of a stage's folder came of the inputs and the code."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run works with.

    Attributes
    ----------
    inputs, code
        Files and sources as they were found.
    packages
        Versions of the libraries.
    others
        A line for each time that an attempt went on with something else than the run was started with.
    """

    inputs: Inputs
    code: Code
    packages: Mapping[str, str]
    others: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return what status and report show."""
        return {
            "code": self.code.told,
            "inputs": self.inputs.count,
            "nbytes": self.inputs.nbytes,
            "others": list(self.others),
        }


@dataclass(frozen=True, slots=True)
class _Apart:
    """Lines on source files and libraries that other nodes have otherwise than rank 0's."""

    code: tuple[str, ...]
    libraries: tuple[str, ...]

    def notes(self) -> list[str]:
        """Return what is to be said for good."""
        told = {
            "works with different code on different nodes": self.code,
            "works with different libraries on different nodes, so the last bits may differ": self.libraries,
        }
        return [f"{what}:{_lines(lines)}" for what, lines in told.items() if lines]


def read_identity(run: RunDir) -> Identity | None:
    """Return what a run was started with, None if it is not recorded.

    Raises
    ------
    hpc.errors.CorruptFileError
        If the record is damaged.
    """
    record = read_record(run.inputs_file)
    if record is None:
        return None
    try:
        inputs, code = Inputs.from_json(record), Code(**record["code"])
        return Identity(inputs, code, dict(record["packages"]), tuple(record["others"]))
    except (KeyError, TypeError) as error:
        msg = f"{run.inputs_file}: is of another schema ({error!r}) and counts as absent"
        raise CorruptFileError(msg) from error


def refuse_others(run: RunDir, settings: Settings) -> None:
    """Refuse to go on with other inputs or code, where the command is typed; the ranks look again.

    Raises
    ------
    hpc.errors.ChangedInputsError, hpc.errors.ChangedCodeError
        Naming the files and the remedy.
    hpc.errors.InputError
        If an input that names others cannot be read.
    """
    try:
        before = read_identity(run)
        if before is None or not has_results(run):
            return
    except (CorruptFileError, OSError):  # the ranks wait, and say so
        return
    try:
        job = load_job(settings.job)
    except ConfigError:  # the ranks may have a Python of their own, with what is missing here
        return
    if not settings.run.any_version and _same_python(settings):
        _refuse_code(run, before.code, job_code(job, settings))
    if not settings.run.any_inputs:
        try:
            found = _look_together(expanded(job.inputs()), before.inputs, SerialRanks(), at_once)
        except OSError as error:
            msg = f"{error.filename}: an input of this run cannot be read now ({error.strerror}); try again"
            raise InputError(msg) from error
        _refuse_inputs(run, before.inputs, found or before.inputs)


def has_results(run: RunDir) -> bool:
    """Say whether anything is stored that came of the run's inputs and code.

    Raises
    ------
    OSError
        If this cannot be told now.
    """
    return any_stored(run.path / "checkpoints", _STORED)


def establish(job: Job, life: Life) -> None:
    """Record what the run works with at its first start; later see that it is the same. Collective.

    Raises
    ------
    hpc.errors.ChangedInputsError, hpc.errors.ChangedCodeError
        On every rank, if it is not the same and the configuration does not let others pass.
    """
    started = time.monotonic()
    before = _before(life) if life.desk else None
    inputs = _find(job, before.inputs if before else None, life)
    code, error = life.sources, None
    apart = _nodes_apart(life)
    if life.desk and code is not None and inputs is not None:
        seconds = round(time.monotonic() - started, 3)
        life.desk.event("inputs", files=inputs.count, nbytes=inputs.nbytes, seconds=seconds, code=code.digest)
        try:
            if apart.code and not life.settings.run.any_version:
                _refuse_apart(life.run, apart.code)
            life.identity = _accepted(life, before, Identity(inputs, code, versions()), apart)
            life.desk.progress.identity = life.identity.summary()
        except TesseraError as refusal:
            error = refusal
    _raise_together(life.ranks, error)


def changed_meanwhile(job: Job, life: Life) -> str | None:
    """Say which inputs were changed while the run worked: nobody knows what its results are of. Collective.

    Returns
    -------
    str or None
        On rank 0, with the remedy; None if nothing changed, or if others may pass, and then it is said.
    """
    identity = life.identity
    try:
        now = _find(job, identity.inputs if identity else None, life)
    except TesseraError as error:
        changed: Sequence[str] = [str(error)]
        doubted: Sequence[str] = ()
        now = None
    else:
        found = differences(identity.inputs, now) if identity and now else Differences()
        changed, doubted = found.changed, found.doubted
    if life.desk is None or identity is None:
        return None
    if doubted:
        text = f"{_DOUBT}, for they were handled while the run worked:{_lines(doubted)}"
        life.warn(text)
        kept = identity.inputs if changed or now is None else now
        identity = _record(life, replace(identity, inputs=kept, others=(*identity.others, _dated(text))))
        life.identity = identity
    if not changed:
        return None
    text = f"inputs were changed while the run worked, so its results may be of neither:{_lines(changed)}"
    if not life.settings.run.any_inputs:
        return (
            f"{text}\nstart a new run with another run.dir; or, if you know that the results are right, accept them "
            f"with: tessera resume {life.run.path} --any-inputs"
        )
    life.warn(text)
    _record(life, replace(identity, inputs=now or identity.inputs, others=(*identity.others, _dated(text))))
    return None


def _nodes_apart(life: Life) -> _Apart:
    """Compare what the nodes have with what rank 0's has; only there anything is returned. Collective."""
    mine = None if life.sources is None else (life.sources.files, versions())
    first = life.ranks.bcast(mine)
    edits, libraries = [], []
    if mine is not None and first is not None:
        edits = [f"{socket.gethostname()}: {edit}" for edit in changes(first[0], mine[0])]
        libraries = [f"{socket.gethostname()}: {other}" for other in _other_versions(first[1], mine[1], "beside")]
    parts = life.ranks.gather((edits, libraries)) or []
    return _Apart(tuple(e for edits, _ in parts for e in edits), tuple(o for _, others in parts for o in others))


def _refuse_apart(run: RunDir, code: Sequence[str]) -> None:
    msg = (
        f"{run.path}: the nodes have different code; compared with that of {socket.gethostname()}, on{_lines(code)}\n"
        "install the same on all of them, or accept mixed results with run.any_version=true (resume: --any-version)"
    )
    raise ChangedCodeError(msg)


def _before(life: Life) -> Identity | None:
    """Return what the run was started with; rank 0."""
    try:
        return life.read(lambda: read_identity(life.run))
    except CorruptFileError as error:
        life.run.inputs_file.replace(life.run.path / "damaged-inputs.json")
        life.warn(str(error))
        return None


def _accepted(life: Life, before: Identity | None, now: Identity, apart: _Apart) -> Identity:
    """Compare, refuse or say, and record; rank 0."""
    notes = apart.notes()
    if not life.read(lambda: has_results(life.run)):
        for note in notes:
            life.warn(note)
        return _record(life, replace(now, others=tuple(map(_dated, notes))))
    run, allowed = life.run, life.settings.run
    if before is None:
        notes += ["it is not known which inputs and code the run was started with; they are recorded from here on"]
        for note in notes:
            life.warn(note)
        return _record(life, replace(now, others=tuple(map(_dated, notes))))
    if not allowed.any_version:
        _refuse_code(run, before.code, now.code)
    if not allowed.any_inputs:
        _refuse_inputs(run, before.inputs, now.inputs)
    found = differences(before.inputs, now.inputs)
    if found.doubted:
        notes.append(f"{_DOUBT}:{_lines(found.doubted)}")
    if edits := changes(before.code.files, now.code.files):
        notes.append(f"went on with other code, {now.code.told} after {before.code.told}:{_lines(edits)}")
    if found.changed:
        notes.append(f"went on with other inputs:{_lines(found.changed)}")
    if others := _other_versions(before.packages, now.packages):
        notes.append(f"went on with other libraries, so the last bits may differ:{_lines(others)}")
    for note in notes:
        life.warn(note)
    now = replace(now, others=(*before.others, *map(_dated, notes)))
    return now if now == before else _record(life, now)


def _record(life: Life, identity: Identity) -> Identity:
    sound = {path: file for path, file in identity.inputs.files.items() if not file.problem}
    identity = replace(identity, inputs=replace(identity.inputs, files=sound))
    record = {
        "format": 1,
        "recorded": time.time(),
        **identity.inputs.as_json(),
        "code": identity.code.as_json(),
        "packages": dict(identity.packages),
        "others": list(identity.others),
    }
    life.insist(lambda: write_record(life.run.inputs_file, record, life.claim.verify))
    if life.desk:
        life.desk.progress.identity = identity.summary()
    return identity


def _find(job: Job, known: Inputs | None, life: Life) -> Inputs | None:
    """Look at all inputs, each rank at its share; they are returned on rank 0. Collective.

    Raises
    ------
    hpc.errors.TesseraError
        On every rank, if the job cannot name them.
    """
    ranks = life.ranks
    paths: list[str] = []
    error: TesseraError | None = None
    if ranks.rank == 0:
        try:
            read = life.read if known is not None else at_once
            paths = read(lambda: expanded(job.inputs()))
        except TesseraError as failure:
            error = failure
        except OSError as failure:
            error = InputError(f"{failure.filename}: an input of this run cannot be read ({failure.strerror})")
    _raise_together(ranks, error)
    paths, known = ranks.bcast((paths, known))
    return _look_together(paths, known, ranks, life.read)


def _look_together(paths: Sequence[str], known: Inputs | None, ranks: Ranks, read: Reading) -> Inputs | None:
    folders = in_folders(paths)
    mine, before = paths[ranks.rank :: ranks.size], known.files if known else {}
    found = ranks.gather(read(lambda: look(mine, before, folders)))
    return None if found is None else gathered((file for part in found for file in part), folders)


def _raise_together(ranks: Ranks, error: TesseraError | None) -> None:
    error = ranks.bcast(error)
    if error is not None:
        raise error


def _refuse_code(run: RunDir, before: Code, now: Code) -> None:
    edits = changes(before.files, now.files)
    if edits:
        msg = (
            f"{run.path}: this run was started by tessera {before.told}, and this is {now.told}, with other source "
            f"files:{_lines(edits)}\ncontinue it with the code that it was started with, start a new run with another "
            "run.dir, or accept mixed results with run.any_version=true (resume: --any-version)"
        )
        raise ChangedCodeError(msg)


def _refuse_inputs(run: RunDir, before: Inputs, now: Inputs) -> None:
    changed = differences(before, now).changed
    if changed:
        msg = (
            f"{run.path}: the inputs are not those that this run was started with:{_lines(changed)}\nput them back, "
            "start a new run with another run.dir, or accept mixed results with run.any_inputs=true "
            "(resume: --any-inputs)"
        )
        raise ChangedInputsError(msg)


def _other_versions(before: Mapping[str, str], now: Mapping[str, str], word: str = "after") -> list[str]:
    names = sorted(before.keys() | now.keys())
    found = ((name, before.get(name, "absent"), now.get(name, "absent")) for name in names)
    return [f"{name} {new} {word} {old}" for name, old, new in found if old != new]


def job_code(job: Job, settings: Settings, *, commit: bool = True) -> Code:
    """Read the code of a job as it is now; see `hpc.code.code_of`."""
    return code_of(str(settings.job["_target_"]), job.code(), commit=commit)


def _same_python(settings: Settings) -> bool:
    """Say whether the ranks surely run the code that this process sees."""
    cluster = settings.cluster
    return not (isinstance(cluster, SlurmCluster) and (cluster.python is not None or cluster.setup))


def _lines(changed: Sequence[str]) -> str:
    rest = f"\n  and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "".join(f"\n  {line}" for line in changed[:_SHOWN]) + rest


def _dated(text: str) -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {text}"
