"""text (the original's exp10): dropout in the text tower, against how specific a prompt is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tessera.mcdropout.experiments.design import (
    Arm,
    Defaults,
    Experiment,
    Files,
    Floats,
    Settings,
    Study,
    seeds,
    summary_statistics,
)
from tessera.mcdropout.reliability import auroc, reliability, spearman

DEFAULTS = Defaults(("clip_b32", "siglip2_b16"), 0, 3, (64,), batch_size=128)

Prompt = tuple[str, str]
"""Style and text."""

_GENERIC: Final = (
    "an object",
    "a thing",
    "something",
    "an unknown item",
    "a blurry object",
    "a scene",
    "a visual concept",
)
_STYLES: Final = {
    "simple": "a {}",
    "photo": "a photo of a {}",
    "specific": "a detailed close-up photo of a {} in natural lighting",
    "ambiguous": "something that might be a {}",
}
_SPECIFIC: Final = frozenset(
    [
        "detailed",
        "close",
        "closeup",
        "close-up",
        "high",
        "resolution",
        "wearing",
        "with",
        "next",
        "under",
        "inside",
        "outdoor",
        "indoor",
        "lighting",
        "texture",
        "color",
    ]
)
_VAGUE: Final = frozenset(
    ["something", "object", "thing", "item", "unknown", "unclear", "maybe", "possibly", "blurry", "stuff"]
)
_LONG: Final = 20


def words(prompt: str) -> list[str]:
    """Return the words as the original counts them."""
    return re.findall(r"[a-zA-Z0-9']+", prompt.lower())


def specificity(prompt: str) -> float:
    """Return the original's heuristic in [0, 1]: long and concrete prompts are specific, vague words are not."""
    found = words(prompt)
    length = min(len(found), _LONG) / _LONG
    raw = 0.6 * length + 0.08 * sum(w in _SPECIFIC for w in found) - 0.10 * sum(w in _VAGUE for w in found)
    return float(np.clip((raw + 0.25) / 1.25, 0.0, 1.0))


def prompt_bank(classes: Sequence[str]) -> list[Prompt]:
    """Return generic prompts, and four styles for each class."""
    bank = [("generic", text) for text in _GENERIC]
    return bank + [(style, form.format(n.strip())) for n in classes if n.strip() for style, form in _STYLES.items()]


def read_prompts(path: Path) -> list[Prompt]:
    """Read ``style<TAB>prompt`` or plain lines; ``#`` starts a comment.

    Raises
    ------
    ValueError
        If the file cannot be read or holds no prompt.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        msg = f"text.prompt_file {path} cannot be read ({error}); give a text file with one prompt a line"
        raise ValueError(msg) from error
    pairs = [line.split("\t", 1) if "\t" in line else ["file", line] for line in lines if line and line[0] != "#"]
    prompts = [(style.strip() or "file", text.strip()) for style, text in pairs if text.strip()]
    if not prompts:
        msg = f"text.prompt_file {path} holds no prompt; write one a line"
        raise ValueError(msg)
    return prompts


def sample_prompts(prompts: Sequence[Prompt], number: int, seed: int) -> list[Prompt]:
    """Return some of the prompts in their order; with repetition if more are asked for than there are; 0: all."""
    if number == 0:
        return list(prompts)
    rng = np.random.default_rng(seed)
    if number > len(prompts):
        return [prompts[i] for i in rng.choice(len(prompts), size=number, replace=True)]
    return [prompts[i] for i in np.sort(rng.choice(len(prompts), size=number, replace=False))]


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model."""
    del sites
    chosen = seeds(settings, lambda k: settings.seed + k)
    return [Arm(m, m, settings.uniform(), chosen, settings.passes, tower="text") for m in settings.models]


def export(study: Study) -> Files:
    """Write the uncertainty of each prompt and how it goes with specificity and length."""
    files = Files()
    prompts, styles = list(study.paths), list(study.styles)
    counts = np.array([len(words(p)) for p in prompts], np.float64)
    specific = np.array([specificity(p) for p in prompts])
    quantile = study.settings.options.text.specificity_quantile
    threshold = float(np.quantile(specific, quantile))
    low = specific <= threshold
    overall: dict[str, Any] = {model: {"error": reason} for model, reason in study.skipped.items()}
    for model in study.done():
        (table,) = study.of(model)
        trials = table.trials("trace_pre")
        uncertainty = trials.mean(axis=0)
        summary = {
            "experiment": "exp10_text_encoder_uncertainty",
            "model": model,
            "num_prompts": len(prompts),
            "dropout": study.settings.options.dropout,
            "passes": study.settings.passes[-1],
            "trials": study.settings.trials,
            "specificity_quantile": quantile,
            "thresholds": {"low_specificity": threshold},
            "metrics": {
                "rho_uncertainty_vs_specificity": spearman(uncertainty, specific),
                "rho_uncertainty_vs_negative_specificity": spearman(uncertainty, -specific),
                "rho_uncertainty_vs_token_count": spearman(uncertainty, counts),
                "auroc_low_specificity": auroc(uncertainty, low),
            },
            "uncertainty_stats": _three(uncertainty),
            "specificity_stats": _three(specific),
            "style_uncertainty": _by_style(styles, uncertainty),
            "style_specificity": _by_style(styles, specific),
            "reliability": reliability(trials).record() if len(trials) > 1 else None,
        }
        files.npz[f"{model}/exp10_outputs.npz"] = {
            "prompts": np.array(prompts),
            "styles": np.array(styles),
            "token_count": counts,
            "specificity": specific,
            "low_specificity": low.astype(np.int64),
            "uncertainty_trials": trials,
            "uncertainty": uncertainty,
        }
        files.json[f"{model}/exp10_summary.json"] = overall[model] = summary
    files.json["exp10_overall_summary.json"] = {
        "experiment": "exp10_text_encoder_uncertainty",
        "models": list(study.settings.models),
        "num_prompts": len(prompts),
        "results": overall,
    }
    source = study.settings.options.text.prompt_file
    files.json["exp10_prompt_manifest.json"] = {
        "num_prompts": len(prompts),
        "prompt_source": "file" if source else "generated",
        "prompt_file": str(source or ""),
        "styles": sorted(set(styles)),
        "prompts": prompts,
    }
    return files


def _three(values: Floats) -> dict[str, float]:
    found = summary_statistics(values)
    return {name: found[name] for name in ("mean", "std", "median")}


def _by_style(styles: Sequence[str], values: Floats) -> dict[str, dict[str, float]]:
    names = np.array(styles)
    return {s: {"count": float((names == s).sum()), **_three(values[names == s])} for s in sorted(set(styles))}


EXPERIMENT = Experiment(DEFAULTS, arms, export)
