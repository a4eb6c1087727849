"""exp1: whether the ranking of the images depends on the dropout rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tessera.mcdropout.experiments.design import Arm, Defaults, Experiment, Files, Settings, Study, seeds
from tessera.mcdropout.reliability import reliability, spearman_matrix

DEFAULTS = Defaults(("clip_b32", "siglip2_so400m"), 1000, 3, (64,))


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model and rate."""
    del sites
    return [
        Arm(
            f"{model}/p{p}",
            model,
            settings.uniform(p),
            seeds(settings, lambda k, p=p: settings.seed + int(p * 1e6) + k),  # type: ignore[misc]
            settings.passes,
        )
        for model in settings.models
        for p in settings.options.exp1.p_values
    ]


def export(study: Study) -> Files:
    """Write the traces at every rate and the rank correlations between rates."""
    files = Files()
    p_values = list(study.settings.options.exp1.p_values)
    overall: dict[str, Any] = {model: {"error": reason} for model, reason in study.skipped.items()}
    for model in study.done():
        tables = dict(zip(p_values, study.of(model), strict=True))
        mean = np.stack([table.trials("trace_pre").mean(axis=0) for table in tables.values()])
        matrix = spearman_matrix(mean)
        files.npz[f"{model}/exp1_rank_p_trials.npz"] = {
            "paths": study.names(tables[p_values[0]]),
            "p_values": np.array(p_values),
            "mean_uncertainty": mean,
            "spearman_matrix": matrix,
            **{f"trials_p_{str(p).replace('.', '_')}": table.trials("trace_pre") for p, table in tables.items()},
        }
        summary = {
            "experiment": "exp1_rank_p",
            "model": model,
            "num_images": mean.shape[1],
            "passes": study.settings.passes[-1],
            "trials": study.settings.trials,
            "p_values": p_values,
            "reliability_by_p": {str(p): reliability(t.trials("trace_pre")).record() for p, t in tables.items()},
            "wrapped_modules_by_p": {str(p): len(study.sites[t.arm.key]) for p, t in tables.items()},
            "spearman_matrix": matrix.tolist(),
        }
        files.json[f"{model}/exp1_summary.json"] = overall[model] = summary
    files.json["exp1_overall_summary.json"] = {
        "experiment": "exp1_rank_p",
        "models": list(study.settings.models),
        "num_images": len(study.paths),
        "p_values": p_values,
        "results": overall,
    }
    return files


EXPERIMENT = Experiment(DEFAULTS, arms, export, manifest="phase2_exp1_manifest.json")
