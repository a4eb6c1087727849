"""The Monte-Carlo dropout job: check the inputs, list the images once, and name the stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from hpc.errors import InputError
from hpc.inputs import FolderNames
from hpc.job import Job, Stage
from hpc.store.atomic import write_atomically
from tessera.mcdropout import manifest, outputs
from tessera.mcdropout.ambiguity import class_names
from tessera.mcdropout.experiments import EXPERIMENTS, synthetic, text_tower
from tessera.mcdropout.experiments.design import ByRecipe, Settings, settle
from tessera.mcdropout.options import McDropoutOptions
from tessera.mcdropout.stages import Subject, TextStage, TrialStage

if TYPE_CHECKING:
    from torch import Tensor

    from hpc.context import Context
    from hpc.report.view import RunView, Section
    from tessera.mcdropout.pixel_stage import PixelBook
    from tessera.mcdropout.workbench import Workbench


class McDropoutJob(Job):
    """Monte-Carlo dropout trials on vision encoders."""

    Options: ClassVar[type] = McDropoutOptions

    def __init__(self, options: McDropoutOptions) -> None:
        self.options = options
        self.experiment = EXPERIMENTS[options.experiment]
        self._subject: Subject | None = None
        self._bench: Workbench | None = None
        self._book: PixelBook | None = None

    @property
    def subject(self) -> Subject:
        """What `setup` found."""
        if self._subject is None:
            msg = "the inputs are not loaded; call setup(ctx) first"
            raise RuntimeError(msg)
        return self._subject

    @property
    def bench(self) -> Workbench:
        """The models and engines of this rank."""
        if self._bench is None:
            msg = "the models are not loaded; call setup(ctx) first"
            raise RuntimeError(msg)
        return self._bench

    @property
    def book(self) -> PixelBook:
        """The pixels of the run."""
        if self._book is None:
            msg = "the pixels are not planned; call setup(ctx) first"
            raise RuntimeError(msg)
        return self._book

    def check(self) -> None:
        """See that images, prompts and models are there, without reading weights or pictures."""
        with explained():
            settings = settle(self.options, self.experiment.defaults)
            if self.options.experiment == "text":
                self._prompts(settings, list(self._classes([])))
            else:
                images = self._images(settings)
                if len(images) < 2:
                    msg = f"there is {len(images)} image; ranks need at least two: raise job.num_images or add images"
                    raise ValueError(msg)
                if self.experiment.classifies and len(self._classes(images)) < 2:
                    msg = f"experiment {self.options.experiment} needs two classes: put images into a folder for each"
                    raise ValueError(msg)
            self._require_sites(settings, self._require_models(settings))

    def inputs(self) -> Iterator[Path | FolderNames]:
        """Name all images that may be drawn from, the files of the models, and those of prompts and classes."""
        from tessera.mcdropout.workbench import files_of_model

        options = self.options
        given = (options.manifest, options.text.prompt_file, options.ambiguity.class_map)
        yield from (path for path in given if path is not None)
        if self.experiment.classifies or (options.experiment == "text" and options.text.prompt_file is None):
            yield FolderNames(options.data_dir)  # which name the classes, images in them or not
        with explained():
            if options.experiment != "text":
                yield from map(Path, self._all_images())
            for model in settle(options, self.experiment.defaults).models:
                yield from files_of_model(options, model)

    def setup(self, ctx: Context) -> None:
        """List images and find usable models on one rank, and tell the others."""
        from tessera.mcdropout.workbench import Workbench

        with explained():
            settings = settle(self.options, self.experiment.defaults)
            self._bench = Workbench(self.options, settings, ctx.device, ctx.threads)
            found = ctx.ranks.bcast(self._subject_of(settings, ctx) if ctx.rank == 0 else None)
        if isinstance(found, str):
            raise InputError(found)
        self._subject = found
        if self.options.experiment != "text":
            with explained():
                self._plan_pixels(found, ctx)
        if ctx.rank == 0:
            for model, reason in (found.skipped or {}).items():
                ctx.log.warning("model %s is left out: %s", model, reason)

    def kernels(self) -> dict[str, str]:
        """Return on what the trials run: each kind of GPU rounds differently, and a CPU otherwise than any."""
        from tessera.mcdropout.device import device_name

        return {"trials": device_name(self.bench.device)}

    def stages(self) -> Sequence[Stage]:
        """Pixels, prompts of the classifier, trials, and the steps of a search."""
        from tessera.mcdropout.pixel_stage import PixelStage

        vision: list[Stage] = [] if self.options.experiment == "text" else [PixelStage(self)]
        texts: list[Stage] = [TextStage(self)] if self.experiment.classifies else []
        steps = 0
        if self.experiment.more is not None and not self.options.module_scan.skip_combo:
            steps = self.options.module_scan.combo_max_modules
        return [*vision, *texts, *(TrialStage(self, step, last=step == steps) for step in range(steps + 1))]

    def report(self, run: RunView) -> Sequence[Section]:
        """Return the pictures of `tessera.mcdropout.report`."""
        from tessera.mcdropout.report import sections

        return sections(run)

    def bad_images(self) -> dict[int, str]:
        """By number of the image: why it takes no part."""
        return {} if self._book is None else self._book.bad_images()

    def pixels(self, model: str, images: NDArray[np.int64]) -> Tensor:
        """Return the pixels of some images as a model wants them, shape (N, 3, H, W)."""
        return self.book.read(self.bench.architecture(model).preprocess.key(), images)

    def _plan_pixels(self, subject: Subject, ctx: Context) -> None:
        """Decide where the pixels are kept, and make them where that is memory. Collective."""
        from tessera.mcdropout.pixel_stage import PixelBook, in_memory, plan_pixels

        options = self.options.pixels
        how = [self.bench.architecture(model).preprocess for model in subject.models]
        planned = ctx.ranks.bcast(plan_pixels(subject.paths, how, options, ctx) if ctx.rank == 0 else None)
        self._book = PixelBook(planned, self.bench.device, options.store)
        for name, transform in planned.items():
            if transform.stored == "memory":
                with ctx.timed("pixels"):
                    self._book.caches[name] = in_memory(transform, ctx)

    def _subject_of(self, settings: Settings, ctx: Context) -> Subject | str:
        """Return the experiment's subject, or what is wrong; rank 0."""
        try:
            skipped = self._require_models(settings, whole=True)
            if self.options.experiment == "text":
                prompts = self._prompts(settings, list(self._classes([])))
                texts, styles = tuple(text for _, text in prompts), tuple(style for style, _ in prompts)
                settings = replace(settings, num_images=len(texts))
                return Subject(settings, self.experiment, texts, styles=styles, skipped=skipped)
            paths, first = self._listed(settings, ctx.results_dir)
            classes = tuple(self._classes(paths)) if self.experiment.classifies else ()
            settings = replace(settings, num_images=first)
            return Subject(settings, self.experiment, tuple(paths), classes, skipped=skipped)
        except ValueError as error:
            return str(error)

    def _listed(self, settings: Settings, folder: Path) -> tuple[list[str], int]:
        """Return the images of the run, drawn at its first start, and how many are of the first set."""
        path = folder / self.experiment.manifest
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            return record["paths"], record["num_images"]
        folder.mkdir(parents=True, exist_ok=True)
        paths = self._images(settings)
        number = len(paths)
        if self.options.experiment == "exp2":
            paths = [*_write_synthetic(self.options, folder), *paths]
        elif self.options.experiment == "module_scan" and not self.options.module_scan.skip_combo:
            more = self.options.module_scan.combo_num_images
            paths += manifest.sample_paths(self._all_images(), more, self.options.seed + 999)
        record = {**manifest.manifest_record(paths), "num_images": number}
        write_atomically(path, lambda p: outputs.write_json(p, record))
        return paths, number

    def _all_images(self) -> list[str]:
        given = self.options.manifest
        return manifest.list_images(self.options.data_dir) if given is None else manifest.read_manifest(given)

    def _images(self, settings: Settings) -> list[str]:
        if self.options.manifest is not None:
            return manifest.read_manifest(self.options.manifest)
        number = self.options.exp2.num_natural if self.options.experiment == "exp2" else settings.num_images
        return manifest.sample_paths(self._all_images(), number, self.options.seed)

    def _classes(self, paths: Sequence[str]) -> list[str]:
        if not self.options.data_dir.is_dir():
            msg = f"job.data_dir {self.options.data_dir} is not a folder; its folders name the classes"
            raise ValueError(msg)
        folders = manifest.class_folders(self.options.data_dir, paths)
        return class_names(folders, self.options.ambiguity.class_map)

    def _prompts(self, settings: Settings, classes: Sequence[str]) -> list[text_tower.Prompt]:
        given = self.options.text
        bank = (
            text_tower.prompt_bank(classes) if given.prompt_file is None else text_tower.read_prompts(given.prompt_file)
        )
        prompts = text_tower.sample_prompts(bank, given.num_prompts, settings.seed)
        if len(prompts) < 2:
            msg = f"there is {len(prompts)} prompt; ranks need at least two: raise job.text.num_prompts"
            raise ValueError(msg)
        return prompts

    def _require_models(self, settings: Settings, *, whole: bool = False) -> dict[str, str]:
        """Return the models that cannot be used and why; ``whole`` reads their weights, too.

        Raises
        ------
        ValueError
            If that is not allowed, or no model is left.
        """
        from tessera.mcdropout.workbench import require_model

        problems = {}
        for name in settings.models:
            try:
                require_model(self.options, self.experiment, name, whole=whole)
            except ValueError as error:
                if self.options.model.on_bad == "refuse":
                    raise
                problems[name] = str(error)
        if len(problems) == len(settings.models):
            raise ValueError("; ".join(problems.values()) or "job.models is empty; name at least one model")
        return problems

    def _require_sites(self, settings: Settings, problems: dict[str, str]) -> None:
        """See that the sites to be perturbed are there."""
        from tessera.mcdropout.workbench import architecture, schedule_of

        usable = replace(settings, models=tuple(m for m in settings.models if m not in problems))
        found = {model: architecture(self.options, model) for model in usable.models}
        for arm in self.experiment.arms(usable, lambda _: ()):
            if self.options.adaptive.enabled and (len(arm.passes) > 1 or arm.geometry):
                msg = (
                    f"adaptive stops each image at a T of its own, and experiment {self.options.experiment} needs "
                    f"{'all passes of all images' if arm.geometry else f'T = {list(arm.passes)}'}; "
                    f"{'set job.adaptive.enabled=false' if arm.geometry else 'give one job.passes, the most'}"
                )
                raise ValueError(msg)
            if isinstance(arm.perturbation, ByRecipe):
                schedule_of(arm, found[arm.model])


def _write_synthetic(options: McDropoutOptions, folder: Path) -> list[str]:
    """Write the synthetic images and return their paths, category by category."""
    from PIL import Image

    given = options.exp2
    paths = []
    for category, images in synthetic.synthetic_images(given.image_size, given.num_each_synth, options.seed).items():
        below = folder / "synthetic_inputs" / category
        below.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            path = below / f"{category}_{number:03d}.png"
            write_atomically(path, lambda p, image=image: Image.fromarray(image).save(p, format="png"))  # type: ignore[misc]
            paths.append(str(path))
    return paths


@contextmanager
def explained() -> Iterator[None]:
    """Hand errors about the inputs to the engine as what they are, without a traceback for the user."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
