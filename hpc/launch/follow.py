"""What the screen shows while the ranks work: a live picture in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from hpc.terminal import has_room, say
from hpc.watch.status import LIVE, RunStatus

if TYPE_CHECKING:
    from rich.live import Live

_EVERY: Final = 10.0
"""Seconds between plain lines, unless the state or the stage changes."""


class Display(Protocol):
    """Something that shows a run."""

    def update(self, status: RunStatus, started: float) -> None:
        """Show the status, if the ranks wrote it after ``started`` (an epoch)."""

    def say(self, text: str) -> None:
        """Show a sentence."""


@contextmanager
def display(run: Path) -> Iterator[Display]:
    """Return the display that fits standard output."""
    if not sys.stdout.isatty():
        say(f"running {run}")
        yield Lines()
        return
    from rich.live import Live

    from hpc.watch.console import console

    with Live(console=console(wrap=True), auto_refresh=False) as live:
        picture = Picture(live, f"starting the ranks of {run}")
        yield picture
        picture.say("")


class Picture:
    """A picture of the run that is redrawn in place; ``words`` stand for it until the ranks have written."""

    def __init__(self, live: Live, words: str) -> None:
        self._live = live
        self._placeholder = words
        self._words = ""
        self._status: RunStatus | None = None

    def update(self, status: RunStatus, started: float) -> None:
        """Redraw."""
        if status.updated is not None and status.updated >= started:
            self._status = status
        self._draw()

    def say(self, text: str) -> None:
        """Show a sentence below the picture, in the place of the one before."""
        self._words = text
        self._draw()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        from hpc.watch.screen import screen

        picture = screen(self._status, time.time()) if self._status else Text(self._placeholder, style="dim")
        words = [Text(self._words, style="yellow")] if self._words else []
        if not has_room():
            return  # a reader that has fallen asleep must not hold up who follows the run
        self._live.update(Group(picture, *words), refresh=True)


class Lines:
    """Plain lines: the state when it changes, and the count every ten seconds."""

    def __init__(self) -> None:
        self._shown: tuple[str, str | None] = ("", None)
        self._next = 0.0

    def update(self, status: RunStatus, started: float) -> None:
        """Print a line if there is news or it is time."""
        if status.updated is None or status.updated < started:
            return
        news = (status.state, status.stage)
        if status.state not in LIVE:
            return  # how it ended is told by the closing words
        if news == self._shown and time.monotonic() < self._next:
            return
        from hpc.watch.screen import line

        self._shown, self._next = news, time.monotonic() + _EVERY
        if has_room():
            say(line(status))

    def say(self, text: str) -> None:
        """Print a sentence."""
        if has_room():
            say(text)
