"""The report page: self-contained, escaped, and true to the records."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from hpc.report.html import cell_text, table
from hpc.report.page import render_page
from hpc.report.timeline import attempts, spans, timeline
from hpc.report.view import Figure, Section, Table
from hpc.report.write import view_run
from hpc.rundir import RunDir

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
EVIL = '<script>alert("x")</script>'
RANKS = [
    {"rank": 0, "wall": 10.0, "busy": 9.0, "units": 3, "files": 1, "nbytes": 2048, "blocked": 0.5},
    {"rank": 1, "wall": 10.0, "busy": 5.0, "units": 2, "files": 1, "nbytes": 2048, "blocked": 0.5},
]
EVENTS = [
    {"t": 100.0, "event": "run_start", "attempt": 1},
    {"t": 101.0, "event": "stage_start", "stage": "fit", "units": 5},
    {"t": 105.0, "event": "unit_failed", "stage": "fit", "unit": "u1", "error": EVIL},
    {"t": 106.0, "event": "stop", "wish": "stop"},
    {"t": 5000.0, "event": "run_start", "attempt": 2},
    {"t": 5001.0, "event": "stage_start", "stage": "fit", "units": 5},
    {"t": 5011.0, "event": "stage_end", "stage": "fit", "seconds": 10.0, "units": 5, "ranks": RANKS},
    {"t": 5011.5, "event": "timing", "seconds": {"merge": 0.5}},
    {"t": 5012.0, "event": "run_end", "state": "quarantined"},
]


class Page(HTMLParser):
    """Collects tags and checks that they are nested properly."""

    void = frozenset({"meta", "img", "rect", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    (path / "checkpoints" / "fit").mkdir(parents=True)
    config = {"job": {"name": f"toy {EVIL}", "note": EVIL}, "engine": {"heartbeat": 2.0}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    stage = {"name": "fit", "kind": "map", "state": "done", "done": 4, "total": 5, "quarantined": 1, "restored": 2}
    progress = {"state": "quarantined", "attempt": 2, "stage": None, "stages": [{**stage, "seconds": 10.0}]}
    progress |= {"rate": 0, "eta": None, "started": 5000.0, "updated": 5012.0, "size": 2, "threads": 1}
    (path / "progress.json").write_text(json.dumps({**progress, "ranks": [], "message": EVIL}))
    record = {"u1": {"error": f"ValueError: {EVIL}", "traceback": "Traceback\n  line <1>", "rank": 0, "attempt": 1}}
    (path / "checkpoints" / "fit" / "quarantine.json").write_text(json.dumps(record))
    (path / "provenance.json").write_text(json.dumps({"version": "0.1.0", "attempts": [{"started": 100.0}]}))
    return RunDir(path)


def page(run, *sections):
    return render_page(run, view_run(run), sections)


def test_the_page_is_self_contained(run):
    text = page(run, Section("Pictures", figures=[Figure(PNG, "a"), Figure(b"<svg xmlns='x'/>", "b")]))
    parsed = Page(text)
    assert "script" not in {tag for tag, _ in parsed.tags}
    sources = [attrs["src"] for tag, attrs in parsed.tags if tag == "img"]
    assert sources[0] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert sources[1].startswith("data:image/svg+xml;base64,")
    assert not [attrs for _, attrs in parsed.tags if attrs.keys() & {"href", "onload", "onclick", "action"}]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_everything_is_escaped(run):
    evil = Section(EVIL, EVIL, [Table([EVIL, "n"], [(EVIL, 1)], EVIL)], [Figure(PNG, f'"{EVIL}')])
    text = page(run, evil)
    Page(text)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "line &lt;1&gt;" in text


def test_the_page_tells_what_happened(run):
    text = page(run, Section("Fluxes", "One.\n\nTwo.", [Table(("band", "n"), [("g", np.int64(3)), ("r", None)])]))
    for part in ("quarantined", "<p>One.</p><p>Two.</p>", "unit failed", "merge", "4 KiB", "2 × 1", "1970-01-01"):
        assert part in text
    assert text.index("Quarantined units") < text.index("Fluxes") < text.index("How it ran")
    # Two of the four units were restored, so the attempt did two in ten seconds.
    assert "<td>12/min</td>" in text


def test_a_lost_progress_file_does_not_cost_the_page(run):
    run.progress_file.unlink()
    assert "<svg" in page(run)


def test_a_figure_of_unknown_kind_is_refused(run):
    with pytest.raises(ValueError, match="neither PNG nor SVG"):
        page(run, Section("x", figures=[Figure(b"GIF89a", "moving")]))


def test_pages_of_many_failures_stay_small(run):
    records = {f"u{i}": {"error": "e", "traceback": "t" * 1000} for i in range(5000)}
    (run.path / "checkpoints" / "fit" / "quarantine.json").write_text(json.dumps(records))
    text = page(run)
    assert len(text) < 500_000
    assert "4800 more are in checkpoints/*/quarantine.json" in text


def test_time_between_attempts_is_cut_out():
    first, second = attempts(EVENTS)
    assert (first.seconds, second.offset, second.seconds) == (6.0, 6.0, 12.0)
    (interrupted,) = spans(first)
    assert (interrupted.begin, interrupted.end, len(interrupted.ranks)) == (1.0, 6.0, 0)
    (whole,) = spans(second)
    assert (whole.begin, whole.end, len(whole.ranks)) == (7.0, 17.0, 2)


def test_the_timeline_is_to_scale():
    svg = timeline(EVENTS, {"fit": "#123456"})
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="15.0"', svg)]
    pale0, busy0, pale1, busy1 = widths
    assert pale0 == pale1
    assert busy0 / pale0 == pytest.approx(0.9, abs=0.001)
    assert busy1 / pale1 == pytest.approx(0.5, abs=0.001)
    assert 'class="break"' in svg
    assert timeline([], {}) == ""
    assert timeline(EVENTS[:4], {"fit": "#123456"}) == ""


def test_cells():
    assert [cell_text(v) for v in (None, 1.23456, np.float64(0.000123456), 7, "x")] == [
        "–",
        "1.235",
        "0.0001235",
        "7",
        "x",
    ]
    html = table(Table(("a", "b", "c"), [(1, "x", True)]))
    assert html.count('class="number"') == 2  # head and cell of the first column only
