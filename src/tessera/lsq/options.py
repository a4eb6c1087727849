"""Options of the hybrid streaming fit, under NLSQ's names where NLSQ's meaning has an effect here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

Strategy: TypeAlias = Literal["auto", "jacobian", "bounds", "p0", "none"]
WarmupOptimizer: TypeAlias = Literal["lbfgs", "adam"]
LineSearch: TypeAlias = Literal["wolfe", "backtracking"]
Criterion: TypeAlias = Literal["plateau", "gradient", "max_iter"]
Precision: TypeAlias = Literal["auto", "float32", "float64"]
LoopStrategy: TypeAlias = Literal["auto", "scan", "loop"]
BoundsMethod: TypeAlias = Literal["reflective", "projected"]
Sampler: TypeAlias = Literal["lhs", "sobol", "halton"]
Telemetry: TypeAlias = Literal["off", "basic", "detailed"]


@dataclass(frozen=True, slots=True)
class HybridStreamingConfig:
    """How a fit goes from its start to its minimum; data, model, loss and bounds are arguments of the fit itself.

    A *pass* is one traversal of all data. Every warm-up iteration and every Gauss-Newton iteration is one pass, so the
    defaults spend far fewer on the warm-up than NLSQ's (at least 200): a damped Gauss-Newton step with exact Jacobian
    scaling makes better use of a pass than a gradient step wherever it can be trusted at all.

    Attributes
    ----------
    normalize, normalization_strategy
        Scale of the parameters during the warm-up: ``jacobian`` (one unit changes the model by the spread of the data),
        ``bounds`` (the box becomes the unit cube), ``p0`` (start values become ±1), ``none``; ``auto`` is jacobian.
        The Gauss-Newton phase scales itself by the Jacobian's columns anyway.
    warmup_optimizer
        ``lbfgs`` or ``adam``.
    warmup_iterations, max_warmup_iterations
        Passes before the switching criteria are looked at, and at most; 0 at most means no warm-up.
    active_switching_criteria, loss_plateau_threshold, gradient_norm_threshold
        Any of them ends the warm-up: relative change of the loss, gradient of the relative loss in normalised
        parameters, number of passes.
    lbfgs_history_size, lbfgs_line_search, lbfgs_initial_step_size
        Pairs kept; strong Wolfe conditions or plain backtracking; length of the first step where layer 2 is off.
    lbfgs_exploration_step_size, lbfgs_refinement_step_size
        Layer 2: length of the first step with a poor and with a good start (0.5 between).
    warmup_learning_rate, warmup_lr_careful, warmup_lr_refinement
        Layer 2 for Adam: with a poor, a fair and a good start (normalised parameters per step).
    use_learning_rate_schedule, lr_schedule_warmup_steps, lr_schedule_decay_steps, lr_schedule_end_value
        Adam: linear rise, then cosine decay to the end value.
    gradient_clip_value
        Largest norm of a warm-up gradient (normalised); None: no clipping.
    enable_warm_start_detection, warm_start_threshold
        Layer 1: skip the warm-up if mean squared residual over variance of the data is below the threshold.
    enable_adaptive_warmup_lr
        Layer 2: step by the quality of the start.
    enable_cost_guard, cost_increase_tolerance
        Layer 3: end the warm-up with the best point if the loss exceeds the start's by this fraction.
    enable_step_clipping, max_warmup_step_size
        Layer 4: largest length of one update in normalised parameters.
    gauss_newton_max_iterations, gauss_newton_tol
        Passes of the Gauss-Newton phase at most; scale-free tolerance (relative predicted reduction of the cost, steps
        in units of the scaled parameters, cosine of residual and Jacobian).
    trust_region_initial
        First radius, in units of the scaled start.
    regularization_factor
        Eigenvalues of the scaled JᵀJ below this fraction of the largest count as zero: such parameters are degenerate.
    cg_param_threshold, cg_max_iterations, cg_relative_tolerance
        From how many parameters steps are found by truncated conjugate gradients, and how exactly.
    bounds_method
        Steps reflected at the bounds or projected onto them.
    chunk_size, loop_strategy
        Points per chunk (the unit of reading, of one compiled shape and of the reduction), and whether the loop over
        the tiles of a chunk is inside the compiled function.
    precision
        Arithmetic of the model: ``auto`` is float32 for the warm-up, float64 for the rest; sums are always float64.
    enable_multistart, n_starts, multistart_sampler, center_on_p0, scale_factor
        Several starts drawn around p0 (± half the box or |p0| + 0.1, times the factor) or over the whole box; p0 is
        always one of them.
    elimination_rounds, elimination_fraction, batches_per_round
        Tournament: which share of the starts goes in each round, and passes per start in a round.
    telemetry
        ``off`` records nothing, ``basic`` counts what the four layers did and one line per pass, ``detailed`` also the
        parameters and gradients of each pass.
    """

    normalize: bool = True
    normalization_strategy: Strategy = "auto"
    warmup_optimizer: WarmupOptimizer = "lbfgs"
    warmup_iterations: int = 2
    max_warmup_iterations: int = 8
    active_switching_criteria: tuple[Criterion, ...] = ("plateau", "gradient", "max_iter")
    loss_plateau_threshold: float = 1e-2
    gradient_norm_threshold: float = 1e-3
    lbfgs_history_size: int = 10
    lbfgs_line_search: LineSearch = "wolfe"
    lbfgs_initial_step_size: float = 0.1
    lbfgs_exploration_step_size: float = 0.1
    lbfgs_refinement_step_size: float = 1.0
    warmup_learning_rate: float = 2e-2
    warmup_lr_careful: float = 5e-3
    warmup_lr_refinement: float = 1e-3
    use_learning_rate_schedule: bool = False
    lr_schedule_warmup_steps: int = 5
    lr_schedule_decay_steps: int = 45
    lr_schedule_end_value: float = 1e-4
    gradient_clip_value: float | None = None
    enable_warm_start_detection: bool = True
    warm_start_threshold: float = 0.01
    enable_adaptive_warmup_lr: bool = True
    enable_cost_guard: bool = True
    cost_increase_tolerance: float = 0.05
    enable_step_clipping: bool = True
    max_warmup_step_size: float = 0.1
    gauss_newton_max_iterations: int = 100
    gauss_newton_tol: float = 1e-8
    trust_region_initial: float = 1.0
    regularization_factor: float = 1e-14
    cg_param_threshold: int = 2000
    cg_max_iterations: int = 100
    cg_relative_tolerance: float = 1e-4
    bounds_method: BoundsMethod = "reflective"
    chunk_size: int = 100_000
    loop_strategy: LoopStrategy = "auto"
    precision: Precision = "auto"
    enable_multistart: bool = False
    n_starts: int = 10
    multistart_sampler: Sampler = "lhs"
    center_on_p0: bool = True
    scale_factor: float = 1.0
    elimination_rounds: int = 3
    elimination_fraction: float = 0.5
    batches_per_round: int = 4
    telemetry: Telemetry = "basic"

    def __post_init__(self) -> None:
        complaints = [c for f in dataclasses.fields(self) if (c := _complaint(f.name, getattr(self, f.name)))]
        if self.warmup_iterations > self.max_warmup_iterations > 0:
            complaints.append(
                f"warmup_iterations ({self.warmup_iterations}) must not exceed max_warmup_iterations "
                f"({self.max_warmup_iterations})"
            )
        if complaints:
            raise ValueError("; ".join(complaints))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> HybridStreamingConfig:
        """Return a preset by name (see `PRESETS`), with some values replaced.

        Parameters
        ----------
        name
            One of `PRESETS`.
        **overrides
            Values that differ from the preset's.

        Raises
        ------
        ValueError
            If there is no such preset or key, or a value is out of range; all complaints at once.
        """
        if name not in PRESETS:
            msg = f"there is no preset {name!r}; {_nearest(name, PRESETS)}"
            raise ValueError(msg)
        return cls.from_mapping({**PRESETS[name], **overrides})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> HybridStreamingConfig:
        """Return the defaults with these values, as they come from YAML or from a configuration of NLSQ.

        Raises
        ------
        ValueError
            Naming each key that is unknown, or of NLSQ but without effect here, and each value out of range.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        wrong = [_unknown(key, names) for key in values if key not in names]
        if wrong:
            raise ValueError("; ".join(wrong))
        checked: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**checked)

    def replace(self, **overrides: Any) -> HybridStreamingConfig:
        """Return a copy with some values replaced."""
        return dataclasses.replace(self, **overrides)

    @classmethod
    def aggressive(cls) -> HybridStreamingConfig:
        """Fewest passes."""
        return cls.preset("aggressive")

    @classmethod
    def conservative(cls) -> HybridStreamingConfig:
        """Small steps and tight tolerances, for models that misbehave away from their minimum."""
        return cls.preset("conservative")

    @classmethod
    def memory_optimized(cls) -> HybridStreamingConfig:
        """Small chunks."""
        return cls.preset("memory_optimized")

    @classmethod
    def scientific_default(cls) -> HybridStreamingConfig:
        """Tight tolerances with parameters that differ by many orders of magnitude."""
        return cls.preset("scientific_default")

    @classmethod
    def defense_strict(cls) -> HybridStreamingConfig:
        """Warm-up layers that give up early and step little."""
        return cls.preset("defense_strict")

    @classmethod
    def defense_relaxed(cls) -> HybridStreamingConfig:
        """Warm-up layers that allow excursions."""
        return cls.preset("defense_relaxed")

    @classmethod
    def defense_disabled(cls) -> HybridStreamingConfig:
        """Warm-up without the four layers."""
        return cls.preset("defense_disabled")

    @classmethod
    def with_multistart(cls, n_starts: int = 10) -> HybridStreamingConfig:
        """Several starts."""
        return cls.preset("multistart", n_starts=n_starts)


_LAYERS_OFF: Final = {
    "enable_warm_start_detection": False,
    "enable_adaptive_warmup_lr": False,
    "enable_cost_guard": False,
    "enable_step_clipping": False,
}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "default": {},
    "aggressive": {
        "warmup_iterations": 1,
        "max_warmup_iterations": 4,
        "loss_plateau_threshold": 5e-2,
        "gradient_norm_threshold": 5e-3,
        "warmup_learning_rate": 5e-2,
        "gauss_newton_tol": 1e-7,
    },
    "conservative": {
        "warmup_iterations": 5,
        "max_warmup_iterations": 40,
        "loss_plateau_threshold": 1e-3,
        "gradient_norm_threshold": 1e-4,
        "warmup_learning_rate": 1e-2,
        "gauss_newton_tol": 1e-10,
        "gauss_newton_max_iterations": 200,
        "trust_region_initial": 0.5,
    },
    "memory_optimized": {"chunk_size": 5000, "cg_param_threshold": 1000},
    "scientific_default": {
        "warmup_iterations": 3,
        "max_warmup_iterations": 15,
        "warm_start_threshold": 0.05,
        "cost_increase_tolerance": 0.2,
        "gauss_newton_tol": 1e-10,
        "gauss_newton_max_iterations": 200,
    },
    "defense_strict": {
        "warm_start_threshold": 0.01,
        "warmup_learning_rate": 1e-2,
        "warmup_lr_careful": 1e-3,
        "warmup_lr_refinement": 1e-4,
        "cost_increase_tolerance": 0.05,
        "max_warmup_step_size": 0.05,
    },
    "defense_relaxed": {
        "warm_start_threshold": 0.5,
        "warmup_learning_rate": 5e-2,
        "warmup_lr_careful": 1e-2,
        "cost_increase_tolerance": 0.5,
        "max_warmup_step_size": 0.5,
    },
    "defense_disabled": _LAYERS_OFF,
    "multistart": {"enable_multistart": True},
}
"""What each preset changes. Tolerances, layer thresholds and chunk sizes are NLSQ's; warm-up lengths and rates are not,
because there they are what makes the presets stop early at a wrong point or spend hundreds of passes."""

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "normalization_strategy": get_args(Strategy),
    "warmup_optimizer": get_args(WarmupOptimizer),
    "lbfgs_line_search": get_args(LineSearch),
    "loop_strategy": get_args(LoopStrategy),
    "precision": get_args(Precision),
    "bounds_method": get_args(BoundsMethod),
    "multistart_sampler": get_args(Sampler),
    "telemetry": get_args(Telemetry),
}
_COUNTS: Final[Mapping[str, int]] = {  # the least allowed value
    "warmup_iterations": 0,
    "max_warmup_iterations": 0,
    "lbfgs_history_size": 1,
    "lr_schedule_warmup_steps": 0,
    "lr_schedule_decay_steps": 1,
    "gauss_newton_max_iterations": 1,
    "cg_param_threshold": 1,
    "cg_max_iterations": 1,
    "chunk_size": 1,
    "n_starts": 1,
    "elimination_rounds": 0,
    "batches_per_round": 1,
}
_MAY_BE_ZERO: Final = ("warm_start_threshold", "cost_increase_tolerance", "regularization_factor")
_ELSEWHERE: Final[Mapping[str, str]] = {
    "enable_checkpoints": "every run is checkpointed; see checkpoint.every",
    "checkpoint_frequency": "it is checkpoint.every of the run",
    "checkpoint_dir": "checkpoints lie in the run directory",
    "resume_from_checkpoint": "use tessera resume RUN",
    "callback_frequency": "tessera status shows every pass",
    "verbose": "tessera status shows every pass; see telemetry",
    "log_frequency": "tessera status shows every pass; see telemetry",
    "gc_chunk_interval": "no garbage is made per chunk",
    "validate_numerics": "numerics are always checked",
    "enable_fault_tolerance": "a step that fails is always tried again with a smaller radius",
    "max_retries_per_batch": "a step that fails is always tried again with a smaller radius",
    "min_success_rate": "no chunk is ever left out silently; see nan_policy",
    "enable_multi_device": "devices are given to ranks by the cluster section",
    "cg_absolute_tolerance": "use cg_relative_tolerance",
    "enable_residual_weighting": "give sigma or weights to the fit",
    "residual_weights": "give sigma or weights to the fit",
    "enable_group_variance_regularization": "declare the parameters shared, or eliminate them as linear",
    "group_variance_lambda": "declare the parameters shared, or eliminate them as linear",
    "group_variance_indices": "declare the parameters shared, or eliminate them as linear",
}
"""Keys of NLSQ that are dead there or settled elsewhere here, and the remedy."""


def _complaint(name: str, value: Any) -> str | None:
    """Return what is wrong with the value of a field, or None."""
    if name == "active_switching_criteria":
        bad = [v for v in value if v not in get_args(Criterion)]
        return f"{name}: no such criterion: {bad}; {_nearest('', get_args(Criterion))}" if bad or not value else None
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"{name}: no {value!r}; {_nearest(str(value), _CHOICES[name])}"
    if name in _COUNTS:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= _COUNTS[name]
        return None if whole else f"{name} must be a whole number >= {_COUNTS[name]}, not {value!r}"
    if name.startswith(("enable_", "use_")) or name in {"normalize", "center_on_p0"}:
        return None if isinstance(value, bool) else f"{name} must be true or false, not {value!r}"
    return _number_complaint(name, value)


def _number_complaint(name: str, value: Any) -> str | None:
    if name == "gradient_clip_value" and value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return f"{name} must be a number, not {value!r}"
    if name == "elimination_fraction":
        return None if 0 < value < 1 else f"{name} must be between 0 and 1, not {value!r}"
    least: Callable[[float], bool] = (lambda v: v >= 0) if name in _MAY_BE_ZERO else (lambda v: v > 0)
    sign = ">=" if name in _MAY_BE_ZERO else ">"
    return None if least(value) else f"{name} must be {sign} 0, not {value!r}"


def _unknown(key: str, names: set[str]) -> str:
    if key in _ELSEWHERE:
        return f"{key} has no effect here: {_ELSEWHERE[key]}; leave it out"
    return f"unknown option {key!r}; {_nearest(key, names)}"


def _nearest(word: str, valid: Any) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(valid), n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"valid: {', '.join(sorted(valid))}"
