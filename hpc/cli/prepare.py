"""`tessera prepare`: make a run directory for a batch script of one's own, and start nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE
from hpc.terminal import say


def main(arguments: Sequence[str]) -> int:
    """Compose and check a run, write its directory, and print its path; twice does no harm."""
    parser = Parser("prepare", "Make a run's directory without starting it: srun python -P -m hpc.rank RUN does that.")
    parser.add_argument("overrides", nargs="+", help="as for a run: job=NAME run.dir=RUN key=value …")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], help="folder with job/NAME.yaml, …")
    given = parser.read(arguments)
    from hpc.cli.compose import compose_run
    from hpc.cli.folders import config_folders
    from hpc.identity import refuse_others
    from hpc.rundir import RunDir

    composed = compose_run(given.overrides, config_folders(given.config_dir), Path.cwd())
    settings = composed.settings
    run = RunDir.prepare(settings.run.dir, composed.mapping, lambda old: refuse_others(old, settings))
    say(str(run.path))
    return EXIT_DONE
