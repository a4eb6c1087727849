"""exp5 and exp5_full: whether the uncertainty finds images that a zero-shot classifier is unsure of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout.ambiguity import compare, tails
from tessera.mcdropout.experiments.design import Arm, Defaults, Experiment, Files, Settings, Study, seeds

SUBSET = Defaults(("clip_b32", "siglip2_b16"), 5000, 1, (64,))
FULL = Defaults(("clip_b32", "siglip2_b16"), 10_000, 1, (64,))


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model."""
    del sites
    chosen = seeds(settings, lambda k: settings.seed + k)
    return [Arm(m, m, settings.uniform(), chosen, settings.passes) for m in settings.models]


def _one(study: Study, model: str, experiment: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    (table,) = study.of(model)
    settings, found = study.settings, study.ambiguity[model]
    trials = table.trials("trace_pre")
    uncertainty = trials.mean(axis=0)
    chosen = tails(found, settings.options.ambiguity.quantile)
    arrays = {
        "paths": study.names(table),
        "uncertainty_trials": trials,
        "uncertainty": uncertainty,
        "margin": found.margin,
        "entropy": found.entropy,
        "prompt_sensitivity": found.prompt_sensitivity,
        "low_margin": chosen.low_margin.astype(np.int64),
        "high_entropy": chosen.high_entropy.astype(np.int64),
    }
    summary = {
        "experiment": experiment,
        "model": model,
        "num_images": len(table.images),
        "dropout": settings.options.dropout,
        "passes": settings.passes[-1],
        "trials": settings.trials,
        "injected_linear_dropout_wrappers": len(study.sites[table.arm.key]),
        "num_classes": len(study.classes),
        "templates": list(settings.options.ambiguity.prompts),
        "quantile": settings.options.ambiguity.quantile,
        "thresholds": {"low_margin": chosen.margin_threshold, "high_entropy": chosen.entropy_threshold},
        "metrics": compare(uncertainty, found, chosen),
    }
    return arrays, summary


def export_subset(study: Study) -> Files:
    """Write uncertainties, ambiguities and how they go together; a model that could not be used is recorded."""
    files = Files()
    results = {}
    for model in study.done():
        arrays, summary = _one(study, model, "exp5_subset_ambiguity")
        files.npz[f"exp5_subset_{model}.npz"] = arrays
        files.json[f"exp5_subset_{model}_summary.json"] = summary
        results[model] = summary["metrics"]
    for model, reason in study.skipped.items():
        record = {"experiment": "exp5_subset_ambiguity", "model": model, "status": "skipped", "reason": reason}
        files.json[f"exp5_subset_{model}_error.json"] = record
    files.json["exp5_subset_overall_summary.json"] = {
        "experiment": "exp5_subset_ambiguity",
        "models": list(study.settings.models),
        "num_images": len(study.paths),
        "templates": list(study.settings.options.ambiguity.prompts),
        "num_classes": len(study.classes),
        "results": results,
        "skipped": dict(study.skipped),
    }
    return files


def export_full(study: Study) -> Files:
    """Write the same for the larger set, under the names of the original's second phase."""
    files = Files()
    results: dict[str, Any] = {model: {"error": reason} for model, reason in study.skipped.items()}
    for model in study.done():
        arrays, summary = _one(study, model, "exp5_full_ambiguity")
        files.npz[f"{model}/exp5_full_outputs.npz"] = arrays
        files.json[f"{model}/exp5_full_summary.json"] = results[model] = summary
    files.json["exp5_full_overall_summary.json"] = {
        "experiment": "exp5_full_ambiguity",
        "models": list(study.settings.models),
        "num_images": len(study.paths),
        "results": results,
    }
    return files


EXPERIMENT_SUBSET = Experiment(SUBSET, arms, export_subset, classifies=True, manifest="phase1_exp5_manifest.json")
EXPERIMENT_FULL = Experiment(FULL, arms, export_full, classifies=True, manifest="phase2_exp5_manifest.json")
