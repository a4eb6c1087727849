"""groupwise (the original's exp11): a random search for one dropout rate per group of layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tessera.mcdropout.ambiguity import compare, tails
from tessera.mcdropout.experiments.design import Arm, ArmTable, ByRecipe, Defaults, Experiment, Files, Settings, Study
from tessera.mcdropout.reliability import reliability

DEFAULTS = Defaults(("clip_b32", "siglip2_b16"), 2000, 2, (32,))
_SHOWN: Final = 10
_DELTAS: Final = {
    "rho_negative_margin_delta": "rho_uncertainty_vs_negative_margin",
    "rho_entropy_delta": "rho_uncertainty_vs_entropy",
    "rho_prompt_delta": "rho_uncertainty_vs_prompt_sensitivity",
    "auroc_low_margin_delta": "auroc_low_margin",
    "auroc_high_entropy_delta": "auroc_high_entropy",
}


def schedules(settings: Settings) -> list[tuple[float, ...]]:
    """Return the rates of every candidate: the same everywhere first, then log-uniform draws."""
    options = settings.options.groupwise
    rng = np.random.default_rng(settings.seed)
    low, high = np.log(options.min_p), np.log(options.max_p)
    draws = [np.exp(rng.uniform(low, high, size=options.num_groups)) for _ in range(options.num_candidates)]
    return [(options.base_p,) * options.num_groups, *(tuple(float(p) for p in draw) for draw in draws)]


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model and candidate."""
    del sites
    return [
        Arm(
            f"{model}/c{number:03d}",
            model,
            ByRecipe("groups", 0.0, schedule=rates),
            tuple(settings.seed + 10_000 * number + k for k in range(settings.trials)),
            settings.passes,
        )
        for model in settings.models
        for number, rates in enumerate(schedules(settings))
    ]


def _candidate(study: Study, number: int, table: ArmTable) -> dict[str, Any]:
    found = study.ambiguity[table.arm.model]
    trials = table.trials("trace_pre")
    uncertainty = trials.mean(axis=0)
    chosen = tails(found, study.settings.options.ambiguity.quantile)
    metrics = compare(uncertainty, found, chosen)
    objective = (
        metrics["rho_uncertainty_vs_negative_margin"]
        + metrics["rho_uncertainty_vs_entropy"]
        + 0.5 * metrics["rho_uncertainty_vs_prompt_sensitivity"]
    )
    measured = reliability(trials) if len(trials) > 1 else None
    if measured is not None:
        objective += 0.10 * measured.icc
    assert isinstance(table.arm.perturbation, ByRecipe)  # noqa: S101 - for the type checker
    thresholds = {
        "low_margin_threshold": chosen.margin_threshold,
        "high_entropy_threshold": chosen.entropy_threshold,
    }
    return {
        "candidate_index": number,
        "p_values": list(table.arm.perturbation.schedule),
        "objective": float(objective),
        "metrics": {**metrics, **thresholds},
        "uncertainty_mean": float(uncertainty.mean()),
        "uncertainty_std": float(uncertainty.std()),
        "reliability": None if measured is None else measured.record(),
    }


def _groups(sites: Sequence[str], count: int) -> dict[str, list[str]]:
    """Return the sites of each group; those outside the blocks lie behind the last one."""
    from tessera.mcdropout.recipes import group_of

    found = [re.match(r"blocks\.(\d+)\.", site) for site in sites]
    depth = 1 + max(int(match[1]) for match in found if match)
    groups: dict[str, list[str]] = {str(number): [] for number in range(count)}
    for site, match in zip(sites, found, strict=True):
        groups[str(group_of(int(match[1]) if match else depth, depth, count))].append(site)
    return groups


def export(study: Study) -> Files:
    """Write the candidates by their objective, and the best against the uniform one."""
    files = Files()
    options = study.settings.options.groupwise
    count = options.num_groups
    overall: dict[str, Any] = {model: {"error": reason} for model, reason in study.skipped.items()}
    for model in study.done():
        tables = study.of(model)
        candidates = [_candidate(study, number, table) for number, table in enumerate(tables)]
        ranked = sorted(candidates, key=lambda c: -c["objective"])
        best, baseline = ranked[0], candidates[0]
        summary = {
            "experiment": "exp11_concrete_dropout_proxy",
            "model": model,
            "num_images": len(tables[0].images),
            "num_classes": len(study.classes),
            "passes": study.settings.passes[-1],
            "trials": study.settings.trials,
            "num_groups": count,
            "num_candidates_random": options.num_candidates,
            "search_space": {"min_p": options.min_p, "max_p": options.max_p, "base_p": options.base_p},
            "best": best,
            "baseline": baseline,
            "improvement_over_baseline": {
                "objective_delta": best["objective"] - baseline["objective"],
                **{name: best["metrics"][key] - baseline["metrics"][key] for name, key in _DELTAS.items()},
            },
            "group_sizes": {name: len(ids) for name, ids in _groups(study.sites[tables[0].arm.key], count).items()},
            "top_candidates": ranked[:_SHOWN],
        }
        found = study.ambiguity[model]
        at_best = tables[best["candidate_index"]].trials("trace_pre")
        uniform = tables[0].trials("trace_pre")
        files.npz[f"{model}/exp11_outputs.npz"] = {
            "paths": study.names(tables[0]),
            "margin": found.margin,
            "entropy": found.entropy,
            "prompt_sensitivity": found.prompt_sensitivity,
            "candidate_objectives": np.array([c["objective"] for c in ranked]),
            "baseline_uncertainty_trials": uniform,
            "baseline_uncertainty": uniform.mean(axis=0),
            "best_uncertainty_trials": at_best,
            "best_uncertainty": at_best.mean(axis=0),
        }
        files.json[f"{model}/exp11_summary.json"] = overall[model] = summary
        groups = _groups(study.sites[tables[0].arm.key], count)
        files.json[f"{model}/exp11_groups.json"] = {
            "experiment": "exp11_concrete_dropout_proxy",
            "model": model,
            "group_paths": groups,
            "path_to_group": {site: int(group) for group, members in groups.items() for site in members},
        }
    files.json["exp11_overall_summary.json"] = {
        "experiment": "exp11_concrete_dropout_proxy",
        "models": list(study.settings.models),
        "num_images": len(study.paths),
        "results": overall,
    }
    return files


EXPERIMENT = Experiment(DEFAULTS, arms, export, classifies=True, manifest="phase4_exp11_manifest.json")
