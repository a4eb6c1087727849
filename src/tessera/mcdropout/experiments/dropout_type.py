"""exp3: dropout in attention, MLP, whole blocks, one projection, or everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tessera.mcdropout.experiments.design import Arm, ByRecipe, Defaults, Experiment, Files, Settings, Study, seeds
from tessera.mcdropout.reliability import reliability, spearman_matrix

DEFAULTS = Defaults(("clip_b32",), 1000, 5, (64,), batch_size=16)
TYPES: Final = {
    "A": ("attention", "Attention-associated linear modules"),
    "B": ("mlp", "MLP/FFN-associated linear modules"),
    "C": ("stochastic_depth", "Stochastic-depth style residual block skipping"),
    "D": ("projection", "The last linear layer (the original picked a block by the order of letters)"),
    "E": ("uniform", "Uniform linear-layer dropout"),
}
"""Recipe and note of the original's types."""
_COLUMNS: Final = ("trace_pre", "angular_var", "anisotropy")


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model and type."""
    del sites
    return [
        Arm(
            f"{model}/{kind}",
            model,
            ByRecipe(TYPES[kind][0], settings.options.dropout),
            seeds(settings, lambda k, kind=kind: settings.seed + 10_000 * k + ord(kind)),  # type: ignore[misc]
            settings.passes,
            geometry=True,
        )
        for model in settings.models
        for kind in settings.options.exp3.dropout_types
    ]


def export(study: Study) -> Files:
    """Write traces, angular variances and anisotropies of every type, and the rank correlations between types."""
    files = Files()
    settings = study.settings
    kinds = list(settings.options.exp3.dropout_types)
    common = {"dropout_types": kinds, "num_images": len(study.paths)}
    overall: dict[str, Any] = {model: {"error": reason} for model, reason in study.skipped.items()}
    for model in study.done():
        tables = dict(zip(kinds, study.of(model), strict=True))
        results = {}
        for kind, table in tables.items():
            arrays = {name: table.trials(name) for name in _COLUMNS}
            files.npz[f"{model}/exp3_type_{kind}_trials.npz"] = {"paths": study.names(table), **arrays}
            results[kind] = {
                "wrapped_modules": len(study.sites[table.arm.key]),
                "selected_paths": list(study.sites[table.arm.key]),
                "notes": TYPES[kind][1],
                **{name: reliability(values).record() for name, values in arrays.items()},
                "trace_mean": float(arrays["trace_pre"].mean()),
                "angular_mean": float(arrays["angular_var"].mean()),
                "anisotropy_mean": float(arrays["anisotropy"].mean()),
            }
        means = np.stack([table.trials("trace_pre").mean(axis=0) for table in tables.values()])
        summary = {
            "experiment": "exp3_dropout_type",
            "model": model,
            **common,
            "dropout": settings.options.dropout,
            "passes": settings.passes[-1],
            "trials": settings.trials,
            "results_by_type": results,
            "cross_type": {"types": kinds, "trace_spearman_matrix": spearman_matrix(means).tolist()},
        }
        files.json[f"{model}/exp3_summary.json"] = overall[model] = summary
    files.json["exp3_overall_summary.json"] = {
        "experiment": "exp3_dropout_type",
        "models": list(settings.models),
        **common,
        "results": overall,
    }
    return files


EXPERIMENT = Experiment(DEFAULTS, arms, export, manifest="phase2_exp3_manifest.json")
