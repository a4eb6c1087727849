"""Arguments of a verb: argparse, with this package's errors instead of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hpc.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `hpc.errors.ConfigError` and names the nearest valid flags."""

    def __init__(self, verb: str, description: str, *, add_help: bool = True) -> None:
        super().__init__(
            prog=f"tessera {verb}".strip(),
            description=description,
            add_help=add_help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments in any order.

        Raises
        ------
        hpc.errors.ConfigError
            If one is unknown, missing or wrong.
        """
        found, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}; {nearest(unknown[0], flags)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        text = f"{message}; see {self.prog} --help"
        raise ConfigError(text)
