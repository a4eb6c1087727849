"""The models by key or by folder: towers, preprocessing, tokenizer, and where all of it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from tessera.mcdropout.errors import WeightsError
from tessera.mcdropout.model_config import (
    OPEN_CLIP_CONFIG,
    Architecture,
    open_clip_architecture,
    read_architecture,
    read_json,
)
from tessera.mcdropout.preprocess import Preprocess
from tessera.mcdropout.tensor_names import text_source, vision_source
from tessera.mcdropout.text import TextTower
from tessera.mcdropout.tokens import Tokenizer, read_tokenizer
from tessera.mcdropout.towers import VisionTower, initialise
from tessera.mcdropout.weights import WeightFiles, find_weights, load_into, open_weights, require_all_read

_INCEPTION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
_SIGLIP2 = {**_INCEPTION, "interpolation": "bicubic"}
_SIGLIP2_TEXT = {
    "context_length": 64,
    "vocab_size": 256000,
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
_WIDE_TEXT = {**_SIGLIP2_TEXT, "width": 1152, "heads": 16, "layers": 27, "mlp_ratio": 3.7362}


def _clip(embed_dim: int, width: int, layers: int, patch: int, text_width: int) -> dict[str, Any]:
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": layers, "width": width, "patch_size": patch},
        "text_cfg": {"width": text_width, "heads": text_width // 64, "layers": 12},
    }


def _timm(embed_dim: int, name: str, text: dict[str, Any], projection: str | None = "none") -> dict[str, Any]:
    vision = {"timm_model_name": name, "timm_pool": "map", "timm_proj": projection}
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


@dataclass(frozen=True)
class Known:
    """A model of the registry.

    Attributes
    ----------
    open_clip
        Its ``model_cfg`` and ``preprocess_cfg`` in OpenCLIP.
    releases
        Repositories that hold its weights, for messages.
    """

    open_clip: tuple[dict[str, Any], dict[str, Any]]
    releases: str

    def architecture(self, key: str) -> Architecture:
        """Return the towers and the preprocessing of OpenCLIP's release."""
        return open_clip_architecture(*self.open_clip, f"the registry entry {key}")


MODELS: dict[str, Known] = {
    "clip_b32": Known(
        (_clip(512, 768, 12, 32, 512), {}), "openai/clip-vit-base-patch32 or timm/vit_base_patch32_clip_224.openai"
    ),
    "clip_l14": Known(
        (_clip(768, 1024, 24, 14, 768), {}), "openai/clip-vit-large-patch14 or timm/vit_large_patch14_clip_224.openai"
    ),
    "siglip2_b16": Known(
        (
            _timm(768, "vit_base_patch16_siglip_224", {**_SIGLIP2_TEXT, "width": 768, "heads": 12, "layers": 12}),
            _SIGLIP2,
        ),
        "google/siglip2-base-patch16-224 or timm/ViT-B-16-SigLIP2",
    ),
    "siglip2_so400m": Known(
        (_timm(1152, "vit_so400m_patch14_siglip_378", _WIDE_TEXT), _SIGLIP2),
        "google/siglip2-so400m-patch14-384 or timm/ViT-SO400M-14-SigLIP2-378",
    ),
    "siglip2_g16": Known(
        (_timm(1536, "vit_giantopt_patch16_siglip_384", _WIDE_TEXT), _SIGLIP2),
        "google/siglip2-giant-opt-patch16-384 or timm/ViT-gopt-16-SigLIP2-384",
    ),
    "pe_core_b16": Known(
        (
            _timm(
                1024,
                "vit_pe_core_base_patch16_224",
                {"context_length": 32, "width": 1024, "heads": 16, "layers": 24},
                None,
            ),
            {**_INCEPTION, "interpolation": "bilinear"},
        ),
        "timm/PE-Core-B-16",
    ),
}


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes
    ----------
    name
        Its key, or the name of its folder.
    tower, text
        The image encoder, and the text encoder if it was asked for; float32, on the CPU, not training.
    preprocess
        How pictures are prepared.
    tokenizer
        Of the text encoder; None if that was not asked for, or has no tokenizer file and random weights.
    logit_scale, logit_bias
        Logits of an image and a text are ``exp(logit_scale) cos + logit_bias``.
    provenance
        Configuration file, weight files with sizes, layout, initialisation: what the results should record.
    files
        The weight files; None with random weights.
    remarks
        What the user must be told.
    """

    name: str
    tower: VisionTower
    text: TextTower | None
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    logit_scale: float
    logit_bias: float
    provenance: dict[str, Any]
    files: WeightFiles | None
    remarks: tuple[str, ...]


def load_model(
    model: str,
    weights: Path | None = None,
    *,
    init: Literal["weights", "random"] = "weights",
    seed: int = 0,
    text: bool = False,
) -> Loaded:
    """Load a model by its registry key or from a folder.

    Parameters
    ----------
    model
        A key of `MODELS`, or the path of a folder with a CLIP, SigLIP or PE-Core model.
    weights
        With a key: the folder that holds its repository, in Hugging Face or OpenCLIP form.
    init
        ``random`` fills the towers with random numbers, for tests and benchmarks; a folder then needs only its
        configuration, and a key needs none.
    seed
        Of the random weights.
    text
        Load the text encoder and its tokenizer too.

    Returns
    -------
    Loaded

    Raises
    ------
    WeightsError
        If there is no such model, its files are missing, damaged or pickled, or they are not those of the key.
    TextError
        If `text` is asked for and the tokenizer file is missing.
    """
    architecture, folder = find_architecture(model, weights, random=init == "random")
    if text and architecture.text is None:
        msg = f"{architecture.source} describes no text encoder; take a folder with the whole model"
        raise WeightsError(msg)
    files = None if init == "random" or folder is None else find_weights(folder, architecture.vision.layout)
    with torch.device("meta"):
        tower = VisionTower(architecture.vision)
        words = TextTower(architecture.text) if text and architecture.text is not None else None
    scale, bias = (_random(tower, words, seed), 0.0) if files is None else _fill(tower, words, files)
    for module in (tower, words):
        if module is not None:
            module.eval().requires_grad_(requires_grad=False)
    return Loaded(
        name=model if folder is None or model in MODELS else folder.name,
        tower=tower,
        text=words,
        preprocess=architecture.preprocess,
        tokenizer=_tokenizer(architecture, folder, needed=files is not None) if words is not None else None,
        logit_scale=scale,
        logit_bias=bias,
        provenance=_provenance(architecture, files, seed),
        files=files,
        remarks=() if files else (_random_remark(model),),
    )


def find_architecture(model: str, weights: Path | None, *, random: bool) -> tuple[Architecture, Path | None]:
    """Return what a key or folder describes, and its folder, without reading weights.

    Raises
    ------
    WeightsError
        If the model is unknown, its folder is missing, or it is not the model of the key.
    """
    if model in MODELS:
        known = MODELS[model].architecture(model)
        if weights is None:
            if random:
                return known, None
            msg = (
                f"model {model} has no weights; give the local folder of {MODELS[model].releases} "
                "(nothing is downloaded), or set model.init=random for a test"
            )
            raise WeightsError(msg)
        architecture = read_architecture(weights)
        _require_same(model, known, architecture)
        return architecture, weights
    folder = Path(model)
    if not folder.is_dir():
        msg = f"model {model!r} is neither a folder nor a known key; the keys are {', '.join(MODELS)}"
        raise WeightsError(msg)
    architecture = read_architecture(folder)
    _require_quick_gelu(architecture, folder)
    return architecture, folder


def _require_same(key: str, known: Architecture, found: Architecture) -> None:
    """Refuse a folder that holds another model than the key names."""
    sizes = ("family", "width", "layers", "heads", "mlp", "patch", "embed_dim")
    different = [
        f"{name} {getattr(found.vision, name)} instead of {getattr(known.vision, name)}"
        for name in sizes
        if getattr(found.vision, name) != getattr(known.vision, name)
    ]
    if different:
        msg = f"{found.source} is not model {key}: {', '.join(different)}; give the folder of {MODELS[key].releases}"
        raise WeightsError(msg)
    if known.vision.family == "clip" and found.vision.activation != known.vision.activation:
        msg = (
            f"QuickGELU mismatch: {found.source} says {found.vision.activation}, and the weights of {key} were trained "
            "with quick_gelu: their features would silently be wrong. Take a configuration with quick_gelu: true "
            "(OpenCLIP) or hidden_act: quick_gelu (Hugging Face); other weights of this size go by folder, not by key"
        )
        raise WeightsError(msg)


def _require_quick_gelu(found: Architecture, folder: Path) -> None:
    """Refuse OpenAI's weights under a configuration that forgets their activation."""
    if found.vision.layout != "open_clip" or "openai" not in folder.name.lower():
        return
    if "quick_gelu" not in read_json(folder / OPEN_CLIP_CONFIG)["model_cfg"]:
        msg = (
            f"QuickGELU mismatch: {found.source} does not set quick_gelu, and the folder's name says the weights are "
            "OpenAI's, which were trained with it; add quick_gelu: true to model_cfg (or false, if they were not)"
        )
        raise WeightsError(msg)


def _fill(tower: VisionTower, text: TextTower | None, files: WeightFiles) -> tuple[float, float]:
    """Load both towers; return scale and bias of the logits."""
    with open_weights(files) as weights:
        read = load_into(tower, weights, lambda name: vision_source(tower.config, name), [("vision_model.", "")])
        require_all_read(weights, read)
        if text is not None:
            config = text.config
            load_into(text, weights, lambda name: text_source(config, name), [("", "text.")])
        return weights.number("logit_scale") or 0.0, weights.number("logit_bias") or 0.0


def _random(tower: VisionTower, text: TextTower | None, seed: int) -> float:
    initialise(tower, seed)
    if text is not None:
        initialise(text, seed + 1)
    return 0.0


def _tokenizer(architecture: Architecture, folder: Path | None, *, needed: bool) -> Tokenizer | None:
    if architecture.text is None or folder is None or not (needed or (folder / "tokenizer.json").is_file()):
        return None
    # CLIP's tower sees nothing behind the end token, so there any padding does.
    pad = 0 if architecture.text.causal else None
    return read_tokenizer(folder / "tokenizer.json", architecture.text.context, architecture.cleaning, pad)


def _provenance(architecture: Architecture, files: WeightFiles | None, seed: int) -> dict[str, Any]:
    config = architecture.vision
    return {
        "source": architecture.source,
        "init": "random" if files is None else "weights",
        "init_seed": seed if files is None else None,
        "weights": {} if files is None else {str(path): path.stat().st_size for path in files.paths},
        "tower": {field.name: getattr(config, field.name) for field in fields(config)},
        "preprocess": asdict(architecture.preprocess),
    }


def _random_remark(model: str) -> str:
    return (
        f"RANDOM WEIGHTS: {model} is filled with random numbers (model.init=random); its features, traces and verdicts "
        "say nothing about the model"
    )
