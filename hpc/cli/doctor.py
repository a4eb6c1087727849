"""`tessera doctor`: whether runs will work here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE, EXIT_FAILED

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red"), "skipped": ("–", "dim")}


def main(arguments: Sequence[str]) -> int:
    """Print every finding; 0 if nothing failed."""
    parser = Parser("doctor", "Check packages, threads, MPI, the file system, GPUs and SLURM.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(), help="where runs will lie [here]")
    given = parser.read(arguments)
    from hpc.doctor import examine

    console = Console(highlight=False, soft_wrap=True)
    failed = False
    for finding in examine(given.directory.absolute()):
        mark, style = _MARKS[finding.status]
        text = Text(f"{mark:5}", style=style)
        text.append(f" {finding.name}: ", style="bold")
        text.append(finding.text, style="")
        if finding.remedy:
            text.append(f"\n      → {finding.remedy}", style="yellow")
        console.print(text)
        failed |= finding.status == "fail"
    return EXIT_FAILED if failed else EXIT_DONE
