"""The state of a run as text for a terminal: tables for people, plain lines for logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpc.terminal import visible
from hpc.watch.status import LIVE, RankStatus, RunStatus, StageStatus

COLOURS = {
    "starting": "cyan",
    "running": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "quarantined": "yellow",
    "done": "green",
    "not started": "dim",
    "pending": "blue",
}
"""Of the states; all others (failed, lost, unreadable) are red."""

SHOWN_RANKS = 16
"""More are summed up: a screen has few lines."""


_NOTE = 70
"""Letters of a message in a listing; the run's own status shows all of it."""

_NOTE_LEAST = 24
"""Letters below which a message in a listing is left out."""

_ENOUGH = 5
"""Units of a rank before its speed says anything."""


def pace(status: RunStatus) -> str:
    """Return rate and, where it is known, time to go."""
    left = "" if status.eta is None else f", {duration(status.eta)} to go"
    return f"{speed(status.rate)}{left}"


def duration(seconds: float | None) -> str:
    """Return a time span in at most two units, ``3 h 07 min``; an en dash if it is not known."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def speed(rate: float | None) -> str:
    """Return units per second, or per minute or hour where that reads better."""
    if not rate:
        return "–"
    for per, name in ((1.0, "s"), (60.0, "min"), (3600.0, "h")):
        if rate * per >= 1:
            return f"{rate * per:.3g}/{name}"
    return f"{rate * 86400:.3g}/day"


def state_text(status: RunStatus) -> Text:
    """Return the state, coloured, with how long a lost run has been silent."""
    text = Text(status.state, style=f"bold {COLOURS.get(status.state, 'red')}")
    if status.state == "lost":
        text.append(f" (silent for {duration(status.silent)})", style="red")
    return text


def screen(status: RunStatus, now: float) -> RenderableType:
    """Return one run in full: its stages with bars, then its ranks.

    Parameters
    ----------
    status
        As read by `hpc.watch.status.read_status`.
    now
        The present as an epoch, from which ages are counted.
    """
    parts: list[RenderableType] = [_heading(status)]
    if status.stages:
        parts.append(_stages(status))
        if status.current is not None and status.current.figures:
            parts.append(Text(figures(status.current)))
    if status.ranks and status.state not in {"done", "quarantined"}:
        parts.append(_ranks(status.ranks, now) if len(status.ranks) <= SHOWN_RANKS else _rank_summary(status, now))
    if status.failure is not None and status.state == "failed":
        parts.append(Text(status.failure.told, style="red"))
        parts.extend([Text(status.failure.quoted, style="dim")] if status.failure.quoted else [])
    elif status.message:
        parts.append(Text(status.message, style="dim"))
    if status.slurm_silent:
        parts.append(Text(status.slurm_silent, style="yellow"))
    if status.kernels:
        parts.append(Text(status.kernels, style="yellow"))
    parts.extend(Text(other, style="yellow") for other in status.identity.others)
    if status.identity.code:
        parts.append(Text(f"code {status.identity.code}; {inputs_text(status)}", style="dim"))
    return Group(*parts)


def inputs_text(status: RunStatus) -> str:
    """Return how many input files a run has, and their size."""
    count = status.identity.inputs
    return f"{count} input{'' if count == 1 else 's'}, {amount(status.identity.nbytes)}" if count else "no input files"


def amount(nbytes: float) -> str:
    """Return a size in the unit in which it reads best."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"


def _heading(status: RunStatus) -> Text:
    text = Text()
    text.append(status.job or "run", style="bold")
    text.append("  ")
    text.append_text(state_text(status))
    if status.size:
        ranks = "rank" if status.size == 1 else "ranks"
        threads = "thread" if status.threads == 1 else "threads"
        text.append(f"  {status.size} {ranks} × {status.threads} {threads}", style="dim")
    if status.slurm_job:
        text.append(f"  SLURM job {status.slurm_job}", style="dim")
    if status.attempt > 1:
        text.append(f"  attempt {status.attempt}", style="dim")
    if status.started is not None and status.updated is not None:
        text.append(f"  {duration(status.updated - status.started)}", style="dim")
    if status.state in LIVE and status.checkpoint_age is not None:
        text.append(f"  saved {duration(status.checkpoint_age)} ago", style="dim")
    text.append(f"\n{status.path}", style="dim")
    return text


def _stages(status: RunStatus) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for column in ("name", "bar", "done", "note"):
        table.add_column(column, justify="right" if column == "done" else "left", no_wrap=True)
    for stage in status.stages:
        live = stage.name == status.stage and stage.state == "running"
        table.add_row(
            Text(stage.name, style="bold" if live else "dim" if stage.state == "pending" else ""),
            ProgressBar(total=max(stage.total, 1), completed=_filled(stage), width=28, finished_style="green"),
            f"{stage.done}/{stage.total or '?'}" if stage.done or stage.total else "–",
            _note(stage, status if live else None),
        )
    return table


def figures(stage: StageStatus) -> str:
    """Return what a loop says of its state, ``cost 1.234e+05  radius 0.5``; empty for a map."""
    words = (f"{k} {v}" if isinstance(v, str) else f"{k} {v:.6g}" for k, v in stage.figures.items())
    return "  ".join(words)


def _filled(stage: StageStatus) -> float:
    if stage.state == "done":
        return max(stage.total, 1)
    return stage.done if stage.total else 0


def _note(stage: StageStatus, live: RunStatus | None) -> Text:
    """Return the rest of a stage's line; ``live`` is the run if the stage is being worked on."""
    words = []
    if live is not None and live.state == "running" and live.rate:
        words.append(pace(live))
    elif stage.state == "done":
        words.append(duration(stage.seconds))
    elif stage.state == "pending":
        words.append("waiting")
    if stage.restored:
        words.append(f"{stage.restored} restored")
    text = Text(", ".join(words), style="dim")
    if stage.quarantined:
        text.append(f"{', ' if words else ''}{stage.quarantined} quarantined", style="bold red")
    return text


def _ranks(ranks: Sequence[RankStatus], now: float) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    late = stragglers(ranks)
    for name in ("rank", "host", "done", "rate", "busy", "memory", "heard", "unit"):
        table.add_column(name, justify="left" if name in {"host", "unit"} else "right", no_wrap=True)
    for rank in ranks:
        table.add_row(
            str(rank.rank),
            Text(rank.host),
            str(rank.done),
            Text(speed(rank.done / rank.busy if rank.busy else None), style="yellow" if rank.rank in late else ""),
            duration(rank.busy),
            f"{rank.rss_mb:.0f} MiB",
            f"{duration(max(0.0, now - rank.heartbeat))} ago",
            Text(rank.unit or "–", style="" if rank.unit else "dim"),
        )
    return table


def stragglers(ranks: Sequence[RankStatus]) -> set[int]:
    """Return the ranks that do less than half as many units a busy second as the middle one: a slow node shows so."""
    rates = {rank.rank: rank.done / rank.busy for rank in ranks if rank.busy and rank.done >= _ENOUGH}
    if len(rates) < 3:
        return set()
    middle = sorted(rates.values())[len(rates) // 2]
    return {rank for rank, rate in rates.items() if rate < middle / 2}


def _rank_summary(status: RunStatus, now: float) -> Text:
    oldest = min(status.ranks, key=lambda r: r.heartbeat)
    working = sum(rank.unit is not None for rank in status.ranks)
    memory = sum(rank.rss_mb for rank in status.ranks) / 1024
    late = sorted(stragglers(status.ranks))
    slow = f"; slow ranks: {', '.join(map(str, late[:8]))}" if late else ""
    return Text(
        f"{working} of {len(status.ranks)} ranks in a unit, {memory:.1f} GiB in all; longest silent: rank "
        f"{oldest.rank} on {oldest.host}, {duration(max(0.0, now - oldest.heartbeat))}{slow}"
    )


def listing(runs: Sequence[RunStatus], base: Path, labels: Mapping[str, str]) -> RenderableType:
    """Return a table with one line for each run; a narrow terminal gets fewer columns, never shorter names.

    Parameters
    ----------
    runs
        What to show.
    base
        Paths below it are shown relative to it.
    labels
        What a run of a sweep computes, by path.
    """
    return _Listing([_cells(run, base, labels) for run in runs], labelled=bool(labels))


def _cells(run: RunStatus, base: Path, labels: Mapping[str, str]) -> dict[str, Text]:
    """Return what each column shows of a run."""
    stage = run.current
    path = Path(run.path)
    told = run.slurm_silent or (run.message if run.state in {"unreadable", "failed", "pending", "lost"} else "")
    running = run.state == "running"
    words = {
        "run": str(path.relative_to(base)) if path.is_relative_to(base) else run.path,
        "job": labels.get(run.path, run.job),
        "stage": stage.name if stage and run.state not in {"done", "quarantined"} else "",
        "done": f"{stage.done}/{stage.total}" if stage else "",
        "rate": speed(run.rate) if running else "",
        "to go": duration(run.eta) if running else "",
        "ranks": str(run.size or ""),
        "heard": f"{duration(run.silent)} ago" if run.silent is not None else "",
        "": told.partition("\n")[0][:_NOTE],
    }
    cells = {name: Text(visible(text, lines=False), style="" if name else "dim") for name, text in words.items()}
    return cells | {"state": state_text(run)}


class _Listing:
    """Rows whose columns fit the terminal.

    Parameters
    ----------
    rows
        A cell for each column.
    labelled
        Whether the column ``job`` tells the runs apart.
    """

    _ORDER: ClassVar = ("run", "job", "state", "stage", "done", "rate", "to go", "ranks", "heard", "")
    _RIGHT: ClassVar = frozenset({"done", "rate", "to go", "ranks", "heard"})
    _LEAST: ClassVar = ("ranks", "rate", "job", "heard", "stage", "to go", "")
    """Columns that a narrow terminal goes without, the least needed first; those of a sweep need their label."""

    def __init__(self, rows: Sequence[Mapping[str, Text]], *, labelled: bool) -> None:
        self._rows = rows
        self._labelled = labelled

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        widths = {name: max([len(name), *(row[name].cell_len for row in self._rows)]) for name in self._ORDER}
        note, widths[""] = widths[""], min(widths[""], _NOTE_LEAST)
        shown = [name for name in self._ORDER if name or note]
        least = [name for name in self._LEAST if not (self._labelled and name == "job")]
        while (room := options.max_width - sum(widths[name] + 2 for name in shown) + 2) < 0 and least:
            shown = [name for name in shown if name != least[0]]
            least = least[1:]
        widths[""] = min(note, widths[""] + room)  # the message has the rest of the line, and is cut where that ends
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for name in shown:
            justify: Literal["left", "right"] = "right" if name in self._RIGHT else "left"
            table.add_column(name, justify=justify, no_wrap=True, width=widths[name])
        for row in self._rows:
            table.add_row(*(row[name] for name in shown))
        yield table


def line(status: RunStatus) -> str:
    """Return one plain line for a log: state, stage, count, rate and time to go."""
    stage = status.current
    if stage is None:
        return status.state
    text = f"{status.state}: {stage.name} {stage.done}/{stage.total or '?'}"
    if stage.quarantined:
        text += f" ({stage.quarantined} quarantined)"
    if status.state == "running" and status.rate:
        text += f", {pace(status)}"
    if stage.figures:
        text += f"; {figures(stage)}"
    return text
