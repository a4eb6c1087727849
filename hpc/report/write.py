"""Put a run's report page together from what lies in its directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc.report.page import render_page
from hpc.report.view import RunView
from hpc.rundir import RunDir
from hpc.store.atomic import write_bytes
from hpc.watch.events import read_events

if TYPE_CHECKING:
    from hpc.job import Job


def view_run(run: RunDir) -> RunView:
    """Return what the report needs to know of a run."""
    events = list(read_events(run.events_file))
    timings: dict[str, float] = {}
    for event in events:
        if event["event"] == "timing":
            timings = dict(event["seconds"])
    return RunView(run.path, run.load_config(), events, timings)


def write_report(job: Job, run: RunDir) -> None:
    """Write ``RUN/report/index.html``, self-contained, from the engine's records and the workload's sections."""
    view = view_run(run)
    write_bytes(run.report, render_page(run, view, job.report(view)).encode())
