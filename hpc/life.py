"""What a rank carries through its life: its place in the run, and where it is right now."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hpc.context import Context
from hpc.desk import Desk, RemoteDesk, WorkSource
from hpc.ending import EngineThread
from hpc.errors import EXIT_COME_BACK, EXIT_TOLD_TO_STOP, CorruptFileError, LockLostError
from hpc.kernel_record import Begun, note_begun
from hpc.kernels import Kernels, as_they_are
from hpc.process import Process
from hpc.ranks import Ranks
from hpc.rundir import RunDir
from hpc.settings import Settings
from hpc.stop import StopFlag, Wish
from hpc.store.journal import Journal
from hpc.store.lock import Claim
from hpc.store.origin import refuse_other
from hpc.store.patience import T, insist, read_patiently
from hpc.store.sealing import COMPLETE, read_complete
from hpc.store.writer import Writer
from hpc.terminal import complain
from hpc.watch.progress import Pulse
from hpc.whereabouts import Whereabouts

if TYPE_CHECKING:
    from hpc.code import Code
    from hpc.identity import Identity


_WISHES: Final[tuple[Wish, ...]] = ("", "requeue", "stop")

_PULSES: Final = 500.0
"""Signs of life a second that rank 0 has to take at most, whatever the number of ranks (see docs/scaling.md)."""
_SHARE: Final = 0.05
"""Of its time the heartbeat may spend on writing the progress file."""
LONGEST: Final = 20.0
"""Seconds between two beats at most: the lock must not look abandoned."""
_FIRST: Final = 0.5
"""Seconds to the first beat, each pause twice the one before until it is ``engine.heartbeat``: somebody may watch."""


def pulse_seconds(usual: float, ranks: int) -> float:
    """Return the seconds between two signs of life of a rank: longer where there are very many ranks."""
    return max(usual, ranks / _PULSES)


def pause_after(usual: float, took: float) -> float:
    """Return the seconds until the next beat of rank 0, after one that took so long."""
    return max(usual, min(took / _SHARE, LONGEST))


@dataclass
class Life:
    """One rank in one attempt at a run.

    Attributes
    ----------
    desk
        Rank 0's desk; None on other ranks.
    source
        Where this rank gets its units from: the desk itself on rank 0.
    claim
        Shows whether the run still belongs to this attempt.
    homes
        Segment file by unit key of every finished map.
    kernels
        What the numeric libraries were pinned to.
    stages
        Names of the job's stages, in order.
    again
        Complete stages that have to write their results again.
    sources, identity
        The code as found at this start, on the first rank of each node; inputs and code as recorded, on rank 0.
    without
        Units in quarantine by stage, of the stages so far. Rank 0.
    saving, journal
        Of the stage this rank is in.
    agreed
        What the ranks last agreed on: whether to stop, and whether to come back.
    begun
        Where this attempt began in the stages that it worked at. Rank 0.
    """

    run: RunDir
    settings: Settings
    config_hash: str
    ranks: Ranks
    ctx: Context
    source: WorkSource
    desk: Desk | None
    stop: StopFlag
    attempt: int
    log: logging.Logger
    here: Whereabouts
    claim: Claim
    homes: dict[str, Mapping[str, str]] = field(default_factory=dict)
    kernels: Kernels = field(default_factory=as_they_are)
    stages: tuple[str, ...] = ()
    again: frozenset[str] = frozenset()
    sources: Code | None = None
    identity: Identity | None = None
    without: dict[str, list[str]] = field(default_factory=dict)
    saving: Writer | None = None
    journal: Journal | None = None
    agreed: Wish = ""
    begun: list[Begun] = field(default_factory=list)
    process: Process = field(default_factory=Process.this)

    def agree_to_stop(self) -> bool:
        """Say whether any rank was told to stop. Collective."""
        mine = max(_WISHES.index(self.stop.wish), _WISHES.index(self.desk.wish if self.desk else ""))
        agreed = self.agreed = _WISHES[self.ranks.allmax(mine)]
        if agreed and self.desk is not None:
            self.desk.pulse(self.pulse(), agreed)
        return bool(agreed)

    def stop_code(self, told: Wish = "") -> int:
        """Return the exit code of a rank that saved and stops: it says whether the job comes back.

        What the ranks have agreed on, or rank 0 has told this one, goes before what this one was asked for itself: srun
        asks the others to stop as soon as the first has left.
        """
        wish = told or self.agreed or (self.desk.wish if self.desk else "") or self.stop.wish
        return EXIT_TOLD_TO_STOP if wish == "stop" else EXIT_COME_BACK

    def start_writer(self, stage: str, writers: int = 1) -> Writer:
        """Start the writer of a stage, one of so many; it is also what a stop signal flushes."""
        directory = self.run.stage(stage)
        settings, check = self.settings.checkpoint, self.claim.verify
        self.saving = Writer(
            directory, stage, self.attempt, self.ranks.rank, settings, self.warn, check, writers, self.config_hash
        )
        return self.saving

    def begins(self, stage: str, kind: str, before: int, of: int) -> None:
        """Note from where on this attempt works at a stage: from there bits may differ. Rank 0."""
        self.begun.append(Begun(stage, kind, before, of))
        self.insist(lambda: note_begun(self.run.path, self.attempt, self.begun))

    def end_lost(self, error: LockLostError) -> NoReturn:
        """Leave an attempt whose run was taken over, which ends the other ranks too; any thread may call it."""
        self.log.critical("%s", error)
        complain(f"tessera: rank {self.ranks.rank} ({socket.gethostname()}): {error}")
        os._exit(error.exit_code)  # MPI_Abort would tear MPI down under threads that are inside it

    def warn(self, text: str) -> None:
        """Log a warning and put it among the events."""
        self.log.warning("%s", text)
        self.source.event("warning", text=text, rank=self.ranks.rank)

    def insist(self, action: Callable[[], None]) -> None:
        """Do something that writes files and may be repeated, again while the disk is full or failing."""

        def checked() -> None:
            self.claim.verify()
            action()

        insist(checked, self.settings.checkpoint.deadline, self.warn)

    def read(self, action: Callable[[], T], /) -> T:
        """Do something that only reads files, again while the file system refuses; see `read_patiently`."""
        return read_patiently(action, self.settings.checkpoint.deadline, self.warn)

    def _read_complete(self, stage: str) -> dict[str, Any]:
        """Return the record of a complete stage; one that is damaged counts as absent, and that is said."""
        try:
            return self.read(lambda: read_complete(self.run.stage(stage))) or {}
        except CorruptFileError as error:
            self.source.event("fallback", stage=stage, reason=str(error))
            self.log.warning("%s", error)
            return {}

    def is_complete(self, stage: str) -> bool:
        """Say whether a stage is complete; refuse one that was completed with another configuration."""
        record = self._read_complete(stage)
        refuse_other(self.run.stage(stage) / COMPLETE, record.get("config_hash", ""), self.config_hash)
        return bool(record)

    def pulse(self) -> Pulse:
        """Return this rank's sign of life."""
        return Pulse(
            rank=self.ranks.rank,
            host=self.process.host,
            pid=self.process.pid,
            heartbeat=time.time(),
            unit=self.here.unit,
            done=self.here.done,
            busy=self.here.busy,
            rss_mb=_rss_mb(),
            place=self.process.place,
            process_started=self.process.started,
            saved_of=self.saving.stage if self.saving is not None else None,
            saved=self.saving.durable if self.saving is not None else 0,
        )


class Heartbeat:
    """A thread that gives a sign of life every so often, whatever the rank is busy with.

    Parameters
    ----------
    life
        The rank.
    seconds
        Between beats.
    also
        Called with every beat (rank 0 writes the progress file and touches the lock).
    """

    def __init__(self, life: Life, seconds: float, also: Callable[[], None] = lambda: None) -> None:
        self._life = life
        self._seconds = seconds
        self._also = also
        self._end = threading.Event()
        self._life.source.pulse(life.pulse(), life.stop.wish)
        self._thread = EngineThread("heartbeat", self._beat)

    def close(self) -> None:
        """Beat once more and end."""
        self._end.set()
        self._thread.join(timeout=10)
        if isinstance(self._life.source, RemoteDesk):
            self._life.source.settle(10)

    def _beat(self) -> None:
        ended, usual = False, min(self._seconds, _FIRST)
        pause = usual
        while not ended:
            ended = self._end.wait(pause)
            start = time.monotonic()
            self._life.source.pulse(self._life.pulse(), self._life.stop.wish)
            self._also()
            if self._life.saving is not None and not ended:
                self._life.saving.check()  # a unit may take hours: a rank that cannot save must not compute on
            usual = min(2 * usual, self._seconds)
            pause = pause_after(min(usual, LONGEST), time.monotonic() - start)


def _rss_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
