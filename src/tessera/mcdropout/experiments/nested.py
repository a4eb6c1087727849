"""exp0: how reliable the traces are at T = 4, 16, 64, and with it whether a model is usable at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tessera.mcdropout.experiments.design import Arm, ArmTable, Defaults, Experiment, Files, Settings, Study, seeds
from tessera.mcdropout.reliability import Reliability, go_no_go, reliability

DEFAULTS = Defaults(("clip_b32", "siglip2_b16", "siglip2_so400m"), 500, 10, (4, 16, 64))


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model with nested T; or one per T, seeded as the original's separate runs."""
    del sites
    found = []
    for model in settings.models:
        if settings.options.exp0.nested:
            chosen = seeds(settings, lambda k: settings.seed + k)
            found.append(Arm(model, model, settings.uniform(), chosen, settings.passes))
            continue
        for passes in settings.passes:
            chosen = seeds(settings, lambda k, t=passes: settings.seed + 100_000 * t + k)  # type: ignore[misc]
            found.append(Arm(f"{model}/T{passes}", model, settings.uniform(), chosen, (passes,)))
    return found


def export(study: Study) -> Files:
    """Write traces and reliability of every model and T."""
    files = Files()
    settings = study.settings
    overall: dict[str, Any] = {}
    verdicts = []
    common = {
        "passes": list(settings.passes),
        "dropout": settings.options.dropout,
        "trials": settings.trials,
        "num_images": len(study.paths),
    }
    for model in study.done():
        rows = {}
        for table, passes in _by_passes(study.of(model)):
            name = f"{model}/exp0_trials_T{passes}.npz"
            files.npz[name] = {
                "paths": study.names(table),
                "trial_pre": table.trials("trace_pre", passes),
                "trial_post": table.trials("trace_post", passes),
                "trial_pre_unbiased": table.trials("trace_pre_unbiased", passes),
                "trial_post_unbiased": table.trials("trace_post_unbiased", passes),
            }
            found = {side: _of(table, f"trace_{side}", passes) for side in ("pre", "post")}
            verdicts += [measured.status for measured in found.values()]
            rows[f"T={passes}"] = {f"{side}_norm": measured.record() for side, measured in found.items()}
        overall[model] = rows
        files.json[f"{model}/exp0_summary.json"] = {
            "experiment": "exp0_nested_mc",
            "model": model,
            **common,
            "injected_linear_dropout_wrappers": len(study.sites[study.of(model)[0].arm.key]),
            "nested_extraction": settings.options.exp0.nested,
            "results": rows,
        }
    files.json["exp0_overall_summary.json"] = {
        "experiment": "exp0_nested_mc",
        "models": list(settings.models),
        **common,
        "results": overall,
        "skipped": dict(study.skipped),
        "decision": go_no_go(verdicts),
    }
    return files


def _by_passes(tables: Sequence[ArmTable]) -> list[tuple[ArmTable, int]]:
    return [(table, passes) for table in tables for passes in table.arm.passes]


def _of(table: ArmTable, name: str, passes: int) -> Reliability:
    return reliability(table.trials(name, passes))


EXPERIMENT = Experiment(DEFAULTS, arms, export, manifest="phase1_exp0_manifest.json")
