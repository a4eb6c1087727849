"""The state of a run, read from its directory by anyone, on any machine, while it runs or long after."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hpc.errors import RunDirError
from hpc.kernel_record import told
from hpc.process import Process
from hpc.store.plain import read_json
from hpc.store.reading import is_absent
from hpc.watch.failure import Failure, read_failure
from hpc.watch.fields import record
from hpc.watch.submissions import damage
from hpc.yamlfile import read_yaml

_MARKS: Final = ("config.yaml", "progress.json", "slurm.json")
"""Files by which a run is known; the first alone would do, were it never lost."""

LIVE: Final = ("starting", "running", "stopping")
"""States in which the ranks are at work, if they still give signs of life."""

ENDED: Final = ("done", "failed", "stopped", "quarantined")
"""States in which an attempt leaves ``progress.json``."""

SILENCE: Final = 30.0
"""Seconds without a sign of life after which a run is called lost; never under ten heartbeats."""

DEAD_SILENCE: Final = 5.0
"""The same if the ranks ran on this machine and their processes are gone."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage: how many of its units (or steps) are done; ``restored`` came from earlier attempts.

    ``saved`` units are durable (of a loop that is not over, they are not counted); ``figures`` is what a loop says of
    its state.
    """

    name: str
    kind: str = "map"
    state: str = "pending"
    done: int = 0
    total: int = 0
    quarantined: int = 0
    restored: int = 0
    saved: int = 0
    seconds: float = 0.0
    figures: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One rank: ``heartbeat`` is an epoch, ``busy`` the seconds spent in units, ``unit`` what it works on.

    ``place`` and ``process_started`` say which process it is; see `hpc.process`.
    """

    rank: int
    host: str = ""
    pid: int = 0
    heartbeat: float = 0.0
    unit: str | None = None
    done: int = 0
    busy: float = 0.0
    rss_mb: float = 0.0
    place: str = ""
    process_started: str = ""

    @property
    def process(self) -> Process:
        """The process it was."""
        return Process(self.host, self.pid, self.process_started, self.place)


@dataclass(frozen=True, slots=True)
class IdentityStatus:
    """What a run works with: its code in words, its input files and their bytes.

    ``others`` has a line for each time that it went on with other inputs or code than it was started with.
    """

    code: str = ""
    inputs: int = 0
    nbytes: int = 0
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run as its directory tells it.

    Attributes
    ----------
    state
        As the ranks wrote it, or ``lost`` (they said they were running but have been silent too long),
        ``not started`` (no rank has written yet), ``pending`` (it waits in SLURM's queue, see `hpc.watch.queued`) or
        ``unreadable`` (see ``message``).
    silent
        Seconds since the last sign of life.
    rate, eta
        Units per second and seconds to go, where known.
    slurm_job, restarts
        The SLURM job of the run, if it has one, and how often it came back (see `hpc.watch.queued`).
    slurm_silent
        Why it is not known whether that job waits or runs, empty if it is known.
    checkpoint_age
        Seconds since anything was last saved.
    failure
        Which rank of the last attempt failed, where and why; None if none did, or none is known.
    kernels
        From which attempt on bits may differ because the numeric libraries ran other kernels, empty if nowhere.
    identity
        Code and inputs.
    """

    path: str
    state: str
    job: str = ""
    attempt: int = 0
    stage: str | None = None
    stages: tuple[StageStatus, ...] = ()
    rate: float | None = None
    eta: float | None = None
    started: float | None = None
    updated: float | None = None
    silent: float | None = None
    size: int = 0
    threads: int = 0
    slurm_job: str = ""
    restarts: int = 0
    slurm_silent: str = ""
    checkpoint_age: float | None = None
    ranks: tuple[RankStatus, ...] = ()
    message: str = ""
    failure: Failure | None = None
    kernels: str = ""
    identity: IdentityStatus = field(default_factory=IdentityStatus)

    @property
    def current(self) -> StageStatus | None:
        """The stage that is being worked on."""
        return next((s for s in self.stages if s.name == self.stage), None)

    @property
    def quarantined(self) -> int:
        """Units of all stages that were given up."""
        return sum(stage.quarantined for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Return the status as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Progress:
    """What is read of ``progress.json``."""

    state: str
    attempt: int
    stage: str | None
    stages: tuple[StageStatus, ...]
    rate: float | None
    eta: float | None
    started: float
    updated: float
    size: int
    threads: int
    message: str
    ranks: tuple[RankStatus, ...]
    identity: IdentityStatus = field(default_factory=IdentityStatus)

    def __post_init__(self) -> None:
        if self.state not in (*LIVE, *ENDED):
            msg = f"state is {self.state!r}, which no run is in"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is read of the section ``job`` of ``config.yaml``."""

    name: str | int


@dataclass(frozen=True, slots=True)
class _Engine:
    """What is read of the section ``engine``."""

    heartbeat: float = 0.0


@dataclass(frozen=True, slots=True)
class _Config:
    """What is read of ``config.yaml``."""

    job: _Job
    engine: _Engine = field(default_factory=_Engine)


def read_status(run: Path, now: float | None = None) -> RunStatus:
    """Read what ``config.yaml``, ``progress.json`` and ``failure.json`` of a run directory say.

    Parameters
    ----------
    run
        The run directory.
    now
        The present as an epoch; None asks the clock.

    Returns
    -------
    RunStatus
        A damaged file gives the state ``unreadable``, its name and the cause, never an exception: one bad run must
        not hide the others in a listing.
    """
    now = time.time() if now is None else now
    try:
        job, heartbeat = _of_config(run)
    except (OSError, ValueError) as error:
        return RunStatus(str(run), "unreadable", message=f"config.yaml: {_first_line(error)}")
    failure, complaint = _failure(run)
    try:
        progress = record(_Progress, read_json(run / "progress.json"))
    except FileNotFoundError:
        status = _not_started(run, job, failure)
    except (OSError, ValueError) as error:
        return RunStatus(str(run), "unreadable", job, message=f"progress.json: {_first_line(error)}")
    else:
        status = _status(str(run), job, progress, failure, now - max(SILENCE, 10 * heartbeat), now)
    if complaint:
        message = f"failure.json: {complaint}; by the other files the run is {status.state}"
        return replace(status, state="unreadable", message=message)
    if problem := damage(run):
        state = "unreadable" if status.state == "not started" else status.state
        return replace(status, state=state, message=f"{problem}; so SLURM cannot be asked about it")
    return status


def _of_config(run: Path) -> tuple[str, float]:
    """Return the job's name and the seconds between its heartbeats."""
    found = record(_Config, read_yaml(run / "config.yaml"))
    return str(found.job.name), found.engine.heartbeat


def _failure(run: Path) -> tuple[Failure | None, str]:
    """Return what failed, or what is wrong with the record of it."""
    try:
        return read_failure(run), ""
    except (OSError, ValueError) as error:
        return None, _first_line(error)


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _not_started(run: Path, job: str, failure: Failure | None) -> RunStatus:
    """Return the status of a run whose ranks have written no progress."""
    if failure is None:
        return RunStatus(str(run), "not started", job)
    return RunStatus(str(run), "failed", job, message=failure.error, failure=failure)


def _status(path: str, job: str, progress: _Progress, failure: Failure | None, oldest: float, now: float) -> RunStatus:
    """Return the status of a run that has written progress; signs of life before ``oldest`` do not count."""
    last = max([progress.updated, *(r.heartbeat for r in progress.ranks)])
    state = progress.state
    if state in LIVE:
        silent = last < (now - DEAD_SILENCE if _all_dead(progress.ranks) else oldest)
        state = "failed" if failure else "lost" if silent else state
    return RunStatus(
        path=path,
        state=state,
        job=job,
        attempt=progress.attempt,
        stage=progress.stage,
        stages=progress.stages,
        rate=progress.rate,
        eta=progress.eta,
        started=progress.started,
        updated=progress.updated,
        silent=max(0.0, now - last),
        size=progress.size,
        threads=progress.threads,
        checkpoint_age=_checkpoint_age(Path(path), now),
        ranks=progress.ranks,
        message=failure.error if failure else progress.message,
        failure=failure,
        kernels=told(Path(path)),
        identity=progress.identity,
    )


def _checkpoint_age(run: Path, now: float) -> float | None:
    """Return the seconds since a file was last put below ``checkpoints/``: a folder's time is that of its last file."""
    try:
        saved = [folder.stat().st_mtime for folder in (run / "checkpoints").iterdir()]
    except OSError:
        return None
    return max(0.0, now - max(saved)) if saved else None


def _all_dead(ranks: Sequence[RankStatus]) -> bool:
    """Say whether all ranks were on this machine and none of their processes is there any more."""
    return bool(ranks) and all(rank.process.lives() is False for rank in ranks)


def find_runs(folder: Path) -> Sequence[Path]:
    """Return the run directories at or below a folder (two levels: runs, and members of sweeps).

    Raises
    ------
    hpc.errors.RunDirError
        If there are none.
    """
    if not os.path.exists(folder):  # noqa: PTH110 - the method raises for a name that is too long
        siblings = sorted(p.name for p in folder.parent.iterdir()) if os.path.isdir(folder.parent) else []  # noqa: PTH112
        there = f"; {folder.parent} holds: {', '.join(siblings[:8])}" if siblings else ""
        msg = f"{folder} does not exist{there}; name a run directory or a folder of runs"
        raise RunDirError(msg)
    if os.path.lexists(folder / _MARKS[0]):
        return [folder]
    found = [run for run in (folder, *_folders_below(folder, 2)) if _is_run(run)]
    if not found:
        msg = f"{folder} is no run directory and holds none (no config.yaml); start a run with tessera job=NAME"
        raise RunDirError(msg)
    return sorted(found, key=_natural)


def _folders_below(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the folders so many levels down; one that cannot be listed has none for all that can be told."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
    except OSError:
        return
    for path in (folder / name for name in names):
        if os.path.isdir(path):  # noqa: PTH112 - the method raises for a link to itself
            yield path
            if levels > 1:
                yield from _folders_below(path, levels - 1)


def _is_run(folder: Path) -> bool:
    """Say whether a run lies in a folder, or may lie there: one that has lost its configuration is not passed over.

    Folders of other users that nobody else may look into are.
    """
    for name in _MARKS:
        try:
            (folder / name).lstat()
        except OSError as error:
            if not is_absent(error):
                return not (isinstance(error, PermissionError) and belongs_to_another(folder))
        else:
            return True
    return False


def belongs_to_another(run: Path) -> bool:
    """Say whether a run belongs to another user."""
    try:
        return run.stat().st_uid != os.getuid()
    except OSError:
        return False


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order 10 after 9: the members of a sweep are numbered."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]
