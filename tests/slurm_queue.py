"""What squeue prints, made up: for tests that need no cluster."""

from __future__ import annotations

import shlex

from hpc.watch import scheduler


def queue(*rows: dict[str, str]) -> str:
    """Return a shell command that prints what squeue would: columns of fixed widths."""
    lines = ("".join(row.get(name, "N/A").ljust(width)[:width] for name, width in scheduler._COLUMNS) for row in rows)
    return f"printf '%s\\n' {' '.join(map(shlex.quote, lines))}"


def job(name: str, state: str, **more: str) -> dict[str, str]:
    return {"JobArrayID": name, "State": state, "RestartCnt": "0", "exit_code": "0", **more}
