"""exp4 and exp4_full: trace against angular variance, for two models and for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tessera.mcdropout.experiments.design import Arm, Defaults, Experiment, Files, Settings, Study, seeds
from tessera.mcdropout.reliability import reliability, spearman_matrix

SUBSET = Defaults(("clip_b32", "siglip2_b16"), 500, 10, (64,))
FULL = Defaults(("clip_b32", "siglip2_b16", "siglip2_so400m", "clip_l14", "siglip2_g16"), 500, 10, (64,), batch_size=16)
_COLUMNS: Final = ("trace_pre", "angular_var")


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model."""
    del sites
    chosen = seeds(settings, lambda k: settings.seed + k)
    return [Arm(m, m, settings.uniform(), chosen, settings.passes, geometry=True) for m in settings.models]


def _measured(study: Study, name: Callable[[str], str]) -> tuple[Files, dict[str, dict[str, Any]]]:
    files = Files()
    results = {}
    for model in study.done():
        (table,) = study.of(model)
        arrays = {column: table.trials(column) for column in _COLUMNS}
        files.npz[name(model)] = {"paths": study.names(table), **arrays}
        results[model] = {
            "injected_linear_dropout_wrappers": len(study.sites[table.arm.key]),
            **{column: reliability(values).record() for column, values in arrays.items()},
            "trace_mean": float(arrays["trace_pre"].mean()),
            "angular_mean": float(arrays["angular_var"].mean()),
        }
    return files, results


def _common(settings: Settings) -> dict[str, Any]:
    return {"trials": settings.trials, "passes": settings.passes[-1], "dropout": settings.options.dropout}


def export_subset(study: Study) -> Files:
    """Write the reliability of both uncertainties, and for two models the differences of their means."""
    files, results = _measured(study, lambda model: f"exp4_subset_{model}_trials.npz")
    comparison = {}
    if len(results) == 2:
        first, second = results.values()
        comparison = {f"{n}_mean_delta": second[f"{n}_mean"] - first[f"{n}_mean"] for n in ("trace", "angular")}
    files.json["exp4_subset_summary.json"] = {
        "experiment": "exp4_subset_recipe",
        "models": list(study.settings.models),
        "num_images": len(study.paths),
        **_common(study.settings),
        "results": results,
        "skipped": dict(study.skipped),
        "comparison": comparison,
    }
    return files


def export_full(study: Study) -> Files:
    """Write the reliability of both uncertainties and the rank correlations between models."""
    files, results = _measured(study, lambda model: f"{model}/exp4_full_trials.npz")
    done = list(results)
    for model, result in results.items():
        files.json[f"{model}/exp4_full_summary.json"] = {
            "experiment": "exp4_full_matrix",
            "model": model,
            "num_images": len(study.paths),
            **_common(study.settings),
            "wrapped_modules": result["injected_linear_dropout_wrappers"],
            **result,
        }
    means = {c: np.stack([study.of(m)[0].trials(c).mean(axis=0) for m in done]) for c in _COLUMNS} if done else {}
    files.json["exp4_full_overall_summary.json"] = {
        "experiment": "exp4_full_matrix",
        "models_requested": list(study.settings.models),
        "models_completed": done,
        "num_images": len(study.paths),
        "results_by_model": {**results, **{model: {"error": reason} for model, reason in study.skipped.items()}},
        "cross_model_spearman": {name: spearman_matrix(rows).tolist() for name, rows in means.items()},
    }
    return files


EXPERIMENT_SUBSET = Experiment(SUBSET, arms, export_subset, manifest="phase1_exp4_manifest.json")
EXPERIMENT_FULL = Experiment(FULL, arms, export_full, manifest="phase2_exp4_manifest.json")
