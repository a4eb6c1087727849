"""The state of a run, read from its directory by anyone, on any machine, while it runs or long after."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from hpc.errors import RunDirError
from hpc.process import Process
from hpc.watch.failure import Failure, read_failure
from hpc.yamlfile import read_yaml

T = TypeVar("T")

LIVE: Final = ("starting", "running", "stopping")
"""States in which the ranks are at work, if they still give signs of life."""

SILENCE: Final = 30.0
"""Seconds without a sign of life after which a run is called lost; never under ten heartbeats."""

DEAD_SILENCE: Final = 5.0
"""The same if the ranks ran on this machine and their processes are gone."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage: how many of its units (or steps) are done; ``restored`` came from earlier attempts.

    ``figures`` is what a loop says of its state.
    """

    name: str
    kind: str = "map"
    state: str = "pending"
    done: int = 0
    total: int = 0
    quarantined: int = 0
    restored: int = 0
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
    checkpoint_age
        Seconds since anything was last saved.
    failure
        Which rank of the last attempt failed, where and why; None if none did, or none is known.
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
    checkpoint_age: float | None = None
    ranks: tuple[RankStatus, ...] = ()
    message: str = ""
    failure: Failure | None = None

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
        A damaged file gives the state ``unreadable`` and its cause, never an exception: one bad run must
        not hide the others in a listing.
    """
    now = time.time() if now is None else now
    try:
        config = read_yaml(run / "config.yaml")
        job, heartbeat = str(config["job"]["name"]), float(config.get("engine", {}).get("heartbeat", 0.0))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return RunStatus(str(run), "unreadable", message=f"config.yaml: {_first_line(error)}")
    try:
        progress = json.loads((run / "progress.json").read_bytes())
        failure = read_failure(run)
        return _status(str(run), job, progress, failure, now - max(SILENCE, 10 * heartbeat), now)
    except FileNotFoundError:
        return _not_started(run, job)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return RunStatus(str(run), "unreadable", job, message=f"progress.json: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _not_started(run: Path, job: str) -> RunStatus:
    """Return the status of a run whose ranks have written no progress."""
    try:
        failure = read_failure(run)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return RunStatus(str(run), "unreadable", job, message=f"failure.json: {_first_line(error)}")
    if failure is None:
        return RunStatus(str(run), "not started", job)
    return RunStatus(str(run), "failed", job, message=failure.error, failure=failure)


def _status(
    path: str, job: str, progress: Mapping[str, Any], failure: Failure | None, oldest: float, now: float
) -> RunStatus:
    """Return the status of a run that has written progress; signs of life before ``oldest`` do not count."""
    ranks = tuple(_record(RankStatus, r) for r in progress["ranks"])
    updated = float(progress["updated"])
    last = max([updated, *(r.heartbeat for r in ranks)])
    state = str(progress["state"])
    if state in LIVE:
        silent = last < (now - DEAD_SILENCE if _all_dead(ranks) else oldest)
        state = "failed" if failure else "lost" if silent else state
    return RunStatus(
        path=path,
        state=state,
        job=job,
        attempt=int(progress["attempt"]),
        stage=progress["stage"],
        stages=tuple(_record(StageStatus, s) for s in progress["stages"]),
        rate=progress["rate"],
        eta=progress["eta"],
        started=float(progress["started"]),
        updated=updated,
        silent=max(0.0, now - last),
        size=int(progress["size"]),
        threads=int(progress["threads"]),
        checkpoint_age=_checkpoint_age(Path(path), now),
        ranks=ranks,
        message=failure.error if failure else str(progress["message"]),
        failure=failure,
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


def _record(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a record from the keys it knows: a newer version may have written more."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in values.items() if key in names})


def find_runs(folder: Path) -> Sequence[Path]:
    """Return the run directories at or below a folder (two levels: runs, and members of sweeps).

    Raises
    ------
    hpc.errors.RunDirError
        If there are none.
    """
    if not folder.exists():
        siblings = sorted(p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else []
        there = f"; {folder.parent} holds: {', '.join(siblings[:8])}" if siblings else ""
        msg = f"{folder} does not exist{there}; name a run directory or a folder of runs"
        raise RunDirError(msg)
    levels = ("config.yaml", "*/config.yaml", "*/*/config.yaml")
    found = [file.parent for level in levels for file in folder.glob(level)]
    if not found:
        msg = f"{folder} is no run directory and holds none (no config.yaml); start a run with tessera job=NAME"
        raise RunDirError(msg)
    return [folder] if folder in found else sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order 10 after 9: the members of a sweep are numbered."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]
