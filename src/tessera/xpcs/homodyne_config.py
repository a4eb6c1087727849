"""A configuration of homodyne's in the words of the XPCS job, with every key named that has no counterpart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from tessera.input_files import explained
from tessera.lsq.losses import LOSSES
from tessera.lsq.options import HybridStreamingConfig
from tessera.xpcs.errors import XpcsInputError
from tessera.xpcs.physics import CONTRAST, OFFSET, Parameter, parameters_of

_SCALING: Final = (CONTRAST.name, OFFSET.name)
_MODES: Final = {
    "static": "static_isotropic",
    "static_isotropic": "static_isotropic",
    "static_anisotropic": "static_anisotropic",
    "laminar_flow": "laminar_flow",
}

NLSQ_DEFAULTS: Final[Mapping[str, Any]] = {
    "normalize": True,
    "normalization_strategy": "auto",
    "warmup_iterations": 200,
    "max_warmup_iterations": 500,
    "warmup_learning_rate": 1e-3,
    "gauss_newton_max_iterations": 100,
    "gauss_newton_tol": 1e-8,
    "chunk_size": 10000,
    "trust_region_initial": 1.0,
    "regularization_factor": 1e-10,
    "enable_warm_start_detection": True,
    "warm_start_threshold": 0.01,
    "enable_adaptive_warmup_lr": True,
    "warmup_lr_refinement": 1e-6,
    "warmup_lr_careful": 1e-5,
    "enable_cost_guard": True,
    "cost_increase_tolerance": 0.05,
    "enable_step_clipping": True,
    "max_warmup_step_size": 0.1,
}
"""Values that homodyne's templates write out. Where a file still has them, this optimizer's own defaults serve better:
its passes are counted differently (200 iterations of warm-up at least would be 200 passes over the data)."""

_REASONS: Final = {
    "metadata": "describes the file itself",
    "analysis_settings": "describes the model; analysis_mode chooses it",
    "initial_parameters.per_angle_scaling": "contrast and offset take their optimum at every step",
    "initial_parameters.units": "units are homodyne's and fixed",
    "parameter_space.priors": "priors serve sampling, and this is a fit",
    "parameter_space.bounds": "priors serve sampling, and this is a fit",
    "parameter_space.model": "analysis_mode chooses it",
    "experimental_data.cache": "files are read by blocks, so no cache is written",
    "experimental_data.phi_angles": "angles are read from the data file",
    "phi_filtering": "the ranges alone decide",
    "optimization.nlsq.x_scale_map": "parameters scale themselves by the columns of the Jacobian",
    "optimization.nlsq.memory": "memory use does not depend on the number of points",
    "optimization.nlsq.cmaes": "not there; use optimization.hybrid_streaming.enable_multistart",
    "optimization.nlsq.anti_degeneracy": "contrast and offset are solved exactly at each step (variable projection)",
    "optimization.nlsq.hybrid_streaming": "has no effect in NLSQ either, or the engine's checkpoint section does it",
    "optimization.nlsq.multi_start": "the tournament of optimization.hybrid_streaming does it",
    "optimization.nlsq": "there is one way to fit, and its options are optimization.hybrid_streaming",
    "optimization.streaming": "checkpoint.* of the engine: always on, and resumed with tessera resume",
    "optimization.stratification": "all chunks add up to one exact sum, so their mixture does not matter",
    "optimization.sequential": "all angles are fitted together",
    "optimization.recovery": "a fit says what stopped it; it does not try other settings in silence",
    "optimization.mcmc": "sampling is not there",
    "optimization.cmc": "sampling is not there",
    "optimization": "there is one way to fit",
    "noise_estimation": "optimization.sigma=auto measures the noise",
    "performance": "cluster.* of the engine sets ranks and threads",
    "logging": "each rank writes a log of its own in the run directory",
    "quality_control": "always checked: finite, not constant, decaying, normalised",
    "validation": "always checked",
    "plotting": "pictures are in the run's report page",
    "output": "results are in the run directory; set it with run.dir",
    "v2_features": "loading has one way",
}
"""Why a section has no counterpart; the longest beginning that fits is taken."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A job's section, and what was lost or changed on the way.

    Attributes
    ----------
    job
        To be laid over ``conf/job/xpcs.yaml``.
    changed
        Sentences on values that mean something else here.
    unused
        Each key without a counterpart, and why.
    """

    job: dict[str, Any]
    changed: tuple[str, ...]
    unused: tuple[tuple[str, str], ...]


class _Source:
    """A nested mapping that remembers which of its leaves were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def take(self, *names: str) -> Any:
        """Return the first of these dotted keys that is there, None if none is; all count as read."""
        self._read.update(names)
        return next((v for name in names if (v := self._find(name)) is not None), None)

    def _find(self, name: str) -> Any:
        value: Any = self._values
        for part in name.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    def rest(self) -> Iterator[str]:
        """Yield the dotted leaves that were not read."""
        for name in _leaves(self._values, ""):
            if not any(name == read or name.startswith(f"{read}.") for read in self._read):
                yield name


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def translate(homodyne: Mapping[str, Any]) -> Translation:
    """Translate a configuration of homodyne's, as read from YAML.

    Raises
    ------
    XpcsInputError
        If it names no data file, has an unknown ``analysis_mode``, or a value that is no number where one belongs.
    """
    with explained("a value", "correct it as homodyne's templates have it", XpcsInputError):
        return _translated(homodyne)


def _translated(homodyne: Mapping[str, Any]) -> Translation:
    source = _Source(homodyne)
    changed: list[str] = []
    mode = str(source.take("analysis_mode") or "static_isotropic").lower()
    if mode not in _MODES:
        msg = f"analysis_mode is {mode!r}; it must be one of {', '.join(_MODES)}"
        raise XpcsInputError(msg)
    parameters = parameters_of(_MODES[mode])
    job = {
        "analysis_mode": _MODES[mode],
        "experimental_data": _data(source),
        "analyzer_parameters": _analyzer(source),
        "phi_filtering": _angles(source),
        "initial_parameters": _start(source, parameters, changed),
        "parameter_space": {"bounds": _bounds(source, changed)},
        "optimization": _optimization(source, changed),
    }
    unused = tuple((name, _reason(name)) for name in source.rest())
    return Translation(_without_empty(job), tuple(changed), unused)


def _data(source: _Source) -> dict[str, Any]:
    path = source.take("experimental_data.file_path", "data_file")
    folder = source.take("experimental_data.data_folder_path")
    name = source.take("experimental_data.data_file_name")
    if path is None and name is None:
        msg = "experimental_data names no file: neither file_path nor data_folder_path with data_file_name is there"
        raise XpcsInputError(msg)
    source.take("experimental_data.data_type", "experimental_data.file_format")
    return {
        "file_path": str(path if path is not None else PurePath(str(folder or "."), str(name))),
        "exchange_key": source.take("experimental_data.exchange_key"),
        "q_tolerance": _number(source, "q_tolerance_fraction"),
    }


def _analyzer(source: _Source) -> dict[str, Any]:
    base = "analyzer_parameters."
    frames = {key: _number(source, f"{base}{key}", key) for key in ("start_frame", "end_frame")}
    return {
        "dt": _number(source, f"{base}dt", "dt"),
        **{key: int(value) for key, value in frames.items() if value is not None},
        "scattering": {"wavevector_q": _number(source, f"{base}scattering.wavevector_q")},
        "geometry": {"stator_rotor_gap": _number(source, f"{base}geometry.stator_rotor_gap")},
    }


def _angles(source: _Source) -> dict[str, Any]:
    ranges = source.take("phi_filtering.target_ranges") or []
    fallback = source.take("phi_filtering.fallback_to_all_angles")
    return {
        "enabled": bool(source.take("phi_filtering.enabled")) and bool(ranges),
        "target_ranges": [
            {"min_angle": float(r.get("min_angle", -180)), "max_angle": float(r.get("max_angle", 180))} for r in ranges
        ],
        "fallback_to_all_angles": True if fallback is None else bool(fallback),
    }


def _start(source: _Source, parameters: Sequence[Parameter], changed: list[str]) -> dict[str, Any]:
    base = "initial_parameters."
    names = source.take(f"{base}parameter_names") or [p.name for p in parameters]
    given = source.take(f"{base}values")
    values: dict[str, Any] = {}
    if isinstance(given, Mapping):
        values = {str(k): float(v) for k, v in given.items()}
    elif given is not None:
        if len(given) != len(names):
            msg = f"initial_parameters.values has {len(given)} entries for {len(names)} parameter_names"
            raise XpcsInputError(msg)
        values = {str(name): float(value) for name, value in zip(names, given, strict=True)}
    else:
        changed.append(
            "initial_parameters.values is null: homodyne starts in the middle of the bounds (D0 at 5e4), this job "
            "at the defaults of homodyne's parameter registry"
        )
    values = {name: value for name, value in values.items() if name not in _SCALING}
    fixed = {str(k): float(v) for k, v in (source.take(f"{base}fixed_parameters") or {}).items()}
    active = source.take(f"{base}active_parameters")
    if active is not None:
        starts = {p.name: p.start for p in parameters} | values
        fixed |= {p.name: starts[p.name] for p in parameters if p.name not in active and p.name not in fixed}
    return {"values": values, "fixed_parameters": fixed}


def _bounds(source: _Source, changed: list[str]) -> dict[str, list[float]]:
    bounds = {str(e["name"]): [float(e["min"]), float(e["max"])] for e in source.take("parameter_space.bounds") or []}
    for parameter in (CONTRAST, OFFSET):
        own = [parameter.lower, parameter.upper]
        if bounds.pop(parameter.name, own) != own:
            changed.append(f"parameter_space.bounds of {parameter.name} are {own[0]:g} … {own[1]:g} here, always")
    return bounds


def _optimization(source: _Source, changed: list[str]) -> dict[str, Any]:
    nlsq = "optimization.nlsq."
    method = source.take("optimization.method")
    if method not in (None, "nlsq"):
        changed.append(f"optimization.method is {method}: this job does what homodyne's nlsq does, no sampling")
    loss = source.take(f"{nlsq}loss")
    if loss is None:
        changed.append(
            "optimization.nlsq.loss is not given: this job then fits by least squares, homodyne by soft_l1; "
            "optimization.loss=soft_l1 does the same here"
        )
    elif loss not in LOSSES:
        msg = f"{nlsq}loss is {loss!r}; losses are {', '.join(LOSSES)}"
        raise XpcsInputError(msg)
    mode = source.take(f"{nlsq}anti_degeneracy.per_angle_mode")
    hybrid: dict[str, Any] = {}
    for ours, name in (("gauss_newton_max_iterations", "max_iterations"), ("gauss_newton_tol", "tolerance")):
        value = _number(source, f"{nlsq}{name}")
        if value is not None and value != NLSQ_DEFAULTS[ours]:
            hybrid[ours] = int(value) if ours.endswith("iterations") else value
    hybrid |= _hybrid(source, f"{nlsq}hybrid_streaming.")
    if source.take(f"{nlsq}multi_start.enable"):
        hybrid["enable_multistart"] = True
        hybrid["n_starts"] = int(source.take(f"{nlsq}multi_start.n_starts") or 10)
    return {"per_angle_mode": mode, "loss": loss, "hybrid_streaming": hybrid}


def _hybrid(source: _Source, base: str) -> dict[str, Any]:
    """Return the options of the optimizer that this one has too and that differ from what the templates say."""
    known = {name: getattr(HybridStreamingConfig(), name) for name in HybridStreamingConfig.__dataclass_fields__}
    chosen: dict[str, Any] = {}
    for name, default in known.items():
        value = source.take(f"{base}{name}")
        if value is None or value == NLSQ_DEFAULTS.get(name):
            continue
        chosen[name] = float(value) if isinstance(default, float) else value
    return chosen


def _number(source: _Source, *names: str) -> float | None:
    value = source.take(*names)
    if value is None:
        return None
    try:
        return float(value)  # YAML 1.1 reads 2e6 as text
    except (TypeError, ValueError) as error:
        msg = f"{names[0]} is {value!r}; it must be a number"
        raise XpcsInputError(msg) from error


def _reason(name: str) -> str:
    fits = [key for key in _REASONS if name.startswith(key)]
    return _REASONS[max(fits, key=len)] if fits else "unknown to homodyne's templates and to this job"


def _without_empty(section: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is None or empty, so that the job's own defaults show through."""
    kept = {k: _without_empty(v) if isinstance(v, Mapping) else v for k, v in section.items()}
    return {k: v for k, v in kept.items() if v is not None and v not in ({}, [])}
