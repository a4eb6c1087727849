"""`tessera verify`: whether every checkpoint of a run is sound, and what a resume would use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE, EXIT_FAILED
from hpc.rundir import RunDir

_STYLES: Final = {"ok": "green", "note": "yellow", "bad": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """Print a table of every file that a resume reads; return 0 if all are sound, 1 if any is not."""
    parser = Parser("verify", "Read every checkpoint of a run in full. Writes nothing; the run may be going on.")
    parser.add_argument("run", type=Path, help="the run directory")
    run = RunDir.open(parser.read(arguments).run)
    from hpc.store.verify import verify_run  # h5py and numpy, which an error above does without

    table = Table("file or stage", "", "what it holds, or what is wrong", box=None, pad_edge=False)
    bad = 0
    for verdict in verify_run(run):
        bad += verdict.status == "bad"
        table.add_row(verdict.subject, verdict.status, verdict.text, style=_STYLES[verdict.status])
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{bad} not sound; a resume does again what they held" if bad else "all sound")
    return EXIT_FAILED if bad else EXIT_DONE
