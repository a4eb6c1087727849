"""module_scan: every site alone under every perturbation, then a greedy combination of the best ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tessera.mcdropout.experiments.design import Arm, ArmTable, BySites, Defaults, Experiment, Files, Settings, Study
from tessera.mcdropout.reliability import Reliability, reliability

DEFAULTS = Defaults(("clip_b32",), 200, 3, (32,))
_COMBINATION = "combo"

Part = tuple[str, str, float]


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model, site, perturbation and magnitude."""
    options = settings.options.module_scan
    chosen = tuple(settings.seed + k for k in range(settings.trials))
    return [
        Arm(f"{model}/{site}/{kind}{size}", model, BySites(((site, kind, size),)), chosen, settings.passes, 0, scanned)
        for scanned in (settings.num_images,)
        for model in settings.models
        for site in sites(model)
        for kind in options.ptypes
        for size in options.magnitudes
    ]


def combinations(study: Study, step: int) -> list[Arm]:
    """Return the arms of a step (1, 2, …) of the greedy search: what is selected so far plus each other candidate.

    Parameters
    ----------
    study
        The scan and all steps before this one.
    step
        Number of sites in the combinations.

    Returns
    -------
    list of Arm
        Nothing for a model whose last step brought no improvement.
    """
    settings = study.settings
    options = settings.options.module_scan
    chosen = tuple(settings.seed + k for k in range(options.combo_trials))
    found = []
    for model in study.done():
        selected, _ = _selected(study, model)
        if len(selected) != step - 1:
            continue
        for number, candidate in enumerate(_candidates(study, model)):
            if candidate not in selected:
                key = f"{model}/{_COMBINATION}{step:02d}/{number:02d}"
                parts = BySites((*selected, candidate))
                found.append(Arm(key, model, parts, chosen, (options.combo_passes,), settings.num_images))
    return found


def _parts(arm: Arm) -> tuple[Part, ...]:
    assert isinstance(arm.perturbation, BySites)  # noqa: S101 - for the type checker
    return arm.perturbation.sites


def _is_combination(table: ArmTable) -> bool:
    return f"/{_COMBINATION}" in table.arm.key


def _ranked(study: Study, model: str) -> list[tuple[Part, Reliability, ArmTable]]:
    rows = [
        (_parts(table.arm)[0], reliability(table.trials("trace_pre")), table)
        for table in study.of(model)
        if not _is_combination(table)
    ]
    return sorted(rows, key=lambda row: -row[1].pairwise_spearman_median)


def _candidates(study: Study, model: str) -> list[Part]:
    """Return the best perturbation of each of the best sites."""
    best: dict[str, Part] = {}
    for part, _, _ in _ranked(study, model):
        best.setdefault(part[0], part)
    return list(best.values())[: study.settings.options.module_scan.combo_top_k]


def _selected(study: Study, model: str) -> tuple[tuple[Part, ...], list[tuple[Reliability, ArmTable]]]:
    """Follow the greedy search: the first best combination of each step, as long as it beats the step before."""
    selected: tuple[Part, ...] = ()
    history: list[tuple[Reliability, ArmTable]] = []
    combined = [table for table in study.of(model) if _is_combination(table)]
    best = -1.0
    for size in range(1, study.settings.options.module_scan.combo_max_modules + 1):
        step = [(reliability(t.trials("trace_pre")), t) for t in combined if len(_parts(t.arm)) == size]
        if not step:
            break
        measured, table = max(step, key=lambda row: row[0].pairwise_spearman_median)
        if measured.pairwise_spearman_median <= best:
            break
        best, selected = measured.pairwise_spearman_median, _parts(table.arm)
        history.append((measured, table))
    return selected, history


def export(study: Study) -> Files:
    """Write the ranking of all sites, and the steps of the greedy search."""
    files = Files()
    settings = study.settings
    options = settings.options.module_scan
    for model in study.done():
        order = {arm_site: i for i, arm_site in enumerate(dict.fromkeys(_scanned(study, model)))}
        results = [
            {
                "module": part[0],
                "module_idx": order[part[0]],
                "ptype": part[1],
                "magnitude": part[2],
                **measured.record(),
                "trace_mean": float(table.trials("trace_pre").mean()),
            }
            for part, measured, table in _ranked(study, model)
        ]
        config = {
            "model": model,
            "ptypes": list(options.ptypes),
            "magnitudes": list(options.magnitudes),
            "num_images": settings.num_images,
            "trials": settings.trials,
            "passes": settings.passes[-1],
        }
        files.json[f"{model}/scan_results.json"] = {"scan_results": results, "config": config}
        if not options.skip_combo:
            files.json[f"{model}/combination_results.json"] = {
                "combination_results": _history(study, model),
                "top_k_candidates": [dict(zip(_PART, part, strict=True)) for part in _candidates(study, model)],
            }
    return files


_PART = ("module", "ptype", "magnitude")


def _scanned(study: Study, model: str) -> list[str]:
    return [_parts(table.arm)[0][0] for table in study.of(model) if not _is_combination(table)]


def _history(study: Study, model: str) -> list[dict[str, Any]]:
    rows = []
    for number, (measured, table) in enumerate(_selected(study, model)[1], 1):
        parts = _parts(table.arm)
        added = {f"added_{name}": value for name, value in zip(_PART, parts[-1], strict=True)}
        config = [dict(zip(_PART, part, strict=True)) for part in parts]
        mean = float(table.trials("trace_pre").mean())
        rows.append(
            {
                "step": number,
                **added,
                "total_modules": len(parts),
                "config": config,
                **measured.record(),
                "trace_mean": mean,
            }
        )
    return rows


EXPERIMENT = Experiment(DEFAULTS, arms, export, more=combinations)
