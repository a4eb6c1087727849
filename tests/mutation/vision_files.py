"""Files of Monte-Carlo dropout: weights, configurations, tokenizer, images, manifest."""

from __future__ import annotations

import contextlib
import io
import json
from functools import partial
from pathlib import Path

import numpy as np

MODEL_FILES = (
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
IMAGES = {"png": {}, "jpg": {"quality": 80}, "bmp": {}, "webp": {}}


def formats():
    from mutation.formats import Format

    made = {f"model {name}": Format(partial(_model, name), _read_model) for name in MODEL_FILES}
    made |= {f"image {kind}": Format(partial(_image, kind), _read_image) for kind in IMAGES}
    made["manifest"] = Format(_manifest, _read_manifest)
    return made


def _model(name: str, folder: Path) -> Path:
    from mcdropout import made_models

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that shows the progress of writing
        made_models.save(made_models.clip(**small), folder)
    return folder / name


def _read_model(path: Path) -> None:
    from tessera.mcdropout.models import load_model

    loaded = load_model(str(path.parent), text=True)
    loaded.tokenizer(["ab cd"])
    for parameter in loaded.tower.parameters():
        parameter.sum()


def _image(kind: str, folder: Path) -> Path:
    from PIL import Image

    path = folder / f"i.{kind}"
    pixels = np.random.default_rng(1).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path, **IMAGES[kind])
    return path


def _read_image(path: Path) -> None:
    from tessera.mcdropout.images import read_image

    read_image(path)


def _manifest(folder: Path) -> Path:
    for name in ("a.png", "b.png"):
        _image("png", folder).rename(folder / name)
    path = folder / "m.json"
    path.write_text(json.dumps({"num_images": 2, "paths": ["a.png", "b.png"]}))
    return path


def _read_manifest(path: Path) -> None:
    from tessera.mcdropout.manifest import read_manifest

    read_manifest(path)
