"""The stages of the Monte-Carlo dropout job: units in, files out. The numbers come from the algorithm modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hpc.job import Arrays, Map, Results, Unit
from tessera.mcdropout import ambiguity
from tessera.mcdropout.experiments.design import Arm, ArmTable, Experiment, Settings, Study
from tessera.mcdropout.tables import Place, collect, places, reduced, shape_columns

if TYPE_CHECKING:
    from torch import Tensor

    from hpc.context import Context
    from tessera.mcdropout.options import McDropoutOptions
    from tessera.mcdropout.trial import TrialEngine, TrialResult
    from tessera.mcdropout.workbench import Workbench

TRIALS = "trials"
TEXTS = "texts"
_PROMPTS_IN_UNIT = 256


@dataclass(frozen=True)
class Subject:
    """What the experiment looks at.

    Attributes
    ----------
    settings, experiment
        What was asked for.
    paths
        Of the images, or the prompts.
    bad
        By number of the image: why it cannot be read.
    classes, styles
        Names of the classes; styles of the prompts.
    skipped
        By model: why it cannot be used.
    """

    settings: Settings
    experiment: Experiment
    paths: tuple[str, ...]
    classes: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    skipped: dict[str, str] | None = None

    @property
    def models(self) -> list[str]:
        """The models that can be used."""
        return [m for m in self.settings.models if m not in (self.skipped or {})]


class Ready(Protocol):
    """The job, as far as its stages need it."""

    @property
    def subject(self) -> Subject:
        """What `setup` found."""
        ...

    @property
    def bench(self) -> Workbench:
        """The models and engines of this rank."""
        ...

    def bad_images(self) -> dict[int, str]:
        """By number of the image: why it could not be read."""
        ...

    def pixels(self, model: str, images: NDArray[np.int64]) -> Tensor:
        """Return the pixels of some images as a model wants them, a tensor of shape (N, 3, H, W)."""
        ...


def prompt_units(subject: Subject) -> list[str]:
    """Return the prompts of the zero-shot classifier: all classes with the first template, then the next."""
    return [t.format(name) for t in subject.settings.options.ambiguity.prompts for name in subject.classes]


class TextStage(Map):
    """The features of the classes' prompts."""

    name = TEXTS

    def __init__(self, job: Ready) -> None:
        self._job = job

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List blocks of prompts of every model."""
        del ctx
        subject = self._job.subject
        starts = range(0, len(prompt_units(subject)), _PROMPTS_IN_UNIT)
        return [Unit(f"{model}/p{start:07d}") for model in subject.models for start in starts]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Encode one block."""
        del ctx
        model, _, start = unit.key.rpartition("/p")
        prompts = prompt_units(self._job.subject)[int(start) : int(start) + _PROMPTS_IN_UNIT]
        return {"features": self._job.bench.text_features(model, prompts)}

    def merge(self, results: Results, ctx: Context) -> None:
        """Leave it to the trials to use them."""


class TrialStage(Map):
    """The trials of the experiment's arms, or of one step of those that follow from others.

    Parameters
    ----------
    job
        What was loaded.
    step
        0: the experiment's arms; 1, 2, …: what `Experiment.more` makes of the steps before.
    last
        Whether this stage writes the files.
    """

    def __init__(self, job: Ready, step: int = 0, *, last: bool = True) -> None:
        self.name = stage_name(step)
        self._job, self._step, self._last = job, step, last
        self._arms: dict[str, Arm] = {}
        self._study: Study | None = None

    def arms(self, ctx: Context) -> dict[str, Arm]:
        """Return the arms of this stage by their keys, made once."""
        if not self._arms:
            subject = self._job.subject
            if self._step == 0:
                found = first_arms(self._job)
            else:
                assert subject.experiment.more is not None  # noqa: S101 - else there is no such stage
                found = subject.experiment.more(self._before(ctx), self._step)
            self._arms = {arm.key: arm for arm in found}
        return self._arms

    def _before(self, ctx: Context) -> Study:
        if self._study is None:
            self._study = study_so_far(self._job, self._step, ctx)
        return self._study

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List blocks of images and passes of every trial of every arm."""
        from tessera.mcdropout.workbench import pass_flops

        speed = self._job.subject.settings.options.performance
        whole = self._job.subject.settings.options.perturbation.rng == "torch"
        listed = []
        for arm in self.arms(ctx).values():
            number = len(arm_images(self._job, arm))
            block, cut = (number, None) if whole else (speed.image_block, speed.pass_block)
            each = pass_flops(arm, self._job.bench.architecture(arm.model))
            listed += [Unit(p.key, p.cost * each) for p in places(arm, number, block, cut)]
        return listed

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Make the passes of one block."""
        place = Place.of(unit.key)
        arm = self.arms(ctx)[place.arm]
        images = arm_images(self._job, arm)[place.first : place.end]
        return run_place(self._job, arm, place, images)

    def merge(self, results: Results, ctx: Context) -> None:
        """Write the experiment's files, if this is its last stage."""
        del results
        if not self._last:
            return
        from tessera.mcdropout.results import write_results

        with threadpool_limits(1, "blas"):
            study = study_so_far(self._job, self._step + 1, ctx)
            write_results(study, self._job, self._step + 1, ctx)


def stage_name(step: int) -> str:
    """Return the name of a step's stage."""
    return TRIALS if step == 0 else f"combinations_{step}"


def first_arms(job: Ready) -> list[Arm]:
    """Return the experiment's own arms, of the models that can be used."""
    from tessera.mcdropout.workbench import scanned_sites

    subject = job.subject
    settings = replace(subject.settings, models=tuple(subject.models))
    arms = subject.experiment.arms(settings, lambda model: scanned_sites(job.bench.architecture(model)))
    always = settings.options.outputs.geometry
    return [replace(arm, geometry=arm.geometry or always) for arm in arms]


def arm_images(job: Ready, arm: Arm) -> NDArray[np.int64]:
    """Return the numbers of an arm's images, those left out that cannot be read."""
    numbers = np.arange(len(job.subject.paths), dtype=np.int64)[arm.first : arm.end]
    if arm.tower == "text":
        return numbers
    return np.setdiff1d(numbers, np.array(list(job.bad_images()), np.int64))


def run_place(job: Ready, arm: Arm, place: Place, images: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Make the passes of a unit and reduce them to what is kept."""
    options = job.subject.settings.options
    engine = job.bench.engine(arm)
    if arm.tower == "text":
        inputs = job.bench.tokens(arm.model, [job.subject.paths[i] for i in images])
    else:
        inputs = job.pixels(arm.model, images)
    whole = place.stop - place.start == arm.passes[-1]
    numbers = images - arm.first  # so that the masks of a category do not depend on the images before it
    done = _passes(engine, arm, place, inputs, numbers, options)
    kept: dict[str, NDArray[Any]] = {}
    if options.outputs.features and done.features is not None:
        kept["features"] = done.features
    if not whole:
        weighted = np.array(options.outputs.weighted_trace)
        return kept | dict(done.moments.arrays()) | {"weighted": weighted}
    reference = engine.prepare(inputs, numbers).reference.float().cpu().numpy()
    snapshots = done.snapshots or {arm.passes[-1]: done.moments}
    kept |= reduced(snapshots, reference.astype(np.float64), weighted=options.outputs.weighted_trace)
    if arm.geometry and done.features is not None:
        with threadpool_limits(1, "blas"):  # sums must not depend on the number of threads
            kept |= shape_columns(done.features)
    return kept | ({"reference": reference} if place.trial == 0 else {})


def _passes(
    engine: TrialEngine,
    arm: Arm,
    place: Place,
    inputs: Tensor,
    numbers: NDArray[np.int64],
    options: McDropoutOptions,
) -> TrialResult:
    from tessera.mcdropout.adaptive import run_adaptive

    seed, adaptive = arm.seeds[place.trial], options.adaptive
    if adaptive.enabled:
        return run_adaptive(
            engine,
            inputs,
            numbers,
            seed=seed,
            trial=place.trial,
            most=place.stop,
            least=adaptive.least_passes,
            gate=adaptive.gate,
            confidence=adaptive.confidence,
        )
    return engine.run(
        inputs,
        numbers,
        seed=seed,
        trial=place.trial,
        passes=range(place.start, place.stop),
        features=arm.geometry or options.outputs.features,
        snapshots=arm.passes if place.stop - place.start == arm.passes[-1] else (),
    )


def study_so_far(job: Ready, steps: int, ctx: Context) -> Study:
    """Collect the tables of the first ``steps`` stages of trials; models with missing units are left out."""
    from tessera.mcdropout.workbench import schedule_of

    subject = job.subject
    study = Study(
        subject.settings,
        subject.paths,
        {},
        skipped=dict(subject.skipped or {}),
        classes=subject.classes,
        styles=subject.styles,
    )
    for step in range(steps):
        found = first_arms(job) if step == 0 else subject.experiment.more(study, step)  # type: ignore[misc]
        tables, lost = read_tables(job, found, ctx.results(stage_name(step)))
        sites = {a.key: [s["id"] for s in schedule_of(a, job.bench.architecture(a.model)).table()] for a in found}
        study = replace(
            study,
            tables={**study.tables, **tables},
            skipped={**study.skipped, **lost},
            sites={**study.sites, **{key: [str(s) for s in ids] for key, ids in sites.items()}},
        )
    if subject.experiment.classifies:
        study = replace(study, ambiguity=_ambiguity(job, study, ctx))
    return study


def read_tables(job: Ready, arms: Sequence[Arm], results: Results) -> tuple[dict[str, ArmTable], dict[str, str]]:
    """Return the tables of whole arms by key, and by model why others are missing."""
    options = job.subject.settings.options
    whole = options.perturbation.rng == "torch"
    tables: dict[str, ArmTable] = {}
    lost: dict[str, str] = {}
    for arm in arms:
        images = arm_images(job, arm)
        block, cut = (len(images), None) if whole else (options.performance.image_block, options.performance.pass_block)
        listed = sorted(places(arm, len(images), block, cut), key=lambda p: p.key)
        missing = [p.key for p in listed if p.key not in results]
        if missing:
            lost[arm.model] = f"{len(missing)} of {len(listed)} units of {arm.key} failed, such as {missing[0]}"
            continue
        tables[arm.key] = collect(arm, images, _read(listed, results))
    incomplete = set(lost)
    return {key: table for key, table in tables.items() if table.arm.model not in incomplete}, lost


def _read(listed: Sequence[Place], results: Results) -> Iterator[tuple[Place, Arrays]]:
    for place in listed:
        yield place, results[place.key]


def _ambiguity(job: Ready, study: Study, ctx: Context) -> dict[str, ambiguity.Ambiguity]:
    subject, results = job.subject, ctx.results(TEXTS)
    found = {}
    for model in study.done():
        blocks = [arrays["features"] for key, arrays in results.items() if key.rpartition("/p")[0] == model]
        texts = np.concatenate(blocks).astype(np.float64)
        texts = texts.reshape(len(subject.settings.options.ambiguity.prompts), len(subject.classes), -1)
        loaded = job.bench.model(model)
        images = study.of(model)[0].reference.astype(np.float64)
        found[model] = ambiguity.measure(images, texts, float(np.exp(loaded.logit_scale)), loaded.logit_bias)
    return found
