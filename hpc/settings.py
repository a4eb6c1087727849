"""The engine's own options: every section of ``config.yaml`` but ``job``, which belongs to the workload."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from hpc.options import Range

_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_UNLIMITED = ("unlimited", "infinite", "-1")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_FLAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_STEPS = re.compile(r"([1-9][0-9]*) ?(?:steps?|units?)")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Where the run lives."""

    dir: Path
    any_version: bool = False
    any_inputs: bool = False


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How units are run."""

    retries: Annotated[int, Range(ge=0)] = 1
    max_unit_deaths: Annotated[int, Range(ge=1)] = 3
    give_up_after: Annotated[int, Range(ge=0)] = 20
    fail_fast: bool = False
    heartbeat: Annotated[float, Range(gt=0)] = 2.0
    grace: Annotated[float, Range(gt=0)] = 60.0
    kernels: Literal["auto", "portable", "native"] = "auto"
    other_kernels: Literal["go_on", "refuse"] = "go_on"


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
class LocalCluster:
    """Ranks on this machine."""

    launcher: Literal["local"] = "local"
    ranks: Annotated[int, Range(ge=1)] | Literal["auto"] = 1
    threads_per_process: Annotated[int, Range(ge=1)] | Literal["auto"] = "auto"
    mpiexec: str | None = None


@dataclass(frozen=True, slots=True)
class SlurmCluster:
    """Ranks of a SLURM job; what is null is left to the site's defaults."""

    launcher: Literal["slurm"] = "slurm"
    nodes: Annotated[int, Range(ge=1)] = 1
    ranks_per_node: Annotated[int, Range(ge=1)] = 1
    threads_per_process: Annotated[int, Range(ge=1)] = 1
    mem: str | None = None
    mem_per_cpu: str | None = None
    gres: str | None = None
    gpus_per_node: Annotated[int, Range(ge=1)] | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    nice: int | None = None
    time: int | str | None = None
    job_name: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    comment: str | None = None
    after: int | Path | None = None
    dependency: str | None = None
    signal_delay: Annotated[int, Range(ge=1, le=65535)] = 90
    max_requeues: Annotated[int, Range(ge=0)] = 20
    array_parallelism: Annotated[int, Range(ge=1)] | None = None
    mpi: Literal["pmi2", "pmix", "cray_shasta", "none", "mpiexec"] = "pmi2"
    python: str | None = None
    setup: tuple[str, ...] = ()
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    srun: tuple[str, ...] = ()
    dry_run: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        self._refuse_lines()
        if isinstance(self.time, int):
            msg = (
                f"time: {self.time} is a number to YAML, which makes 14400 of 4:00:00; put the limit in quotes: "
                "'4:00:00' for four hours, '90' for 90 minutes"
            )
            raise ValueError(msg)  # noqa: TRY004 - `build` makes a complaint about the key of it
        if self.time is not None and _minutes(self.time) is None:
            msg = (
                f"time: {self.time!r} is no limit; write '90' (minutes), '4:00:00' (hours), '2-12' or '2-12:00:00' "
                "(days) or UNLIMITED"
            )
            raise ValueError(msg)
        if self.minutes is not None and self.minutes * 60 <= self.signal_delay:
            msg = (
                f"time: {self.time} is over before there is time to save; it must be longer than signal_delay "
                f"({self.signal_delay} s)"
            )
            raise ValueError(msg)
        if self.mem is not None and self.mem_per_cpu is not None:
            msg = "mem and mem_per_cpu exclude each other; set one of them to null"
            raise ValueError(msg)

    @property
    def ranks(self) -> int:
        """Ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int | None:
        """The time limit, rounded up to what SLURM counts in; None without one, or if the partition's applies."""
        return (_minutes(str(self.time)) or None) if self.time is not None else None

    @property
    def unlimited(self) -> bool:
        """Whether the job asks for no time limit."""
        return self.time is not None and self.minutes is None

    def _refuse_lines(self) -> None:
        """Refuse what would begin a line of its own in the batch script."""
        texts = {f.name: getattr(self, f.name) for f in fields(self)}
        texts |= {f"sbatch.{name}": value for name, value in self.sbatch.items()}
        texts |= {f"srun[{number}]": value for number, value in enumerate(self.srun)}
        for name, text in texts.items():
            if isinstance(text, str | Path) and _CONTROL.search(str(text)):
                msg = f"{name}: must be one line without control characters, not {str(text)!r}"
                raise ValueError(msg)
        for name in self.sbatch:
            if not _FLAG.fullmatch(name):
                msg = f"sbatch: {name!r} is no name of a flag; write it without dashes in front, for example exclusive"
                raise ValueError(msg)
        if any("\0" in line for line in self.setup):
            msg = "setup: must be lines of shell without NUL"
            raise ValueError(msg)


def _minutes(limit: str) -> int | None:
    """Return the minutes of a limit in any of sbatch's forms, 0 for no limit; None if it is none of them."""
    text = limit.strip()
    if text.lower() in _UNLIMITED:
        return 0
    match = _LIMIT.fullmatch(text)
    if match is None:
        return None
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None or len(parts) == 3:  # hours come first
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return 60 * (24 * int(match["days"] or 0) + hours) + minutes + -(-seconds // 60)


ClusterSettings: TypeAlias = LocalCluster | SlurmCluster
"""Told apart by ``launcher``."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole of ``RUN/config.yaml``."""

    job: dict[str, Any]
    run: RunSettings
    cluster: ClusterSettings = field(default_factory=LocalCluster)
    engine: EngineSettings = field(default_factory=EngineSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    seed: Annotated[int, Range(ge=0)] = 0

    @property
    def grace(self) -> float:
        """Seconds a unit may still take after a stop signal: half of what SLURM leaves, so that saving has time too."""
        if isinstance(self.cluster, SlurmCluster):
            return min(self.engine.grace, self.cluster.signal_delay / 2)
        return self.engine.grace

    @property
    def leave_by(self) -> float:
        """Seconds after a stop signal at which a rank leaves, even if others have not saved all that they finished."""
        if isinstance(self.cluster, SlurmCluster):
            return max(self.grace + 1.0, self.cluster.signal_delay - max(5.0, 0.1 * self.cluster.signal_delay))
        # In a script of a user's own it is not known when the kill comes; the templates leave 180 s.
        return self.grace + (60.0 if "SLURM_JOB_ID" in os.environ else self.checkpoint.deadline)
