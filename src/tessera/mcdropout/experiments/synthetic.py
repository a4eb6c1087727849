"""exp2: solid colours, gradients and noise against natural images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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

DEFAULTS = Defaults(("clip_b32", "siglip2_so400m"), 10, 5, (64,), batch_size=16)
CATEGORIES: Final = ("solid", "gradient", "noise", "natural")
"""In the order of the images."""


def synthetic_images(size: int, each: int, seed: int) -> dict[str, list[NDArray[np.uint8]]]:
    """Draw the synthetic images as the original does.

    Parameters
    ----------
    size
        Pixels to a side.
    each
        Images per category.
    seed
        Of the colours and the noise.

    Returns
    -------
    dict
        By category, in its order: images of shape (size, size, 3).
    """
    rng = np.random.default_rng(seed)
    solid = [np.broadcast_to(rng.integers(0, 256, size=3), (size, size, 3)) for _ in range(each)]
    ramp = np.linspace(0, 255, size, dtype=np.float32)
    gradient = [_gradient(ramp, horizontal=i % 2 == 0, invert=i % 3 == 0) for i in range(each)]
    noise = [rng.integers(0, 256, size=(size, size, 3), dtype=np.uint8) for _ in range(each)]
    return {"solid": [image.astype(np.uint8) for image in solid], "gradient": gradient, "noise": noise}


def _gradient(ramp: NDArray[np.float32], *, horizontal: bool, invert: bool) -> NDArray[np.uint8]:
    size = ramp.size
    plane = np.tile(ramp[None, :], (size, 1)) if horizontal else np.tile(ramp[:, None], (1, size))
    if invert:
        plane = np.float32(255.0) - plane
    layers = [plane, np.roll(plane, size // 3, axis=1), np.roll(plane, size // 5, axis=0)]
    return np.stack(layers, axis=-1).astype(np.uint8)


def bounds(settings: Settings) -> dict[str, tuple[int, int | None]]:
    """Return where each category lies in the list of images."""
    each = settings.options.exp2.num_each_synth
    return {name: (i * each, (i + 1) * each if name != "natural" else None) for i, name in enumerate(CATEGORIES)}


def arms(settings: Settings, sites: Callable[[str], Sequence[str]]) -> list[Arm]:
    """Return one arm per model and category; seeds that depend on the length of its name are the original's."""
    del sites
    return [
        Arm(
            f"{model}/{name}",
            model,
            settings.uniform(),
            seeds(settings, lambda k, name=name: settings.seed + 1000 * k + len(name)),  # type: ignore[misc]
            settings.passes,
            first,
            end,
        )
        for model in settings.models
        for name, (first, end) in bounds(settings).items()
    ]


def export(study: Study) -> Files:
    """Write the mean traces of every category and their order."""
    files = Files()
    settings = study.settings
    results: dict[str, Any] = {model: {"error": reason} for model, reason in study.skipped.items()}
    for model in study.done():
        tables = study.of(model)
        mean = {t.arm.key.rpartition("/")[2]: t.trials("trace_pre").mean(axis=0) for t in tables}
        summary = {
            "experiment": "exp2_synthetic_natural",
            "model": model,
            "dropout": settings.options.dropout,
            "passes": settings.passes[-1],
            "trials": settings.trials,
            "num_each_synth": settings.options.exp2.num_each_synth,
            "num_natural": len(mean["natural"]),
            "wrapped_modules": len(study.sites[tables[0].arm.key]),
            "category_stats": {name: summary_statistics(values) for name, values in mean.items()},
            "ascending_uncertainty_order": sorted(mean, key=lambda name: float(mean[name].mean())),
        }
        files.npz[f"{model}/exp2_uncertainty_by_category.npz"] = dict(mean)
        files.json[f"{model}/exp2_summary.json"] = results[model] = summary
    files.json["exp2_overall_summary.json"] = {
        "experiment": "exp2_synthetic_natural",
        "models": list(settings.models),
        "results": results,
    }
    return files


EXPERIMENT = Experiment(DEFAULTS, arms, export)
