"""What a rank is doing right now: for its heartbeat, and for the message if it fails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Whereabouts:
    """Updated by the rank's main thread, read by its heartbeat."""

    stage: str | None = None
    unit: str | None = None
    done: int = 0
    busy: float = 0.0
