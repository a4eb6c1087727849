"""What a rank is doing right now, and in which stay of its job: for its heartbeat, and for the message if it fails."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(slots=True)
class Whereabouts:
    """Updated by the rank's main thread, read by its heartbeat."""

    stage: str | None = None
    unit: str | None = None
    done: int = 0
    busy: float = 0.0


def this_stay() -> str:
    """Return ``JOB.RESTARTS`` of the SLURM job this process belongs to, empty outside of one.

    A requeued job keeps its number, and an attempt that dies at its start leaves the files of the one before: what
    is written down for others carries this, so that nobody takes an old file for the word of this stay.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""
