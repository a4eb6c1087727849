"""`tessera verify`: whether every checkpoint of a run is sound, and what a resume would use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from hpc.cli.arguments import Parser
from hpc.cli.several import each
from hpc.errors import EXIT_DONE, EXIT_FAILED
from hpc.kernel_record import told
from hpc.rundir import RunDir
from hpc.terminal import say, visible
from hpc.watch.console import console
from hpc.watch.status import read_status

_STYLES: Final = {"ok": "green", "note": "yellow", "bad": "bold red", "unread": "magenta"}


def main(arguments: Sequence[str]) -> int:
    """Print a table of every file that a resume reads; return 0 if all are sound, 1 if any is not or cannot be read."""
    parser = Parser("verify", "Read every checkpoint of a run in full. Writes nothing; the run may be going on.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    return each(parser.read(arguments).runs, _verify)


def _verify(path: Path) -> int:
    run = RunDir.open(path)
    from hpc.store.verify import verify_run  # h5py and numpy, which an error above does without

    table = Table("file or stage", "", "what it holds, or what is wrong", box=None, pad_edge=False)
    table.columns[0].overflow = table.columns[2].overflow = "fold"  # a name that is cut cannot be looked for
    counts: Counter[str] = Counter()
    for verdict in verify_run(run):
        counts[verdict.status] += 1
        subject = visible(verdict.subject, lines=False)
        table.add_row(subject, verdict.status, verdict.text, style=_STYLES[verdict.status])
    console(wrap=True).print(table)
    said = [f"{counts['bad']} not sound; a resume does again what they held"] if counts["bad"] else []
    if counts["unread"]:
        said.append(f"{counts['unread']} cannot be read now; a resume waits for them, and stops if that does not end")
    kernels = told(run.path)
    buts = [kernels] if kernels else []
    if read_status(run.path).identity.others:
        buts.append("it went on with other inputs or code, or with large ones that cannot be told apart")
    sound = f"all sound, but {'; '.join(buts)}" if buts else "all sound"
    say("\n".join(said) or sound)
    return EXIT_FAILED if said else EXIT_DONE
