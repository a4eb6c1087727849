"""The front desk on rank 0: hands out units, takes results' receipts, heartbeats and events.

Rank 0 computes like everybody else; the desk is a thread beside it that answers the other ranks' messages.
It sleeps between looks at the mailbox (1 ms at most), because a thread that spins would take a core from
the computation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

from hpc.doubt import PROBES, Doubt
from hpc.ending import EngineThread
from hpc.quarantine import Quarantine, UnitFailure
from hpc.schedule import Grant, Queue
from hpc.stop import Wish
from hpc.watch.events import Events
from hpc.watch.progress import Progress, Pulse, State

if TYPE_CHECKING:
    from mpi4py import MPI

_REQUEST: Final = 71
_REPLY: Final = 72
_HEARD: Final = 73
_IDLE: Final = 1e-3

_WISHES: Final[tuple[Wish, ...]] = ("", "requeue", "stop")
_GO: Final = 4
_WORDS: Final = tuple(bytearray([number]) for number in range(8))
"""Answers to a sign of life: what somebody wishes, and whether to leave now. Kept here, since MPI reads them later."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a rank did since it last asked (finished units with their seconds), and whether it was told to stop."""

    finished: tuple[tuple[str, float], ...] = ()
    failed: tuple[UnitFailure, ...] = ()
    wish: Wish = ""


class WorkSource(Protocol):
    """Where a rank gets its units from and leaves its signs of life."""

    def ask(self, receipt: Receipt) -> None:
        """Hand in a receipt and ask for more work; the answer is fetched with `answer`."""

    def answer(self) -> Grant:
        """Wait for the answer to the last `ask`."""

    def pulse(self, pulse: Pulse, wish: Wish) -> None:
        """Give a sign of life."""

    def event(self, name: str, **facts: object) -> None:
        """Add a record to ``events.jsonl``."""


@dataclass
class Desk:
    """Rank 0's desk, which is also rank 0's own source of work.

    Parameters
    ----------
    progress, events
        Where counts and records go.

    Attributes
    ----------
    quarantine
        The units of the current stage that were given up.
    hopeless
        The units that failed, if everything does and the stage was stopped for that; none of them is in quarantine.
    drained
        Ranks that have made durable what they had finished when they were told to stop.
    going, sent_off
        Whether all may leave now, and which ranks have been told so.
    on_wish
        Told what rank 0 is asked for, by whichever rank.
    over
        Whether the books are closed: what is asked for after that changes nothing any more.
    """

    progress: Progress
    events: Events
    wish: Wish = field(default="", init=False)
    quarantine: Quarantine = field(default_factory=Quarantine, init=False)
    hopeless: tuple[UnitFailure, ...] = field(default=(), init=False)
    drained: set[int] = field(default_factory=set, init=False)
    going: bool = field(default=False, init=False)
    sent_off: set[int] = field(default_factory=set, init=False)
    on_wish: Callable[[Wish], None] = field(default_factory=lambda: lambda _: None, init=False)
    over: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._queue = Queue((), 1)
        self._doubt = Doubt(1, 0)
        self._mine = Receipt()

    def open(self, queue: Queue, quarantine: Quarantine, doubt: Doubt) -> None:
        """Start handing out the units of a stage."""
        with self._lock:
            self._queue, self.quarantine, self._doubt = queue, quarantine, doubt
            if self.wish:
                queue.stop()

    def want(self, rank: int, receipt: Receipt) -> Grant:
        """Take a rank's receipt and give it its next units."""
        with self._lock:
            for key, seconds in receipt.finished:
                self._queue.finish(key, seconds)
                self._doubt.lift()
            for failure in receipt.failed:
                self._put_in_quarantine(failure)
            if receipt.finished or receipt.failed:
                self.progress.advance(len(receipt.finished), len(receipt.failed))
            self._note(receipt.wish)
            self._weigh()
            return self._queue.take(rank)

    def ask(self, receipt: Receipt) -> None:
        """Keep rank 0's own receipt until it fetches the answer."""
        self._mine = receipt

    def answer(self) -> Grant:
        """Answer rank 0."""
        return self.want(0, self._mine)

    def pulse(self, pulse: Pulse, wish: Wish) -> None:
        """Take a sign of life."""
        self.progress.pulse(pulse)
        with self._lock:
            self._note(wish)

    def event(self, name: str, **facts: object) -> None:
        """Add a record to ``events.jsonl``."""
        self.events.emit(name, **facts)

    def close_books(self, state: State) -> None:
        """Write down how the attempt ended; a signal that comes later must not undo it."""
        with self._lock:
            self.over = True
            self.progress.state = state

    def _note(self, wish: Wish) -> None:
        if wish and self.wish != "stop" and not self.over:
            if not self.wish:
                self.progress.state = "stopping"
                self.events.emit("stop", wish=wish)
            self.wish = self.progress.wish = wish
            self._queue.stop()
            self.on_wish(wish)

    def _put_in_quarantine(self, failure: UnitFailure) -> None:
        self._queue.finish(failure.key, failed=True)
        self.quarantine.add(failure)
        self.events.emit("quarantined", unit=failure.key, error=failure.error, rank=failure.rank)
        if self._doubt.note(failure):
            self._queue.probe(PROBES)

    def _weigh(self) -> None:
        """Go on with all units, or stop, where a few were tried because all before them had failed."""
        if self._doubt.lifted:
            self._queue.end_probe()
        elif self._queue.untried and self._doubt.settled(len(self._queue.in_flight)) and not self.wish:
            self.hopeless = self._doubt.failed
            self.quarantine.withdraw(failure.key for failure in self.hopeless)
            self._queue.stop()


class DeskThread:
    """Answers the other ranks' messages until it is closed."""

    def __init__(self, desk: Desk, comm: MPI.Intracomm) -> None:
        self._desk = desk
        self._comm = comm
        self._closing = threading.Event()
        self._thread = EngineThread("desk", self._serve)

    def close(self) -> None:
        """Answer what has arrived and end; call it after a barrier."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        from mpi4py import MPI

        status = MPI.Status()
        pause = _IDLE / 16
        while True:
            if self._comm.Iprobe(MPI.ANY_SOURCE, _REQUEST, status):
                self._handle(status.Get_source())
                pause = _IDLE / 16
            elif self._closing.is_set():
                return
            else:
                time.sleep(pause)
                pause = min(2 * pause, _IDLE)

    def _handle(self, source: int) -> None:
        from mpi4py import MPI

        kind: Literal["want", "pulse", "drained", "event"]
        kind, *content = self._comm.recv(source=source, tag=_REQUEST)
        if kind == "want":
            self._comm.send(self._desk.want(source, content[0]), dest=source, tag=_REPLY)
        elif kind in {"pulse", "drained"}:
            self._desk.pulse(*content)
            if kind == "drained":
                self._desk.drained.add(source)
            word = _WORDS[_WISHES.index(self._desk.wish) + _GO * self._desk.going]
            # Not waited for: the node it goes to may be cut off.
            self._comm.Isend([word, MPI.BYTE], dest=source, tag=_HEARD).Free()
            if self._desk.going:
                self._desk.sent_off.add(source)
        else:
            name, facts = content
            self._desk.event(name, **facts)


class RemoteDesk:
    """The desk as another rank sees it.

    Attributes
    ----------
    heard
        Grows with every word from the desk.
    on_word
        Told what the desk wishes, and whether to leave now.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.heard = 0
        self.on_word: Callable[[Wish, bool], None] = lambda *_: None
        self._unheard = 0
        self._taking = threading.Lock()

    def ask(self, receipt: Receipt) -> None:
        """Send the receipt."""
        self._comm.send(("want", receipt), dest=0, tag=_REQUEST)

    def answer(self) -> Grant:
        """Wait, politely, for the reply."""
        pause = 2e-5
        while not self._comm.Iprobe(0, _REPLY):
            time.sleep(pause)
            pause = min(2 * pause, 2e-3)
        grant = self._comm.recv(source=0, tag=_REPLY)
        assert isinstance(grant, Grant)  # noqa: S101 - for the type checker
        self.heard += 1
        return grant

    def pulse(self, pulse: Pulse, wish: Wish) -> None:
        """Send a sign of life; the desk's words that it was heard are taken with the next one."""
        self._take_words()
        self._send("pulse", pulse, wish)

    def drained(self, pulse: Pulse) -> None:
        """Say that all is durable that this rank had finished when it was told to stop."""
        self._send("drained", pulse, "")

    def _send(self, kind: str, pulse: Pulse, wish: Wish) -> None:
        with self._taking:
            self._unheard += 1
        self._comm.send((kind, pulse, wish), dest=0, tag=_REQUEST)

    def settle(self, seconds: float) -> None:
        """Wait so long until every sign of life was heard: no message may be left behind in MPI."""
        end = time.monotonic() + seconds
        while self._unheard and time.monotonic() < end:
            time.sleep(_IDLE)
            self._take_words()

    def _take_words(self) -> None:
        from mpi4py import MPI

        wish, go, word = 0, False, bytearray(1)
        with self._taking:  # two threads may wait for words
            while self._comm.Iprobe(0, _HEARD):
                self._comm.Recv([word, MPI.BYTE], source=0, tag=_HEARD)
                wish, go = max(wish, word[0] % _GO), go or word[0] >= _GO
                self.heard += 1
                self._unheard -= 1
        if wish or go:
            self.on_word(_WISHES[wish], go)

    def event(self, name: str, **facts: object) -> None:
        """Send a record."""
        self._comm.send(("event", name, facts), dest=0, tag=_REQUEST)
