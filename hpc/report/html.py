"""Pieces of HTML, every text escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from hpc.report.view import Figure, Section, Table


def escape(value: object) -> str:
    """Return a value as text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def cell_text(value: object) -> str:
    """Return what a table cell shows: floats with four significant digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(data: Table, swatches: Sequence[str] = ()) -> str:
    """Return a table; columns of numbers are aligned right.

    Parameters
    ----------
    data
        Columns, rows and caption.
    swatches
        A colour for each row, shown before its first cell.
    """
    numeric = [_numeric(column, data.rows) for column in range(len(data.columns))]
    head = "".join(_cell("th", name, right) for name, right in zip(data.columns, numeric, strict=True))
    body = []
    for number, row in enumerate(data.rows):
        cells = [_cell("td", cell_text(value), right) for value, right in zip(row, numeric, strict=True)]
        if swatches:
            mark = f'<span class="swatch" style="background:{escape(swatches[number])}"></span>'
            cells[0] = cells[0].replace(">", ">" + mark, 1)
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{escape(data.caption)}</caption>" if data.caption else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(tag: str, text: str, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _numeric(column: int, rows: Sequence[Sequence[object]]) -> bool:
    values = [row[column] for row in rows if row[column] is not None]
    # numpy's scalars are numbers too, without being a float or an int.
    return bool(values) and all(hasattr(v, "__float__") and not isinstance(v, bool) for v in values)


def figure(data: Figure) -> str:
    """Return a figure with its image embedded.

    Raises
    ------
    ValueError
        If the image is neither PNG nor SVG.
    """
    start = data.image[:256].lstrip()
    if start.startswith(b"\x89PNG"):
        kind = "png"
    elif start.startswith((b"<svg", b"<?xml")):
        kind = "svg+xml"
    else:
        msg = f"the figure {data.caption[:60]!r} is neither PNG nor SVG; save it as one of them"
        raise ValueError(msg)
    source = f"data:image/{kind};base64,{base64.b64encode(data.image).decode()}"
    caption = f"<figcaption>{escape(data.caption)}</figcaption>" if data.caption else ""
    return f'<figure><img src="{source}" alt="{escape(data.caption)}">{caption}</figure>'


def section(data: Section) -> str:
    """Return a headed part: its paragraphs (separated by blank lines), tables, figures."""
    paragraphs = [f"<p>{escape(part.strip())}</p>" for part in data.text.split("\n\n") if part.strip()]
    parts = [*paragraphs, *(table(t) for t in data.tables), *(figure(f) for f in data.figures)]
    return block(data.title, *parts)


def block(title: str, *parts: str) -> str:
    """Return a heading and what stands below it."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def details(summary: str, text: str) -> str:
    """Return preformatted text that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def facts(values: Mapping[str, object]) -> str:
    """Return short facts in a row."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{items}</dl>'
