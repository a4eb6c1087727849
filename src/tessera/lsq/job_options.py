"""Options of the lsq job; `conf/job/lsq.yaml` is their documented default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hpc.options import Range
from tessera.lsq.guard import NanPolicy
from tessera.lsq.losses import Loss


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What is fitted."""

    path: Path
    y: str
    x: tuple[str, ...]
    sigma: str | None = None
    mask: str | None = None
    nan_policy: NanPolicy = "raise"


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """Parameters that each group of points has for itself."""

    names: tuple[str, ...]
    row: Annotated[int, Range(ge=0)]
    count: Annotated[int, Range(ge=1)]


@dataclass(frozen=True, slots=True)
class LsqOptions:
    """Everything the job can be told."""

    model: Path
    data: DataOptions
    jacobian: Path | None = None
    names: tuple[str, ...] | None = None
    p0: dict[str, float] | tuple[float, ...] | None = None
    bounds: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    linear: tuple[str, ...] = ()
    groups: GroupOptions | None = None
    loss: Loss = "linear"
    loss_scale: Annotated[float, Range(gt=0)] = 1.0
    absolute_sigma: bool = False
    errors: Literal["hessian", "sandwich"] = "hessian"
    preset: str = "default"
    config: dict[str, Any] = field(default_factory=dict)
    profile: bool = False
