"""Small models of transformers with random weights, and their folders, as references for our towers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from tessera.mcdropout.preprocess import OPENAI_MEAN, OPENAI_STD

WIDE, SIDE = 48, 40


def seeded(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a value that matters: fresh models have zero biases and flat norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise)
    return model.eval()


def clip(**vision) -> torch.nn.Module:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": WIDE, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59, "bos_token_id": 58}
    sight = {**sizes, "image_size": SIDE, "patch_size": 8, **vision}
    return seeded(CLIPModel(CLIPConfig(text_config=text, vision_config=sight, projection_dim=20)))


def siglip(**vision) -> torch.nn.Module:
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": WIDE, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 60, "max_position_embeddings": 10, "pad_token_id": 0}
    sight = {**sizes, "image_size": SIDE, "patch_size": 8, **vision}
    return seeded(SiglipModel(SiglipConfig(text_config=text, vision_config=sight)))


def clip_preprocessor(side: int = SIDE) -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": list(OPENAI_MEAN),
        "image_std": list(OPENAI_STD),
    }


def siglip_preprocessor(side: int = SIDE) -> dict:
    half = [0.5, 0.5, 0.5]
    size = {"height": side, "width": side}
    return {
        "image_processor_type": "SiglipImageProcessor",
        "size": size,
        "resample": 2,
        "image_mean": half,
        "image_std": half,
    }


def save(model: torch.nn.Module, folder: Path, **how) -> Path:
    """Write a model's folder as a repository of Hugging Face has it, with a tokenizer of two-letter words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **how)
    preprocessor = clip_preprocessor if model.config.model_type.startswith("clip") else siglip_preprocessor
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor()))
    tokenizer(folder, clip=model.config.model_type.startswith("clip"))
    return folder


def tokenizer(folder: Path, *, clip: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<pad>": 0, **{a + b: 1 + 7 * i + j for i, a in enumerate("abcdefg") for j, b in enumerate("abcdefg")}}
    words |= {"<start>": 58, "<end>": 59}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "<start> $A <end>" if clip else "$A <end>"
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<start>", 58), ("<end>", 59)]
    )
    backend.save(str(folder / "tokenizer.json"))
    pad = "<end>" if clip else "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": pad}}))
