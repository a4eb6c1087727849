"""The experiments of mcdo-vlm-uncertainty, by the name that ``job.experiment`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tessera.mcdropout.experiments import (
    convergence,
    dropout_type,
    groupwise,
    module_scan,
    nested,
    norm_geometry,
    prediction,
    rank_p,
    recipe,
    synthetic,
    text_tower,
)
from tessera.mcdropout.experiments.design import Experiment
from tessera.mcdropout.options import ExperimentName

EXPERIMENTS: Final[Mapping[ExperimentName, Experiment]] = {
    "exp0": nested.EXPERIMENT,
    "exp0b": norm_geometry.EXPERIMENT,
    "exp1": rank_p.EXPERIMENT,
    "exp2": synthetic.EXPERIMENT,
    "exp3": dropout_type.EXPERIMENT,
    "exp4": recipe.EXPERIMENT_SUBSET,
    "exp4_full": recipe.EXPERIMENT_FULL,
    "exp5": prediction.EXPERIMENT_SUBSET,
    "exp5_full": prediction.EXPERIMENT_FULL,
    "exp6": convergence.EXPERIMENT,
    "module_scan": module_scan.EXPERIMENT,
    "groupwise": groupwise.EXPERIMENT,
    "text": text_tower.EXPERIMENT,
}
