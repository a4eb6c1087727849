"""The Monte-Carlo dropout part of a run's report page: what was found, how far to trust it, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpc.report.view import Figure, RunView, Section, Table
from tessera.mcdropout import plot_reliability, plot_traces
from tessera.mcdropout import report_captions as captions
from tessera.mcdropout.outputs import TABLES
from tessera.mcdropout.reliability import Reliability, go_no_go, reliability
from tessera.mcdropout.report_data import Everything, Trials, read

_MAPPED: Final = 8
"""Arms whose traces are drawn."""
_LISTED: Final = 40
"""Images that cannot be read."""
_IN_TABLE: Final = 12
_COMPARED: Final = 12
"""Arms of one model that are correlated with each other."""
_STATUS: Final = {
    "usable": "usable",
    "marginal": "marginal",
    "failed": "failed",
    "insufficient_trials": "one trial only: cannot be said",
}


def sections(run: RunView) -> list[Section]:
    """Return the sections, from the files under ``results``.

    Parameters
    ----------
    run
        The run, finished or not.

    Returns
    -------
    list of Section
        In the order of the page.
    """
    found = read(run.results_dir / TABLES)
    if found is None:
        text = "The trials are not finished; these pictures come with their tables. tessera report draws them anew."
        return [Section("Monte-Carlo dropout", text), *_timing(run, [])]
    return [
        _verdict(found),
        *_agreement(found.arms),
        *_maps(found),
        *_convergence(found.arms),
        *_comparison(found.arms),
        *_ambiguity(found),
        *_spectra(found.arms),
        *_bad_images(found.facts),
        *_timing(run, found.arms),
    ]


def _verdict(found: Everything) -> Section:
    facts = found.facts
    remarks = [r for model in facts["models"].values() for r in model["remarks"]]
    statuses = [r.status for side in ("pre", "post") for _, r in reliabilities(found.arms, f"trace_{side}")]
    decision = go_no_go(statuses) if statuses else "no model could be used"
    text = " ".join([*(f"{remark}." for remark in remarks), f"Experiment {facts['experiment']}: {decision}."])
    if facts["masks"] == "shared":
        text += " All images of a pass share their masks (masks: shared): agreement is higher by construction."
    for model, reason in facts["skipped"].items():
        text += f" {model} has no results: {reason}."
    listed = found.arms if len(found.arms) <= _IN_TABLE else _best(found.arms)[:_IN_TABLE]
    rows = [_row(arm, space) for arm in listed for space in ("pre", "post")]
    columns = (
        "arm",
        "trace",
        "perturbation",
        "T",
        "K",
        "images",
        "mean",
        "ρ median",
        "quartiles",
        "SNR",
        "ICC",
        "verdict",
    )
    caption = (
        "At the largest T of each arm. Trace: mean variance over the dimensions, divided by T, before (pre) or after "
        "(post) normalisation. Usable: ρ ≥ 0.8, SNR ≥ 2 and ICC ≥ 0.75; failed: ρ < 0.6 or SNR < 1."
    )
    if len(listed) < len(found.arms):
        caption += f" The {len(listed)} of {len(found.arms)} arms that agree best; results/{TABLES} has all."
    return Section("Monte-Carlo dropout", text, [Table(columns, rows, caption)])


def _row(arm: Trials, space: str) -> tuple[object, ...]:
    values = arm.last(f"trace_{space}")
    measured = reliability(values)
    known = measured.status != "insufficient_trials"
    return (
        arm.key,
        space,
        arm.perturbation,
        arm.passes[-1],
        measured.num_trials,
        measured.num_images,
        float(values.mean()),
        round(measured.pairwise_spearman_median, 3) if known else None,
        f"{measured.pairwise_spearman_q25:.3f}…{measured.pairwise_spearman_q75:.3f}" if known else None,
        round(measured.snr, 2) if known else None,
        round(measured.icc, 3) if known else None,
        _STATUS[measured.status],
    )


def _agreement(arms: Sequence[Trials]) -> list[Section]:
    several = [arm for arm in arms if len(arm.last("trace_pre")) > 1]
    if not several:
        return []
    figures = []
    nested = {arm.key: _over_passes(arm) for arm in several if len(arm.passes) > 1}
    if nested and len(nested) <= _MAPPED:
        figures.append(Figure(plot_reliability.curves(nested, "passes T"), captions.RANKS))
    rates = _over_rates(several)
    if rates:
        figures.append(Figure(plot_reliability.curves(rates, "dropout rate p"), captions.RANKS))
    if not figures or len(several) > 1:
        figures.append(Figure(plot_reliability.ranking(reliabilities(several, "trace_pre")), captions.ARMS))
    return [Section("How far the trials agree", figures=figures)]


def reliabilities(arms: Sequence[Trials], column: str) -> list[tuple[str, Reliability]]:
    """Return the reliability of every arm at its largest T."""
    return [(arm.key, reliability(arm.last(column))) for arm in arms]


def _over_passes(arm: Trials) -> list[tuple[float, Reliability]]:
    return [(float(t), reliability(arm.columns["trace_pre"][t])) for t in arm.passes]


def _over_rates(arms: Sequence[Trials]) -> dict[str, list[tuple[float, Reliability]]]:
    """Return the arms of each model that differ in their magnitude only, by that."""
    found: dict[str, list[tuple[float, Reliability]]] = {}
    for model in dict.fromkeys(arm.model for arm in arms):
        own = [arm for arm in arms if arm.model == model]
        kinds = {arm.perturbation.rpartition(" ")[0] for arm in own}
        sizes = [arm.magnitude for arm in own]
        if len(own) > 1 and len(kinds) == 1 and np.isfinite(sizes).all() and len(set(sizes)) == len(own):
            ordered = sorted(own, key=lambda arm: arm.magnitude)
            found[model] = [(arm.magnitude, reliability(arm.last("trace_pre"))) for arm in ordered]
    return found


def _best(arms: Sequence[Trials]) -> list[Trials]:
    """Return the arms whose trials agree best first."""
    return sorted(arms, key=lambda arm: -np.nan_to_num(reliability(arm.last("trace_pre")).pairwise_spearman_median))


def _maps(found: Everything) -> list[Section]:
    chosen = found.arms if len(found.arms) <= _MAPPED else _best(found.arms)[:_MAPPED]
    if not chosen:
        return []
    figures = [Figure(plot_traces.trace_maps({arm.key: arm.last("trace_pre") for arm in chosen}), captions.MAPS)]
    for model, pictures in found.galleries.items():
        first = next(arm for arm in found.arms if arm.model == model)
        traces = first.last("trace_pre").mean(axis=0)
        figures.append(Figure(plot_traces.gallery(pictures, traces), f"{first.key}. {captions.GALLERY}"))
    text = "" if len(chosen) == len(found.arms) else f"The {len(chosen)} of {len(found.arms)} arms that agree best."
    return [Section("Traces, image by image", text, figures=figures)]


def _convergence(arms: Sequence[Trials]) -> list[Section]:
    nested = {arm.key: arm for arm in arms if len(arm.passes) > 1}
    if not nested or len(nested) > _MAPPED:
        return []
    return [Section("Convergence", figures=[Figure(plot_reliability.convergence(nested), captions.CONVERGENCE)])]


def _comparison(arms: Sequence[Trials]) -> list[Section]:
    figures = []
    for model in dict.fromkeys(arm.model for arm in arms):
        own = [arm for arm in arms if arm.model == model]
        means = [arm.last("trace_pre").mean(axis=0) for arm in own]
        if 1 < len(own) <= _COMPARED and len({mean.size for mean in means}) == 1:
            names = [arm.key.removeprefix(f"{model}/") for arm in own]
            figures.append(Figure(plot_reliability.matrix(names, means), f"{model}. {captions.RATES}"))
    return [Section("The same order under every perturbation?", figures=figures)] if figures else []


def _ambiguity(found: Everything) -> list[Section]:
    pairs = {}
    for model, values in found.ambiguity.items():
        first = next((arm for arm in found.arms if arm.model == model), None)
        if first is not None:
            pairs[model] = (first.last("trace_pre").mean(axis=0), values)
    if not pairs:
        return []
    return [Section("Ambiguous images", figures=[Figure(plot_reliability.ambiguity(pairs), captions.AMBIGUITY)])]


def _spectra(arms: Sequence[Trials]) -> list[Section]:
    ranks = {arm.key: arm.last("effective_rank").mean(axis=0) for arm in arms if "effective_rank" in arm.columns}
    if not ranks or len(ranks) > _MAPPED:
        return []
    return [Section("Directions", figures=[Figure(plot_reliability.effective_ranks(ranks), captions.SPECTRUM)])]


def _bad_images(facts: Mapping[str, Any]) -> list[Section]:
    bad = facts["bad_images"]
    if not bad:
        return []
    rows = [(Path(path).name, reason) for path, reason in list(bad.items())[:_LISTED]]
    caption = f"{len(bad)} images were left out of all trials; results/bad_images.json has them with their paths."
    return [Section("Images that cannot be read", tables=[Table(("image", "reason"), rows, caption)])]


def _timing(run: RunView, arms: Sequence[Trials]) -> list[Section]:
    if not run.timings:
        return []
    names = [name for name in run.timings if not name.startswith("merge ")]
    columns, row = list(names), [f"{run.timings[name]:.2f}" for name in names]
    ends = [
        e for e in run.events if e.get("event") == "stage_end" and str(e.get("stage")).startswith(("trials", "comb"))
    ]
    busy = sum(float(rank["busy"]) for event in ends for rank in event["ranks"])
    made = sum(float(arm.columns["passes"][arm.passes[-1]].sum()) for arm in arms)
    if busy > 0 and made:
        columns += ["computing", "image passes", "rate, 1/s"]
        row += [f"{busy:.2f}", f"{made:.0f}", f"{made / busy:.1f}"]
    return [Section("Timing", tables=[Table(columns, [row], captions.TIMING)])]
