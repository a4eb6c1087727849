"""exp6: how fast the mean of the passes approaches the features without perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tessera.mcdropout.experiments.design import Arm, Defaults, Experiment, Files, Floats, Settings, Study, seeds

DEFAULTS = Defaults(("siglip2_b16", "siglip2_so400m"), 500, 3, (4, 8, 16, 32, 64))
EXPECTED_SLOPE: Final = -0.5


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model, with nested T."""
    del sites
    chosen = seeds(settings, lambda k: settings.seed + 100_000 * k)
    return [Arm(m, m, settings.uniform(), chosen, settings.passes) for m in settings.models]


def slope(passes: Sequence[int], distances: Sequence[float]) -> float:
    """Return the slope of log distance over log T: -1/2 for an unbiased mean, 0 where a bias is left; NaN for one T."""
    usable = np.asarray(distances) > 0
    if usable.sum() < 2:
        return float("nan")
    x, y = np.log(np.asarray(passes, np.float64)[usable]), np.log(np.asarray(distances)[usable])
    return float(np.polyfit(x, y, 1)[0])


def export(study: Study) -> Files:
    """Write the relative distances at every T, and the slope of their decay."""
    files = Files()
    passes = study.settings.passes
    common = {
        "dropout": study.settings.options.dropout,
        "trials": study.settings.trials,
        "passes": list(passes),
        "num_images": len(study.paths),
    }
    overall = {}
    for model in study.done():
        (table,) = study.of(model)
        results: dict[str, Any] = {}
        for t in passes:
            distance = table.trials("rel_dist", t)
            files.npz[f"{model}/exp6_convergence_T{t}.npz"] = {"paths": study.names(table), "rel_dist": distance}
            results[f"T={t}"] = {"num_trials": len(distance), **_statistics(distance.mean(axis=0))}
        results["convergence_slope"] = slope(passes, [results[f"T={t}"]["rel_dist_mean"] for t in passes])
        results["expected_slope"] = EXPECTED_SLOPE
        results["slope_interpretation"] = "slope ~ -0.5 confirms 1/sqrt(T) convergence (unbiased MC estimator)"
        summary = {"experiment": "exp6_mean_convergence", "model": model, **common, "results": results}
        files.json[f"{model}/exp6_summary.json"] = summary
        overall[model] = results
    files.json["exp6_overall_summary.json"] = {
        "experiment": "exp6_mean_convergence",
        "models": list(study.settings.models),
        **common,
        "results": overall,
        "skipped": dict(study.skipped),
    }
    return files


def _statistics(distance: Floats) -> dict[str, Any]:
    return {
        "num_images": distance.size,
        "rel_dist_mean": float(distance.mean()),
        "rel_dist_median": float(np.median(distance)),
        "rel_dist_std": float(distance.std()),
        "rel_dist_max": float(distance.max()),
        "rel_dist_q95": float(np.percentile(distance, 95)),
    }


EXPERIMENT = Experiment(DEFAULTS, arms, export, manifest="phase2_exp6_manifest.json")
