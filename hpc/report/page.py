"""The report page: what a run did, found and met, as one self-contained HTML text.

Nothing is fetched when the page is opened: styles are inline, pictures are data URIs, and there is no script.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import yaml

from hpc.report.html import block, details, escape, facts, section, table
from hpc.report.timeline import PALETTE, timeline
from hpc.report.view import RunView, Section, Table
from hpc.rundir import RunDir
from hpc.store.plain import read_json
from hpc.watch.screen import amount, duration, inputs_text, speed
from hpc.watch.status import RunStatus, read_status

_TONE: Final = {"done": "good", "failed": "bad", "lost": "bad", "unreadable": "bad"}
"""How a state is coloured; all others mildly."""

_NOTED: Final = frozenset({"warning", "fallback", "unit_failed", "stop", "left_out"})
"""Events that a reader of the results should know of."""

_LISTED: Final = 200
"""Units and events that are shown; a page of thousands would not open."""

_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Makes the browser enforce that the page loads nothing, whatever a workload put into it."""


def render_page(run: RunDir, view: RunView, sections: Sequence[Section]) -> str:
    """Return the page.

    Parameters
    ----------
    run
        The run's directory: progress, quarantine and provenance are read from it.
    view
        Configuration, events and timings.
    sections
        The workload's own part: what the scientist came for, so it comes first.

    Returns
    -------
    str
        A complete HTML document.

    Raises
    ------
    ValueError
        If a figure of a section is neither PNG nor SVG.
    """
    status = read_status(run.path)
    provenance = _json(run.provenance_file)
    # Stages of the events, too: the progress file may be younger, or damaged.
    named = [s.name for s in status.stages] + [str(e["stage"]) for e in view.events if e["event"] == "stage_start"]
    colours = dict(zip(dict.fromkeys(named), cycle(PALETTE), strict=False))
    parts = [
        _header(status, view, provenance),
        *(f'<p class="warning">{escape(text)}</p>' for text in view.left_out),
        _quarantine(run.quarantined()),
        *(section(s) for s in sections),
        _stages(status, colours),
        _how_it_ran(view, colours),
        _checkpoints(view.events),
        _notes(view.events),
        _origin(provenance, view.config),
    ]
    title = f"{status.job} – {run.path.name}"
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    made = f"Written by tessera {escape(provenance.get('version', ''))} on {_date(status.updated)}."
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head>"
        f"<body><main>{''.join(parts)}<footer>{made}</footer></main></body></html>\n"
    )


def _header(status: RunStatus, view: RunView, provenance: Mapping[str, Any]) -> str:
    badge = f'<span class="badge {_TONE.get(status.state, "mild")}">{escape(status.state)}</span>'
    units = sum(stage.done for stage in status.stages)
    shown: dict[str, object] = {
        "finished": _date(status.updated),
        "work": duration(_worked(view.events)),
        "units": units,
        "ranks × threads": f"{status.size} × {status.threads}",
        "attempts": max(status.attempt, len(_attempts(provenance))),
    }
    if status.identity.code:
        shown |= {"code": status.identity.code, "inputs": inputs_text(status)}
    if status.quarantined:
        shown["quarantined"] = status.quarantined
    messages = [text for text in (status.message, status.kernels, *status.identity.others) if text]
    message = "".join(f'<p class="warning">{escape(text)}</p>' for text in messages)
    return (
        f'<header><h1>{escape(status.job)}{badge}</h1><div class="path">{escape(view.path)}</div>'
        f"{facts(shown)}</header>{message}"
    )


def _worked(events: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of all attempts together, without the pauses between them."""
    from hpc.report.timeline import attempts

    return sum(attempt.seconds for attempt in attempts(events))


def _quarantine(records: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    shown = [
        details(f"{stage} · {key} · {record.get('error', '')}", str(record.get("traceback", "")))
        for stage, units in records.items()
        for key, record in units.items()
    ]
    if not shown:
        return ""
    text = "<p>These units failed every try. The results lack them; all others are complete.</p>"
    return block("Quarantined units", text, *shown[:_LISTED], _rest(len(shown), "checkpoints/*/quarantine.json"))


def _stages(status: RunStatus, colours: Mapping[str, str]) -> str:
    rows = [
        (
            stage.name,
            "units" if stage.kind == "map" else "steps",
            stage.done,
            stage.total,
            stage.restored or None,
            stage.quarantined or None,
            duration(stage.seconds) if stage.seconds else None,
            # Restored units cost this attempt nothing: they would flatter its speed.
            speed((stage.done - stage.restored) / stage.seconds) if stage.seconds else None,
        )
        for stage in status.stages
    ]
    columns = ("stage", "of", "done", "total", "restored", "quarantined", "wall time", "speed")
    caption = "Wall time and speed are those of the last attempt; restored units came from earlier ones."
    return block("Stages", table(Table(columns, rows, caption), [colours[s.name] for s in status.stages]))


def _how_it_ran(view: RunView, colours: Mapping[str, str]) -> str:
    picture = timeline(view.events, colours)
    caption = (
        "Filled: time in units. Pale: waiting for other ranks, for the merge or for the disk. "
        "A dashed line marks where the run was stopped and resumed."
    )
    parts = [f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"] if picture else []
    if view.timings:
        rows = [(name, float(seconds)) for name, seconds in view.timings.items()]
        parts.append(table(Table(("part", "seconds"), rows, "The longest over all ranks, in the last attempt.")))
    return block("How it ran", *parts) if parts else ""


def _checkpoints(events: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for event in events:
        if event["event"] != "stage_end":
            continue
        ranks = event.get("ranks", ())
        files, size, blocked, wall = (
            sum(float(r.get(name, 0)) for r in ranks) for name in ("files", "nbytes", "blocked", "wall")
        )
        share = 100 * blocked / wall if wall else 0.0
        rows.append((event["stage"], int(files), amount(size), blocked, share))
    if not rows:
        return ""
    columns = ("stage", "files", "saved", "blocked, s", "of the ranks' time, %")
    caption = "What saving cost: blocked is the time the ranks could not compute because of it, all ranks together."
    return block("Checkpoints", table(Table(columns, rows, caption)))


def _notes(events: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (_date(event["t"]), event["event"].replace("_", " "), _words(event))
        for event in events
        if event["event"] in _NOTED
    ]
    if not rows:
        return ""
    listed = table(Table(("when", "what", "details"), rows[:_LISTED]))
    return block("Worth knowing", listed, _rest(len(rows), "events.jsonl"))


def _rest(number: int, file: str) -> str:
    return f"<p>{number - _LISTED} more are in {escape(file)}.</p>" if number > _LISTED else ""


def _words(event: Mapping[str, Any]) -> str:
    """Return the facts of an event as words; a lone text needs no name."""
    rest = {key: value for key, value in event.items() if key not in {"t", "event"}}
    if set(rest) == {"text"}:
        return str(rest["text"])
    return ", ".join(f"{key}: {value}" for key, value in rest.items())


def _origin(provenance: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    rows = []
    for number, attempt in enumerate(_attempts(provenance), start=1):
        code = attempt.get("code")
        code = code if isinstance(code, dict) else {}
        commit = str(code.get("commit", ""))[:10] + (" + changes" if code.get("dirty") else "")
        shape = f"{attempt.get('ranks')} × {attempt.get('threads_per_process')}"
        rows.append((number, _date(attempt.get("started")), attempt.get("host"), shape, commit or None))
    parts = [table(Table(("attempt", "started", "host", "ranks × threads", "code"), rows))] if rows else []
    parts.append(details("Configuration", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)))
    if provenance:
        parts.append(details("Provenance", json.dumps(provenance, indent=1, ensure_ascii=False)))
    return block("Where it comes from", *parts)


def _attempts(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the attempts of a record that may be damaged."""
    listed = provenance.get("attempts")
    return [attempt for attempt in listed if isinstance(attempt, dict)] if isinstance(listed, list) else []


def _date(epoch: object) -> str:
    try:
        return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%S} UTC"  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):  # none, or of a damaged file
        return "–"


def _json(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
