"""How ambiguous an image is to a zero-shot classifier: margin, entropy, and how much the wording of the prompt matters.

Formulas of mcdo-vlm-uncertainty (``exp5_subset_ambiguity``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout.reliability import auroc, spearman

Floats = NDArray[np.float64]

_LEAST_PROBABILITY: Final = 1e-12
_BLOCK: Final = 4096
"""Images whose logits are held at once: with a thousand classes, 33 MB."""


@dataclass(frozen=True, slots=True)
class Ambiguity:
    """Deterministic ambiguity of N images.

    Attributes
    ----------
    margin
        Largest logit minus the second, first template.
    entropy
        Of the softmax, nats, first template.
    prompt_sensitivity
        Variance (unbiased) over the templates of the largest probability; 0 with one template.
    """

    margin: Floats
    entropy: Floats
    prompt_sensitivity: Floats


def measure(images: Floats, texts: Floats, scale: float, bias: float) -> Ambiguity:
    """Classify images by prompts.

    Parameters
    ----------
    images
        Shape (N, D), features of any length.
    texts
        Shape (templates, classes, D), features of any length.
    scale, bias
        ``logits = scale * cosine + bias``: exp(logit_scale), and the bias that SigLIP adds.

    Raises
    ------
    ValueError
        If there are fewer than two classes: no margin then.
    """
    if texts.shape[1] < 2:
        msg = "a margin needs at least two classes; the folders below data_dir name them"
        raise ValueError(msg)
    prompts = _unit(texts)
    margin, entropy, sensitivity = (np.zeros(len(images)) for _ in range(3))
    for first in range(0, len(images), _BLOCK):
        rows = slice(first, first + _BLOCK)
        unit = _unit(images[rows])
        largest = []
        for t, template in enumerate(prompts):
            logits = scale * (unit @ template.T) + bias
            probabilities = _softmax(logits)
            largest.append(probabilities.max(axis=1))
            if t == 0:
                second, best = np.partition(logits, -2, axis=1)[:, -2:].T
                margin[rows] = best - second
                logs = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
                entropy[rows] = -(probabilities * logs).sum(axis=1)
        if len(largest) > 1:
            sensitivity[rows] = np.var(largest, axis=0, ddof=1)
    return Ambiguity(margin, entropy, sensitivity)


def _unit(vectors: Floats) -> Floats:
    array = np.asarray(vectors, np.float64)
    return np.asarray(array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), _LEAST_PROBABILITY))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Tails:
    """The images that count as ambiguous, shape (N,), and the thresholds that make them so."""

    low_margin: NDArray[np.bool_]
    high_entropy: NDArray[np.bool_]
    margin_threshold: float
    entropy_threshold: float


def tails(found: Ambiguity, quantile: float) -> Tails:
    """Return the images in the tails: margin at most its ``quantile``, entropy at least its ``1 - quantile``."""
    margin = float(np.quantile(found.margin, quantile))
    entropy = float(np.quantile(found.entropy, 1.0 - quantile))
    return Tails(found.margin <= margin, found.entropy >= entropy, margin, entropy)


def compare(uncertainty: Floats, found: Ambiguity, chosen: Tails) -> dict[str, float]:
    """Return how well an uncertainty, shape (N,), finds ambiguous images, under the original's names."""
    return {
        "rho_uncertainty_vs_negative_margin": spearman(uncertainty, -found.margin),
        "rho_uncertainty_vs_entropy": spearman(uncertainty, found.entropy),
        "rho_uncertainty_vs_prompt_sensitivity": spearman(uncertainty, found.prompt_sensitivity),
        "auroc_low_margin": auroc(uncertainty, chosen.low_margin),
        "auroc_high_entropy": auroc(uncertainty, chosen.high_entropy),
    }


def class_names(folders: Sequence[str], class_map: Path | None) -> list[str]:
    """Return what the folders of images are called in prompts.

    Parameters
    ----------
    folders
        Names of the folders.
    class_map
        JSON object, or text with ``folder<TAB>name`` lines, of names; other folders are called by their own name,
        with spaces for underscores.

    Raises
    ------
    ValueError
        If the map cannot be read.
    """
    names: dict[str, Any] = {}
    if class_map is not None:
        try:
            text = class_map.read_text(encoding="utf-8")
            names = json.loads(text) if class_map.suffix.lower() == ".json" else _lines(text)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            msg = f"class_map {class_map} cannot be read ({error}); give a JSON object or folder<TAB>name lines"
            raise ValueError(msg) from error
        if not isinstance(names, dict):
            msg = f"class_map {class_map} holds a {type(names).__name__}; it has to be an object of folder: name"
            raise ValueError(msg)
    return [str(names.get(folder, folder.replace("_", " "))) for folder in folders]


def _lines(text: str) -> dict[str, str]:
    pairs = (line.strip().split("\t", 1) for line in text.splitlines() if "\t" in line and not line.startswith("#"))
    return dict(pairs)
