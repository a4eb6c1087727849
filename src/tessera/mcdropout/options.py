"""The options of the Monte-Carlo dropout job; ``conf/job/mcdropout.yaml`` is their documented default.

Names and defaults are those of mcdo-vlm-uncertainty where the thing still exists; null means the experiment's own
default (`tessera.mcdropout.experiments.DEFAULTS`). What the engine does itself (workers, resume, saving, the lock) has
no option here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from hpc.options import Range

Positive = Annotated[float, Range(gt=0)]
Rate = Annotated[float, Range(ge=0, lt=1)]
Fraction = Annotated[float, Range(gt=0, lt=1)]
Count = Annotated[int, Range(ge=1)]
Passes = Annotated[int, Range(ge=2)]

ExperimentName = Literal[
    "exp0",
    "exp0b",
    "exp1",
    "exp2",
    "exp3",
    "exp4",
    "exp4_full",
    "exp5",
    "exp5_full",
    "exp6",
    "module_scan",
    "groupwise",
    "text",
]
DropoutType = Literal["A", "B", "C", "D", "E"]
PerturbationKind = Literal["dropout", "gaussian", "scale"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Where the weights come from."""

    init: Literal["weights", "random"] = "weights"
    weights: dict[str, Path | None] = field(default_factory=dict)
    on_bad: Literal["refuse", "skip"] = "refuse"


@dataclass(frozen=True, slots=True)
class PerturbationOptions:
    """Where and how the features are disturbed, in the experiments that do not vary it."""

    select: Literal["uniform", "attention", "mlp", "stochastic_depth", "projection", "late", "sites"] = "uniform"
    action: PerturbationKind = "dropout"
    late_blocks: Count = 3
    linears: tuple[str, ...] = ("mlp.fc2",)
    sites: tuple[str, ...] = ()
    compat: Literal["none", "uniform_linear"] = "none"
    masks: Literal["per_image", "shared"] = "per_image"
    rng: Literal["philox", "torch"] = "philox"
    form: Literal["auto", "sparse", "dense"] = "auto"

    def __post_init__(self) -> None:
        if (self.select == "sites") != bool(self.sites) and self.select != "projection":
            msg = "select: sites and a list of sites belong together; give perturbation.select=sites and sites=[…]"
            raise ValueError(msg)
        if self.compat != "none" and (self.select != "uniform" or self.action != "dropout"):
            msg = f"compat: {self.compat} is a uniform dropout; it goes with select: uniform and action: dropout only"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class PixelOptions:
    """The pixel tensor: decoded and preprocessed once."""

    on_bad: Literal["skip", "refuse"] = "skip"
    odd: Literal["convert", "skip", "refuse"] = "convert"
    cache: Path | None = None
    store: Literal["auto", "device", "host", "disk"] = "auto"


@dataclass(frozen=True, slots=True)
class PerformanceOptions:
    """How fast; of these only batch_size and precision (and compile, by rounding) touch the results."""

    batch_size: Count | Literal["auto"] = "auto"
    image_block: Count = 16
    pass_block: Count | None = None
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    compile: bool | Literal["auto"] = "auto"
    tf32: bool = False
    cudnn_benchmark: bool = False
    models_resident: Count = 1


@dataclass(frozen=True, slots=True)
class AdaptiveOptions:
    """Stop the passes of an image once its trace is known well enough."""

    enabled: bool = False
    gate: Positive = 0.10
    confidence: Fraction = 0.95
    least_passes: Passes = 8


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is kept beyond the experiment's own tables."""

    features: bool = False
    geometry: bool = False
    weighted_trace: bool = True
    thumbnails: Annotated[int, Range(ge=0)] = 24


@dataclass(frozen=True, slots=True)
class NestedOptions:
    """exp0."""

    nested: bool = True


@dataclass(frozen=True, slots=True)
class RankOptions:
    """exp1."""

    p_values: tuple[Rate, ...] = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """exp2."""

    num_natural: Count = 10
    num_each_synth: Count = 10
    image_size: Annotated[int, Range(ge=8)] = 224


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """exp3."""

    dropout_types: tuple[DropoutType, ...] = ("A", "B", "C", "D", "E")


@dataclass(frozen=True, slots=True)
class AmbiguityOptions:
    """exp5, exp5_full, groupwise: the zero-shot classifier; class_map also names the classes of text."""

    class_map: Path | None = None
    templates: str = "a photo of a {}|a {}|an image of a {}"
    quantile: Fraction = 0.10

    def __post_init__(self) -> None:
        if not self.prompts or not all("{}" in template for template in self.prompts):
            msg = f"templates {self.templates!r} must be separated by | and each hold {{}} in the place of the class"
            raise ValueError(msg)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates, one by one."""
        return tuple(t.strip() for t in self.templates.split("|") if t.strip())


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """module_scan: every site alone, then a greedy combination of the best."""

    ptypes: tuple[PerturbationKind, ...] = ("dropout", "gaussian", "scale")
    magnitudes: tuple[Rate, ...] = (0.01, 0.05)
    skip_combo: bool = False
    combo_top_k: Count = 10
    combo_max_modules: Count = 5
    combo_trials: Count = 5
    combo_passes: Passes = 64
    combo_num_images: Count = 500


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """groupwise: the search for one dropout rate per group of layers."""

    num_groups: Count = 4
    base_p: Fraction = 0.01
    min_p: Fraction = 0.001
    max_p: Fraction = 0.1
    num_candidates: Annotated[int, Range(ge=0)] = 24

    def __post_init__(self) -> None:
        if self.min_p >= self.max_p:
            msg = f"min_p {self.min_p:g} must be below max_p {self.max_p:g}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """text: dropout in the text tower."""

    prompt_file: Path | None = None
    num_prompts: Annotated[int, Range(ge=0)] = 1000
    specificity_quantile: Fraction = 0.20


@dataclass(frozen=True, slots=True)
class McDropoutOptions:
    """All options of the job."""

    data_dir: Path
    experiment: ExperimentName = "exp0"
    manifest: Path | None = None
    models: tuple[str, ...] | None = None
    num_images: Annotated[int, Range(ge=0)] | None = None
    dropout: Rate = 0.01
    trials: Count | None = None
    passes: Passes | tuple[Passes, ...] | None = None
    seed: Annotated[int, Range(ge=0)] = 42
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    model: ModelOptions = ModelOptions()
    perturbation: PerturbationOptions = PerturbationOptions()
    pixels: PixelOptions = PixelOptions()
    performance: PerformanceOptions = PerformanceOptions()
    adaptive: AdaptiveOptions = AdaptiveOptions()
    outputs: OutputOptions = OutputOptions()
    exp0: NestedOptions = NestedOptions()
    exp1: RankOptions = RankOptions()
    exp2: SyntheticOptions = SyntheticOptions()
    exp3: TypeOptions = TypeOptions()
    ambiguity: AmbiguityOptions = AmbiguityOptions()
    module_scan: ScanOptions = ScanOptions()
    groupwise: GroupOptions = GroupOptions()
    text: TextOptions = TextOptions()

    def __post_init__(self) -> None:
        if self.adaptive.enabled and self.perturbation.rng == "torch":
            msg = "adaptive stops images one by one, and rng: torch draws for all of them at once; use rng: philox"
            raise ValueError(msg)
        if self.adaptive.enabled and (self.performance.pass_block is not None or self.outputs.geometry):
            msg = "adaptive needs whole trials and has no common T; leave pass_block null and outputs.geometry false"
            raise ValueError(msg)
