"""`tessera status`: how far a run is, from its directory alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_COME_BACK, EXIT_DONE, EXIT_FAILED, EXIT_QUARANTINED, RunDirError
from hpc.launch.outcome import newest_log, resume_line
from hpc.terminal import say_data
from hpc.watch.console import console
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import Ask, Polled, efficiency
from hpc.watch.screen import listing, screen
from hpc.watch.status import LIVE, RunStatus, find_runs
from hpc.watch.sweeps import is_sweep, read_sweep

EXIT_NOT_OVER: Final = 4
"""Of ``--exit-code``: a run is at work, or waits."""

_CODES: Final = {
    "done": EXIT_DONE,
    "quarantined": EXIT_QUARANTINED,
    "stopped": EXIT_COME_BACK,
    **dict.fromkeys((*LIVE, "pending", "not started"), EXIT_NOT_OVER),
}
"""Of states; all others (failed, lost, unreadable) are failures."""

_WORST: Final = (EXIT_DONE, EXIT_QUARANTINED, EXIT_COME_BACK, EXIT_FAILED, EXIT_NOT_OVER)
"""From weak to strong: of several runs the strongest counts, and as long as one is not over, that one."""


def main(arguments: Sequence[str]) -> int:
    """Print the status of runs, or of all runs below folders."""
    parser = Parser(
        "status",
        "Show how far runs are. Reads their directories only: works from any machine.\n\n"
        "With --exit-code: 0 done, 3 done but for quarantined units, 75 stopped and resumable, 1 failed or lost,\n"
        "4 at work, waiting or not started. Of several runs: 4 while any is not over, then the worst of 1, 75, 3, 0.",
    )
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("runs")], help="runs, or folders of runs [runs]")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per run")
    parser.add_argument("--watch", action="store_true", help="redraw every second until the runs have ended")
    parser.add_argument("--exit-code", action="store_true", help="answer with the state (see above)")
    given = parser.read(arguments)
    paths = [path.absolute() for path in given.paths or [Path("runs")]]
    runs = _read(paths)
    if given.json:
        single = [r.path for r in runs] == [str(path) for path in paths] and len(runs) == 1
        say_data(json.dumps(runs[0].as_json() if single else [r.as_json() for r in runs], indent=1))
    elif given.watch:
        runs = _watch(paths)
    else:
        console().print(_pictures(runs, paths))
    return exit_code(runs) if given.exit_code else EXIT_DONE


def exit_code(runs: Sequence[RunStatus]) -> int:
    """Return what ``--exit-code`` answers for some runs."""
    return max((_CODES.get(run.state, EXIT_FAILED) for run in runs), key=_WORST.index)


def _read(paths: Sequence[Path], ask: Ask | None = None) -> list[RunStatus]:
    found = dict.fromkeys(run for path in paths for run in find_runs(path))
    return read_statuses(list(found), ask)


def _pictures(runs: Sequence[RunStatus], paths: Sequence[Path]) -> RenderableType:
    if len(paths) == 1:
        return _picture(runs, paths[0])
    return listing(runs, Path(os.path.commonpath([path.parent for path in paths])), {})


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
        log = newest_log(path)
        parts += [Text(f"logs         {log}")] if log else []
        parts.append(Text(f"go on with:  {resume_line(path)}"))
    return Group(*parts)


def _watch(paths: Sequence[Path]) -> list[RunStatus]:
    """Redraw until no run is at work; Ctrl-C ends the watching only, and that is no failure."""
    from rich.live import Live

    ask = Polled()
    with Live(console=console(wrap=True), auto_refresh=False) as live:
        while True:
            runs = _read(paths, ask)
            live.update(_pictures(runs, paths), refresh=True)
            if all(run.state not in (*LIVE, "not started", "pending") for run in runs):
                return runs
            try:
                time.sleep(1)
            except KeyboardInterrupt:
                return runs
