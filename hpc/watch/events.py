"""``events.jsonl``: what the engine did, one JSON object a line, appended by rank 0 over all attempts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Events:
    """Appends records; a failing disk costs the record, never the run."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def emit(self, event: str, **facts: object) -> None:
        """Append one record with the time and the name of the event."""
        if self._path is None:
            return
        line = json.dumps({"t": round(time.time(), 3), "event": event, **facts}, default=str)
        with self._lock:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError:
                return


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; a line cut short by a kill is passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
