"""`tessera report`: write the report page of a run, or the table of a sweep, anew from what lies there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hpc.cli.arguments import Parser
from hpc.cli.several import each
from hpc.errors import EXIT_DONE, TRUST
from hpc.ownership import load_trusted
from hpc.terminal import complain, say


def main(arguments: Sequence[str]) -> int:
    """Write ``RUN/report/index.html``, or ``SWEEP_DIR/sweep.csv`` and ``.h5``, and print the path."""
    parser = Parser("report", "Write a run's report page, or the table of a sweep with a row for each run, anew.")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs or of sweeps")
    parser.add_argument(TRUST, action="store_true", help="do it although somebody else can have written it")
    given = parser.read(arguments)
    return each(given.runs, partial(_report, trusted=given.trust_owner))


def _report(path: Path, *, trusted: bool) -> int:
    from hpc.watch.sweeps import is_sweep

    if is_sweep(path):
        from hpc.report.gather import gather

        say("\n".join(map(str, gather(path.absolute()))))
        return EXIT_DONE
    from hpc.load import load_job
    from hpc.report.write import write_report
    from hpc.rundir import RunDir

    run = RunDir.open(path)
    job = load_trusted(run, trusted=trusted)["job"]  # whose module is imported
    run.report.parent.mkdir(exist_ok=True)
    left_out = write_report(load_job(job), run)
    say(str(run.report))
    for text in left_out:
        complain(f"warning: {text}")
    return EXIT_DONE
