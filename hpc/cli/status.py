"""`tessera status`: how far a run is, from its directory alone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE, RunDirError
from hpc.launch.outcome import resume_line
from hpc.terminal import say_data
from hpc.watch.console import console
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import Ask, Polled, efficiency
from hpc.watch.screen import listing, screen
from hpc.watch.status import LIVE, RunStatus, find_runs
from hpc.watch.sweeps import is_sweep, read_sweep


def main(arguments: Sequence[str]) -> int:
    """Print the status of a run, or of all runs below a folder."""
    parser = Parser("status", "Show how far a run is. Reads its directory only: works from any machine.")
    parser.add_argument("path", nargs="?", type=Path, default=Path("runs"), help="run, or folder of runs [runs]")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per run")
    parser.add_argument("--watch", action="store_true", help="redraw every second until the runs have ended")
    given = parser.read(arguments)
    path = given.path.absolute()
    runs = _read(path)
    if given.json:
        single = [r.path for r in runs] == [str(path)]
        say_data(json.dumps(runs[0].as_json() if single else [r.as_json() for r in runs], indent=1))
    elif given.watch:
        _watch(path)
    else:
        console().print(_picture(runs, path))
    return EXIT_DONE


def _read(path: Path, ask: Ask | None = None) -> list[RunStatus]:
    return read_statuses(find_runs(path), ask)


def _picture(runs: Sequence[RunStatus], path: Path) -> RenderableType:
    if [run.path for run in runs] != [str(path)]:
        try:
            labels = {str(path / m.run): m.label for m in read_sweep(path)} if is_sweep(path) else {}
        except RunDirError as error:  # the runs are there all the same
            return Group(listing(runs, path, {}), Text(str(error), style="red"))
        return listing(runs, path, labels)
    parts = [screen(runs[0], time.time())]
    over = runs[0].state not in (*LIVE, "pending", "not started") and not runs[0].slurm_silent
    if runs[0].slurm_job and over and (used := efficiency(runs[0].slurm_job)):
        parts.append(Text(used, style="dim"))
    if runs[0].state in {"stopped", "failed", "lost"}:
        parts.append(Text(f"go on with:  {resume_line(path)}"))
    return Group(*parts)


def _watch(path: Path) -> None:
    """Redraw until no run is at work; Ctrl-C ends the watching only, and that is no failure."""
    from rich.live import Live

    ask = Polled()
    with Live(console=console(wrap=True), auto_refresh=False) as live:
        while True:
            runs = _read(path, ask)
            live.update(_picture(runs, path), refresh=True)
            if all(run.state not in (*LIVE, "not started", "pending") for run in runs):
                return
            try:
                time.sleep(1)
            except KeyboardInterrupt:
                return
