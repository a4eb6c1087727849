"""Coloured text and tables on standard output; what they are made of commands neither the terminal nor rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hpc.terminal import visible

_ENDLESS: Final = 10_000
"""Columns where no terminal sets a limit: what goes through a pipe is not cut."""


class _Plain(Console):
    """A console that shows control characters of the text, and sends none but its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)  # before its width is measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and (shown := visible(segment.text)) != segment.text:
                yield Segment(shown, segment.style)
            else:
                yield segment


def console(*, wrap: bool = False) -> Console:
    """Return a console on standard output.

    Parameters
    ----------
    wrap
        Whether long lines of text are broken where the terminal ends; paths and commands are for copying.
    """
    width = None if sys.stdout.isatty() else _ENDLESS
    # Markup and emoji codes are found in any text that is no `Text`: names of files and units are data.
    return _Plain(highlight=False, markup=False, emoji=False, soft_wrap=not wrap, width=width)
