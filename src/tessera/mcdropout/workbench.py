"""What a rank keeps between units: loaded models, their pixel tensors, and the engine of the arm at hand."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.mcdropout.device import choose_device, mask_form, set_switches
from tessera.mcdropout.errors import SiteError, WeightsError
from tessera.mcdropout.experiments.design import Arm, BySites, Experiment, Settings
from tessera.mcdropout.model_config import Architecture
from tessera.mcdropout.models import MODELS, Loaded, find_architecture, load_model
from tessera.mcdropout.options import McDropoutOptions
from tessera.mcdropout.recipes import Recipe, Schedule, Strength, resolve
from tessera.mcdropout.sites import Site
from tessera.mcdropout.text import TextConfig, TextTower
from tessera.mcdropout.towers import Tower, TowerConfig, VisionTower
from tessera.mcdropout.trial import EngineSettings, TrialEngine
from tessera.mcdropout.weights import find_weights, open_weights

_log = logging.getLogger(__name__)


def model_folder(options: McDropoutOptions, model: str) -> tuple[str, Path | None]:
    """Return what `load_model` takes for a name of ``job.models``: a key and its folder, or a folder.

    Raises
    ------
    WeightsError
        If the name is neither a key nor listed in ``job.model.weights``.
    """
    folder = options.model.weights.get(model)
    if model in MODELS:
        return model, folder
    if folder is None:
        known = ", ".join([*MODELS, *options.model.weights])
        msg = f"job.models names {model!r}, which is no key and has no folder in job.model.weights; known: {known}"
        raise WeightsError(msg)
    return str(folder), None


def architecture(options: McDropoutOptions, model: str) -> Architecture:
    """Return what a model looks like, without its weights.

    Raises
    ------
    WeightsError
        If there is no such model or its configuration cannot be read.
    """
    name, folder = model_folder(options, model)
    return find_architecture(name, folder, random=options.model.init == "random")[0]


def files_of_model(options: McDropoutOptions, model: str) -> list[Path]:
    """Return the files beside a model's weights that describe it, and the weights if they are read; none without any.

    Raises
    ------
    WeightsError
        If there is no such model.
    """
    name, given = model_folder(options, model)
    folder = given if name in MODELS else Path(name)
    if folder is None or not folder.is_dir():
        return []
    files = sorted(path for path in folder.glob("*.json") if path.is_file())
    if options.model.init == "weights":
        with suppress(WeightsError):  # a model that cannot be used is refused or left out elsewhere
            found, _ = find_architecture(name, given, random=False)
            files += find_weights(folder, found.vision.layout).paths
    return files


def require_model(options: McDropoutOptions, experiment: Experiment, name: str, *, whole: bool) -> None:
    """See that a model can be used.

    Parameters
    ----------
    options, experiment
        Of the job.
    name
        Of the model.
    whole
        Read the weights, too; else only see that they are there.

    Raises
    ------
    ValueError
        If it cannot: the message names the file, the cause and the remedy.
    """
    key, folder = model_folder(options, name)
    texts = experiment.classifies or options.experiment == "text"
    if whole:
        loaded = load_model(key, folder, init=options.model.init, seed=options.seed, text=texts)
        for remark in loaded.remarks:
            _log.warning("%s", remark)
        if texts and loaded.tokenizer is None:
            msg = f"model {name} has no tokenizer.json beside its configuration, which prompts need; give its folder"
            raise WeightsError(msg)
        return
    found, held = find_architecture(key, folder, random=options.model.init == "random")
    if texts and found.text is None:
        msg = (
            f"{found.source} describes no text tower, which experiment {options.experiment} needs; take the whole model"
        )
        raise WeightsError(msg)
    if options.model.init == "weights" and held is not None:
        with open_weights(find_weights(held, found.vision.layout)):
            pass


def sites_of(found: Architecture, tower: str) -> tuple[Site, ...]:
    """Return the sites of one of a model's towers, without its weights.

    Raises
    ------
    SiteError
        If it has no text tower.
    """
    with torch.device("meta"):
        if tower == "vision":
            return VisionTower(found.vision).sites()
        if found.text is None:
            msg = f"{found.source} describes no text tower, which experiment text perturbs; take a folder that does"
            raise SiteError(msg)
        return TextTower(found.text).sites()


def schedule_of(arm: Arm, found: Architecture) -> Schedule:
    """Return what an arm does at each site of its tower.

    Raises
    ------
    SiteError, DrawError
        If the sites or the magnitudes cannot be had.
    """
    sites, how = sites_of(found, arm.tower), arm.perturbation
    if isinstance(how, BySites):
        return Schedule(sites, {site: Strength(action, size) for site, action, size in how.sites})  # type: ignore[arg-type]
    recipe = Recipe(how.select, how.p, how.action, how.blocks, how.linears, how.sites, how.schedule)  # type: ignore[arg-type]
    return resolve(recipe, sites, found.vision.layout)


def pass_flops(arm: Arm, found: Architecture) -> float:
    """Return about how many operations a pass of one image costs: of the blocks from the first perturbed one on.

    Twice the multiplications of the linear layers and of the attention; norms, activations and masks are left out.
    """
    config: TowerConfig | TextConfig = found.vision
    tokens = found.vision.tokens
    if arm.tower == "text":
        assert found.text is not None  # noqa: S101 - `sites_of` has refused models without
        config, tokens = found.text, found.text.context
    width, first = config.width, max(schedule_of(arm, found).first.block, 0)
    block = 2 * tokens * (4 * width**2 + 2 * width * config.mlp) + 4 * tokens**2 * width
    return float(block * max(config.layers - first, 1))


def scanned_sites(found: Architecture) -> list[str]:
    """Return the ids of the places that module_scan tries: the linear layers, in forward order."""
    return [site.id for site in sites_of(found, "vision") if site.kind in ("attention", "mlp")]


@dataclass(frozen=True)
class EngineKey:
    """Which engine is at hand for a model."""

    arm: str
    engine: TrialEngine


class Workbench:
    """Models and engines of one rank.

    Parameters
    ----------
    options, settings
        Of the job.
    assigned
        The GPU of this rank, ``cuda:N``, or ``cpu``.
    threads
        This rank may use on CPU.

    Attributes
    ----------
    micro_batches
        By model: the shape of the micro-batches on this rank.

    Raises
    ------
    DeviceError
        If the device asked for is not there.
    """

    def __init__(self, options: McDropoutOptions, settings: Settings, assigned: str, threads: int = 1) -> None:
        self._options, self._settings, self._threads = options, settings, threads
        self.device = choose_device(options.device, assigned)
        speed = options.performance
        set_switches(self.device, tf32=speed.tf32, cudnn_benchmark=speed.cudnn_benchmark)
        if self.device.type == "cpu":
            # Some of torch's operations round differently with another number of threads: the engine brings its own.
            torch.set_num_threads(1)
        self._models: OrderedDict[str, Loaded] = OrderedDict()
        self._engines: dict[str, EngineKey] = {}
        self.micro_batches: dict[str, int] = {}
        self._architectures: dict[str, Architecture] = {}

    @property
    def form(self) -> str:
        """The form in which masks are drawn."""
        asked = self._options.perturbation.form
        return mask_form(self.device) if asked == "auto" else asked

    def architecture(self, model: str) -> Architecture:
        """Return what a model looks like, read once."""
        if model not in self._architectures:
            self._architectures[model] = architecture(self._options, model)
        return self._architectures[model]

    def model(self, name: str, *, text: bool = False) -> Loaded:
        """Return a model, loaded once; those used last stay, as many as ``models_resident``."""
        kept = self._models.get(name)
        if kept is None or (text and kept.text is None):
            key, folder = model_folder(self._options, name)
            kept = load_model(key, folder, init=self._options.model.init, seed=self._options.seed, text=text)
            for remark in kept.remarks:
                _log.warning("%s", remark)
        self._models[name] = kept
        self._models.move_to_end(name)
        while len(self._models) > self._options.performance.models_resident:
            old, _ = self._models.popitem(last=False)
            self._engines.pop(old, None)
        return kept

    def engine(self, arm: Arm) -> TrialEngine:
        """Return the engine of an arm; a rank works through one arm of a model after the other."""
        found = self._engines.get(arm.model)
        if found is None or found.arm != arm.key:
            loaded = self.model(arm.model, text=arm.tower == "text")
            tower: Tower | None = loaded.tower if arm.tower == "vision" else loaded.text
            assert tower is not None  # noqa: S101 - `sites_of` has refused models without
            schedule = schedule_of(arm, self.architecture(arm.model))
            found = EngineKey(arm.key, TrialEngine(tower, schedule, self._engine_settings(), self.device))
            self._engines[arm.model] = found
            self.micro_batches[arm.model] = found.engine.batch.size
        return found.engine

    def tokens(self, model: str, texts: Sequence[str]) -> Tensor:
        """Return the token numbers of texts, shape (N, context)."""
        loaded = self.model(model, text=True)
        assert loaded.tokenizer is not None  # noqa: S101 - `require_model` has refused models without
        return loaded.tokenizer(texts)

    def text_features(self, model: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of texts without perturbation, shape (N, D)."""
        tower = self.model(model, text=True).text
        assert tower is not None  # noqa: S101 - asked for
        with torch.inference_mode():
            features = tower.to(self.device)(self.tokens(model, texts).to(self.device))
        return np.asarray(features.float().cpu().numpy())

    def _engine_settings(self) -> EngineSettings:
        speed, how = self._options.performance, self._options.perturbation
        exact = how.rng == "torch" and speed.batch_size == "auto"
        return EngineSettings(
            micro_batch=self._settings.batch_size if exact else speed.batch_size,
            rng=how.rng,
            form=how.form,
            shared_masks=how.masks == "shared",
            precision=speed.precision,
            compile=speed.compile,
            threads=self._threads,
        )
