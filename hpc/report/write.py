"""Put a run's report page together from what lies in its directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpc.report.page import render_page
from hpc.report.view import RunView, Section
from hpc.rundir import RunDir
from hpc.store.atomic import write_bytes
from hpc.watch.events import scan_events

if TYPE_CHECKING:
    from hpc.job import Job


def view_run(run: RunDir) -> RunView:
    """Return what the report needs to know of a run."""
    left_out = []
    try:
        lines = list(scan_events(run.events_file))
    except OSError as error:
        lines = []
        left_out.append(f"{run.events_file.name} cannot be read ({error.strerror}), so the page says nothing of it.")
    events = [event for event in lines if event is not None]
    if damaged := len(lines) - len(events):
        what = "1 line of it is" if damaged == 1 else f"{damaged} of its lines are"
        left_out.append(f"{run.events_file.name}: {what} damaged and left out.")
    timings: dict[str, float] = {}
    for event in events:
        if event["event"] == "timing":
            timings = dict(event["seconds"])
    return RunView(run.path, run.load_config(), events, timings, left_out)


def write_report(job: Job, run: RunDir) -> Sequence[str]:
    """Write ``RUN/report/index.html``, self-contained, from the engine's records and the workload's sections.

    Returns
    -------
    sequence of str
        What the page lacks because a file is damaged, as it says itself.
    """
    view = view_run(run)
    sections: Sequence[Section] = ()
    try:
        sections = job.report(view)
    except Exception as error:  # results may be damaged or gone: what the engine knows is worth a page
        logging.getLogger("tessera").warning("the workload's part of the report failed", exc_info=error)
        text = f"The workload's part is missing, because it could not be drawn: {type(error).__name__}: {error}"
        view = replace(view, left_out=[*view.left_out, text])
    page = render_page(run, view, sections)
    write_bytes(run.report, page.encode("utf-8", "replace"))  # half a surrogate pair, and names that are no UTF-8
    return view.left_out
