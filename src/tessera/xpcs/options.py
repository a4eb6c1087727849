"""The options of the XPCS job; ``conf/job/xpcs.yaml`` is their documented default.

Names are homodyne's, section by section, where the thing still exists; `tessera import-config` translates a file of
homodyne's and names the keys that have no counterpart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from hpc.errors import nearest
from hpc.options import Range
from tessera.lsq.losses import Loss
from tessera.lsq.options import HybridStreamingConfig
from tessera.xpcs.fit import CONFIG
from tessera.xpcs.physics import parameters_of
from tessera.xpcs.select import DEFAULT_RANGES, AngleRange

_ELIMINATED: Final = (
    "contrast and offset take their optimum at every step, within 0 … 1 and 0.5 … 1.5, and need neither start nor "
    "bounds; optimization.per_angle_mode says how they depend on the angle"
)

Positive = Annotated[float, Range(gt=0)]
Model = Literal["static_isotropic", "static_anisotropic", "laminar_flow"]
Scaling = Literal["auto", "shared", "constant", "individual", "fourier"]


@dataclass(frozen=True, slots=True)
class ScatteringOptions:
    """Where on the detector."""

    wavevector_q: float | None = None


@dataclass(frozen=True, slots=True)
class GeometryOptions:
    """The shear cell."""

    stator_rotor_gap: float = 2.0e6


@dataclass(frozen=True, slots=True)
class AnalyzerOptions:
    """Times and lengths."""

    dt: float | None = None
    start_frame: int = 1
    end_frame: int = -1
    scattering: ScatteringOptions = field(default_factory=ScatteringOptions)
    geometry: GeometryOptions = field(default_factory=GeometryOptions)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """The file."""

    file_path: Path
    exchange_key: str = "exchange"
    q_tolerance: Annotated[float, Range(ge=0, le=0.5)] | None = None
    nan: Literal["raise", "omit"] = "raise"
    in_memory: bool | Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True)
class PhiOptions:
    """Which angles are fitted."""

    enabled: bool = False
    target_ranges: tuple[AngleRange, ...] = DEFAULT_RANGES
    fallback_to_all_angles: bool = False


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Start values, by name; what is not named takes homodyne's default."""

    values: dict[str, float] = field(default_factory=dict)
    fixed_parameters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """Bounds, by name; what is not named takes homodyne's default."""

    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How the minimum is found."""

    per_angle_mode: Scaling = "auto"
    sigma: Positive | Literal["auto"] = "auto"
    loss: Loss = "linear"
    loss_scale: Positive = 1.0
    errors: Literal["hessian", "sandwich"] = "hessian"
    preset: str | None = None
    hybrid_streaming: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config()

    def config(self) -> HybridStreamingConfig:
        """Return the optimizer's options: the preset (or those made for XPCS), with what ``hybrid_streaming`` says."""
        if self.preset is not None:
            return HybridStreamingConfig.preset(self.preset, **self.hybrid_streaming)
        return HybridStreamingConfig.from_mapping({**dataclasses.asdict(CONFIG), **self.hybrid_streaming})


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Files and pictures."""

    fitted_data: bool | Literal["auto"] = "auto"
    diagonal_correction: Literal["basic", "statistical", "interpolation"] = "basic"
    plotted_angles: Annotated[int, Range(ge=0)] = 4


@dataclass(frozen=True, slots=True)
class XpcsOptions:
    """All options of the job."""

    experimental_data: DataOptions
    analysis_mode: Model = "laminar_flow"
    analyzer_parameters: AnalyzerOptions = field(default_factory=AnalyzerOptions)
    phi_filtering: PhiOptions = field(default_factory=PhiOptions)
    initial_parameters: StartOptions = field(default_factory=StartOptions)
    parameter_space: SpaceOptions = field(default_factory=SpaceOptions)
    optimization: FitOptions = field(default_factory=FitOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    profile: bool = False

    def __post_init__(self) -> None:
        known = [p.name for p in parameters_of("laminar_flow")]
        sections: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("initial_parameters.values", self.initial_parameters.values),
            ("initial_parameters.fixed_parameters", self.initial_parameters.fixed_parameters),
            ("parameter_space.bounds", self.parameter_space.bounds),
        )
        for section, given in sections:
            for name in given:
                if name not in known:
                    hint = (
                        _ELIMINATED if name in ("contrast", "offset") else f"unknown parameter; {nearest(name, known)}"
                    )
                    msg = f"{section}.{name}: {hint}"
                    raise ValueError(msg)
        for name, (low, high) in self.parameter_space.bounds.items():
            if not low < high:
                msg = f"parameter_space.bounds.{name}: the lower bound {low:g} must be below the upper one, {high:g}"
                raise ValueError(msg)

    @property
    def ranges(self) -> tuple[AngleRange, ...] | None:
        """Angles that are fitted; None: all."""
        return self.phi_filtering.target_ranges if self.phi_filtering.enabled else None
