"""exp0b: the covariance of the passes before and after normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessera.mcdropout.experiments.design import (
    Arm,
    Defaults,
    Experiment,
    Files,
    Settings,
    Study,
    seeds,
    summary_statistics,
)

DEFAULTS = Defaults(("clip_b32",), 500, 5, (64,))

_COLUMNS = {
    "trace_pre": "trace_pre_unbiased",
    "trace_post": "trace_post_unbiased",
    "angular_var": "angular_var",
    "offdiag_pre": "offdiag_pre",
    "offdiag_post": "offdiag_post",
    "eigs_pre": "eigs_pre",
    "eigs_post": "eigs_post",
    "effective_rank": "effective_rank",
}
"""By the original's name. Its traces are unbiased in this experiment, and only in this one."""


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model."""
    del sites
    chosen = seeds(settings, lambda k: settings.seed + k)
    return [Arm(m, m, settings.uniform(), chosen, settings.passes, geometry=True) for m in settings.models]


def export(study: Study) -> Files:
    """Write spectra, off-diagonal mass and angular variance; one model's files lie at the top, as the original's."""
    files = Files()
    done = study.done()
    for model in done:
        (table,) = study.of(model)
        folder = "" if len(study.settings.models) == 1 else f"{model}/"
        arrays = {name: table.trials(column) for name, column in _COLUMNS.items()}
        files.npz[f"{folder}exp0b_geometry_trials.npz"] = {"paths": study.names(table), **arrays}
        means = {name: values.mean(axis=0) for name, values in arrays.items()}
        files.json[f"{folder}exp0b_summary.json"] = {
            "experiment": "exp0b_norm_geometry",
            "model": model,
            "num_images": len(table.images),
            "trials": study.settings.trials,
            "passes": table.arm.passes[-1],
            "dropout": study.settings.options.dropout,
            "injected_linear_dropout_wrappers": len(study.sites[table.arm.key]),
            "variance": "unbiased",
            **{
                f"{side}_norm": {
                    "trace_per_dim": summary_statistics(means[f"trace_{side}"]),
                    "offdiag_mass_ratio": summary_statistics(means[f"offdiag_{side}"]),
                    "eigs_top10_mean": means[f"eigs_{side}"].mean(axis=0).tolist(),
                }
                for side in ("pre", "post")
            },
            "angular": {"angular_var": summary_statistics(means["angular_var"])},
            "effective_rank": summary_statistics(means["effective_rank"]),
        }
    return files


EXPERIMENT = Experiment(DEFAULTS, arms, export, manifest="phase1_exp0b_manifest.json")
