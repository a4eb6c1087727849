"""What an experiment consists of: its arms, the tables that come back, and the files it makes of them.

An experiment is two plain functions: `arms` says which trials to run, `export` turns their tables into files. It knows
nothing of ranks, units or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout.ambiguity import Ambiguity
from tessera.mcdropout.options import McDropoutOptions

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ByRecipe:
    """A perturbation in the words of `tessera.mcdropout.recipes.Recipe`, without what that imports."""

    select: str
    p: float
    action: str = "dropout"
    blocks: int = 3
    linears: tuple[str, ...] = ("mlp.fc2",)
    sites: tuple[str, ...] = ()
    schedule: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BySites:
    """A perturbation of its own at each of some sites: ``(site id, action, magnitude)``."""

    sites: tuple[tuple[str, str, float], ...]


Perturbed: TypeAlias = ByRecipe | BySites


@dataclass(frozen=True, slots=True)
class Arm:
    """Trials of one model under one perturbation.

    Attributes
    ----------
    key
        Name within the experiment; part of the names of the units.
    model
        Key of the model.
    perturbation
        What is disturbed.
    seeds
        One per trial.
    passes
        T at which the moments are looked at, rising; the last is the number of passes.
    first, end
        Which of the images (or prompts) of the experiment; ``end`` None: to the last.
    geometry
        Whether the features of all passes are looked at together (`tessera.mcdropout.metrics.geometry`).
    tower
        Whose features.
    """

    key: str
    model: str
    perturbation: Perturbed
    seeds: tuple[int, ...]
    passes: tuple[int, ...]
    first: int = 0
    end: int | None = None
    geometry: bool = False
    tower: Literal["vision", "text"] = "vision"


@dataclass(frozen=True, slots=True)
class Defaults:
    """The original's defaults of an experiment."""

    models: tuple[str, ...]
    num_images: int
    trials: int
    passes: tuple[int, ...]
    batch_size: int = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """The options with the experiment's defaults filled in."""

    options: McDropoutOptions
    models: tuple[str, ...]
    num_images: int
    trials: int
    passes: tuple[int, ...]
    batch_size: int

    @property
    def seed(self) -> int:
        """The seed all others are made from."""
        return self.options.seed

    def uniform(self, magnitude: float | None = None) -> ByRecipe:
        """Return the perturbation of experiments that do not vary it."""
        chosen = self.options.perturbation
        p = self.options.dropout if magnitude is None else magnitude
        if chosen.compat != "none":
            return ByRecipe(chosen.compat, p)
        return ByRecipe(chosen.select, p, chosen.action, chosen.late_blocks, chosen.linears, chosen.sites)


def settle(options: McDropoutOptions, defaults: Defaults) -> Settings:
    """Fill in an experiment's defaults.

    Raises
    ------
    ValueError
        If the passes are not rising.
    """
    given = options.passes
    passes = defaults.passes if given is None else (given,) if isinstance(given, int) else given
    if not passes or list(passes) != sorted(set(passes)):
        msg = f"passes {list(passes)} must rise from one to the next, such as [4, 16, 64]"
        raise ValueError(msg)
    batch = options.performance.batch_size
    return Settings(
        options=options,
        models=defaults.models if options.models is None else options.models,
        num_images=defaults.num_images if options.num_images is None else options.num_images,
        trials=defaults.trials if options.trials is None else options.trials,
        passes=passes,
        batch_size=defaults.batch_size if batch == "auto" else batch,
    )


@dataclass(frozen=True)
class ArmTable:
    """The finished trials of an arm.

    Attributes
    ----------
    arm
        Which.
    images
        Shape (N,): which images of the experiment, unreadable ones left out.
    columns
        By ``(name, T)``: shape (K, N), or (K, N, m) for spectra.
    reference
        Shape (N, D): the features without perturbation.
    """

    arm: Arm
    images: NDArray[np.int64]
    columns: Mapping[tuple[str, int], Floats]
    reference: Floats

    def trials(self, name: str, passes: int | None = None) -> Floats:
        """Return a column at some T, by default the last."""
        return self.columns[name, self.arm.passes[-1] if passes is None else passes]


@dataclass(frozen=True)
class Study:
    """All that came out of an experiment.

    Attributes
    ----------
    settings
        What was asked for.
    paths
        Of the images, or the prompts.
    tables
        By the key of the arm; an arm whose model could not be used is absent.
    skipped
        By model: why it could not be used.
    sites
        By the key of the arm: the sites that were perturbed.
    ambiguity
        By model, of the images of its arms.
    classes
        Names of the classes.
    styles
        Of the prompts.
    """

    settings: Settings
    paths: tuple[str, ...]
    tables: Mapping[str, ArmTable]
    skipped: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ambiguity: Mapping[str, Ambiguity] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()

    def of(self, model: str) -> list[ArmTable]:
        """Return the tables of a model, in the order of the arms."""
        return [table for table in self.tables.values() if table.arm.model == model]

    def done(self) -> list[str]:
        """Return the models that have results."""
        return [model for model in self.settings.models if self.of(model)]

    def names(self, table: ArmTable) -> NDArray[np.str_]:
        """Return the paths of a table's images."""
        return np.array([self.paths[i] for i in table.images], dtype=np.str_)


@dataclass
class Files:
    """The files of an experiment under the original's names: what to write, not yet written."""

    npz: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    json: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes
    ----------
    defaults
        Of the original.
    arms
        ``arms(settings, sites)``, where ``sites(model)`` lists the ids of the places to perturb.
    export
        Makes the files.
    classifies
        Whether it needs the zero-shot classifier.
    more
        ``more(study, step)``: arms that depend on what came out of those before, step by step from 1.
    manifest
        What the original calls its list of images.
    """

    defaults: Defaults
    arms: Callable[[Settings, Callable[[str], Sequence[str]]], list[Arm]]
    export: Callable[[Study], Files]
    classifies: bool = False
    more: Callable[[Study, int], list[Arm]] | None = None
    manifest: str = "manifest.json"


def seeds(settings: Settings, seed_of: Callable[[int], int]) -> tuple[int, ...]:
    """Return the seed of each trial."""
    return tuple(seed_of(k) for k in range(settings.trials))


def summary_statistics(values: Floats) -> dict[str, float]:
    """Return the original's five numbers of an array, shape (N,)."""
    p25, median, p75 = np.percentile(values, [25.0, 50.0, 75.0])
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "median": float(median),
        "p25": float(p25),
        "p75": float(p75),
    }
