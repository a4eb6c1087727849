"""The engine's own options: every section of ``config.yaml`` but ``job``, which belongs to the workload."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hpc.options import Range

_STEPS = re.compile(r"([1-9][0-9]*) ?(?:steps?|units?)")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Where the run lives."""

    dir: Path
    any_version: bool = False


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How units are run."""

    retries: Annotated[int, Range(ge=0)] = 1
    max_unit_deaths: Annotated[int, Range(ge=1)] = 3
    fail_fast: bool = False
    heartbeat: Annotated[float, Range(gt=0)] = 2.0
    grace: Annotated[float, Range(gt=0)] = 60.0


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """When finished work is made durable."""

    every: Annotated[float, Range(ge=0)] | str = 30.0
    mtbf: Annotated[float, Range(gt=0)] = 86400.0
    keep: Annotated[int, Range(ge=2)] = 2
    max_pending_mb: Annotated[int, Range(ge=1)] = 256
    deadline: Annotated[float, Range(gt=0)] = 300.0

    def __post_init__(self) -> None:
        if isinstance(self.every, str) and self.every != "auto" and not _STEPS.fullmatch(self.every):
            msg = f"every: must be seconds, 'N steps' or 'auto', not {self.every!r}"
            raise ValueError(msg)

    @property
    def every_steps(self) -> int | None:
        """Steps (of a loop) or units (of a map) between saves, None if they are counted in seconds."""
        match = _STEPS.fullmatch(self.every) if isinstance(self.every, str) else None
        return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Where and with how much the ranks run."""

    launcher: Literal["local"] = "local"
    ranks: Annotated[int, Range(ge=1)] | Literal["auto"] = 1
    threads_per_process: Annotated[int, Range(ge=1)] | Literal["auto"] = "auto"
    mpiexec: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole of ``RUN/config.yaml``."""

    job: dict[str, Any]
    run: RunSettings
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    seed: Annotated[int, Range(ge=0)] = 0
