"""`tessera report`: write the report page of a run anew from what lies in its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE


def main(arguments: Sequence[str]) -> int:
    """Write ``RUN/report/index.html`` and print its path."""
    parser = Parser("report", "Write a run's report page, a single HTML file with its pictures, anew.")
    parser.add_argument("run", type=Path, help="the run directory")
    given = parser.read(arguments)
    from hpc.load import load_job
    from hpc.report.write import write_report
    from hpc.rundir import RunDir

    run = RunDir.open(given.run)
    run.report.parent.mkdir(exist_ok=True)
    write_report(load_job(run.load_config()["job"]), run)
    print(run.report)
    return EXIT_DONE
