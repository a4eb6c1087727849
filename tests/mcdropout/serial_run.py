"""Run the job's stages in this process, as the engine does: a dictionary in the place of the store, tiny models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from hpc.context import Context
from hpc.options import build
from tessera.mcdropout.job import McDropoutJob
from tessera.mcdropout.options import McDropoutOptions

SIDE = 32
OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


class Stored(dict):
    """Results of a stage, in key order."""

    def items(self):
        return iter([(key, self[key]) for key in sorted(self)])

    def save(self, path: Path) -> None:
        raise NotImplementedError


def tiny_model(folder: Path, *, words: bool = False, layers: int = 3, patch: int = 8) -> Path:
    """Write the configuration of a small CLIP, and a tokenizer that knows every letter."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = {
        "model_type": "clip",
        "projection_dim": 16,
        "vision_config": {**sizes, "image_size": SIDE, "patch_size": patch},
        "text_config": {**sizes, "max_position_embeddings": 24, "vocab_size": 64, "eos_token_id": 63},
    }
    (folder / "config.json").write_text(json.dumps(config))
    how = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3, **OPENAI}
    kind = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**how, **kind}))
    if words:
        write_tokenizer(folder / "tokenizer.json")
    return folder


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of single letters that ends every text with number 63."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = {letter: i + 1 for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz -'_0123456789")}
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, **letters, "[BOS]": 62, "[EOS]": 63}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, [("[BOS]", 62), ("[EOS]", 63)])
    backend.enable_padding(pad_id=0, pad_token="[UNK]")
    backend.save(str(path))


def picture_folder(folder: Path, number: int = 12, classes: tuple[str, ...] = ("cat", "red_fox")) -> Path:
    """Write small pictures: coloured shapes on noise, harder from one to the next."""
    rng = np.random.default_rng(5)
    for i in range(number):
        below = folder / classes[i % len(classes)]
        below.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 40 + 15 * i, size=(44, 48, 3)).astype(np.uint8)
        picture[10:30, 5 + i : 25 + i, i % 3] = 250
        Image.fromarray(picture).save(below / f"{i:03d}.png")
    return folder


def options_of(images: Path, model: Path | None, **values) -> McDropoutOptions:
    """Return options for one small model with random weights."""
    how = {"init": "random"} if model is None else {"init": "random", "weights": {"tiny": str(model)}}
    given = {"data_dir": str(images), "models": ["tiny"], "model": how, "dropout": 0.1, "device": "cpu"}
    return build(McDropoutOptions, {**given, **values})


def serial(options: McDropoutOptions, run: Path, threads: int = 1, lost: str = "nothing") -> Path:
    """Run all stages and return the folder of results; units whose keys hold ``lost`` fail."""
    job = McDropoutJob(options)
    job.check()
    done: dict[str, Stored] = {}
    ctx = Context(results_dir=run / "results", results_of=lambda name: done[name], threads=threads)
    ctx.results_dir.mkdir(parents=True, exist_ok=True)
    job.setup(ctx)
    for stage in job.stages():
        units = [unit for unit in stage.units(ctx) if lost not in unit.key]
        done[stage.name] = Stored({unit.key: dict(stage.run(unit, ctx)) for unit in units})
        assert len(done[stage.name]) == len(units)
        stage.merge(done[stage.name], ctx)
    return ctx.results_dir


def changed(options: McDropoutOptions, section: str, **values) -> McDropoutOptions:
    """Return options with some values of a section changed."""
    return dataclasses.replace(options, **{section: dataclasses.replace(getattr(options, section), **values)})


def traces(results: Path, key: str = "tiny", passes: int = 8) -> dict[str, np.ndarray]:
    """Return the columns of an arm at some T."""
    with h5py.File(results / "mcdropout.h5") as file:
        return {name: data[:] for name, data in file[f"arms/{key}/T{passes:04d}"].items()}
