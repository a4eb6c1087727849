"""What the configuration files beside the weights say about a model.

Hugging Face directories have a ``config.json`` (CLIPConfig, SiglipConfig; what it leaves out is that class's default),
OpenCLIP directories an ``open_clip_config.json`` that may name a timm model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpc.store import plain
from tessera.input_files import explained
from tessera.mcdropout.blocks import Activation
from tessera.mcdropout.errors import WeightsError
from tessera.mcdropout.preprocess import Preprocess, from_hugging_face, from_open_clip
from tessera.mcdropout.text import TextConfig
from tessera.mcdropout.tokens import Cleaning
from tessera.mcdropout.towers import TowerConfig

HF_CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"

_COPY_AGAIN = "copy it again from the model's repository"

_MOST = {"width": 65536, "layers": 1000, "heads": 1024, "mlp": 1 << 20, "patch": 4096, "image_size": 16384}
_MOST |= {"embed_dim": 65536, "context": 1 << 17, "vocabulary": 1 << 26, "size": 16384}
"""Largest sizes of what may be a model."""

_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_CLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "num_hidden_layers": 12}
_CLIP_VISION |= {"num_attention_heads": 12, "image_size": 224, "patch_size": 32}
_CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512, "num_hidden_layers": 12}
_CLIP_TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}
_SIGLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIGLIP_VISION = _SIGLIP | {"image_size": 224, "patch_size": 16}
_SIGLIP_TEXT = _SIGLIP | {"max_position_embeddings": 64, "vocab_size": 32000}

_GEMMA_TOKENS = 256_000

# timm's sizes by name: width, blocks, heads, hidden width of the MLP.
_TIMM_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
}
_TIMM_NAME = re.compile(
    r"vit_(?:(?P<pe>pe_core)_(?P<pe_size>tiny|small|base|large)|(?P<size>base|large|so400m|giantopt))"
    r"_patch(?P<patch>\d+)(?:_siglip)?_(?P<image>\d+)"
)
# timm defines these SigLIP models with the exact GELU, and all others of the name with its tanh form.
_TIMM_EXACT_GELU = re.compile(r"vit_(base_patch16|large_patch16_siglip_(256|384)|so400m_patch14)")


@dataclass(frozen=True)
class Architecture:
    """What a configuration describes.

    Attributes
    ----------
    vision, text
        The towers; `text` is None where the configuration has only an image encoder.
    preprocess
        How pictures are prepared.
    cleaning
        How texts are cleaned before tokenization.
    source
        The file, or the registry key, it was read from.
    """

    vision: TowerConfig
    text: TextConfig | None
    preprocess: Preprocess
    cleaning: Cleaning
    source: str


def read_architecture(folder: Path) -> Architecture:
    """Read the configuration in a model's folder.

    Raises
    ------
    WeightsError
        If there is none, or it describes a model that is not CLIP, SigLIP or PE-Core.
    """
    if not folder.is_dir():
        msg = f"{folder} is not a folder; give the folder that holds a model's configuration and its safetensors file"
        raise WeightsError(msg)
    open_clip, hugging_face = folder / OPEN_CLIP_CONFIG, folder / HF_CONFIG
    # Some repositories hold both forms, and a copy of them perhaps the weights of one.
    both = open_clip.is_file() and hugging_face.is_file() and "model_type" in read_json(hugging_face)
    if open_clip.is_file() and not (both and not (folder / OPEN_CLIP_WEIGHTS).is_file()):
        config = read_json(open_clip)
        if "model_cfg" not in config:
            msg = f"{open_clip} has no model_cfg; copy the file again from the model's repository"
            raise WeightsError(msg)
        with explained(str(open_clip), _COPY_AGAIN, WeightsError):
            found = open_clip_architecture(config["model_cfg"], config.get("preprocess_cfg", {}), str(open_clip))
            return _possible(found)
    if hugging_face.is_file():
        config = read_json(hugging_face)
        with explained(f"{hugging_face} or the preprocessor's beside it", _COPY_AGAIN, WeightsError):
            return _possible(hugging_face_architecture(config, _read_preprocessor(folder), str(hugging_face)))
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    msg = (
        f"{folder} holds neither {HF_CONFIG} nor {OPEN_CLIP_CONFIG} (it holds {held}); "
        "copy the whole repository of the model, not the weights alone"
    )
    raise WeightsError(msg)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    WeightsError
        If the file cannot be read or holds something else.
    """
    try:
        value = plain.read_json(path)
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON ({error}); {_COPY_AGAIN}"
        raise WeightsError(msg) from error
    if not isinstance(value, dict):
        msg = f"{path} holds no JSON object; copy it again from the model's repository"
        raise WeightsError(msg)
    return value


def _possible(found: Architecture) -> Architecture:
    """Return an architecture if there can be such a model: a damaged number must not build a million blocks.

    Raises
    ------
    WeightsError
        Naming the first number that no model has.
    """
    for part, sizes in (("image encoder", found.vision), ("text encoder", found.text), ("pictures", found.preprocess)):
        for name, most in _MOST.items():
            value = getattr(sizes, name, None)
            if value is not None and not (type(value) is int and 1 <= value <= most):
                msg = f"{found.source}: {name} of the {part} is {value!r}; it must be a whole number from 1 to {most}"
                raise WeightsError(msg)
    for tower in (found.vision, found.text):
        if tower is not None and (tower.width % tower.heads or not 0 < tower.eps < 1):
            msg = (
                f"{found.source}: width {tower.width} with {tower.heads} heads and eps {tower.eps:g} make no model; "
                f"{_COPY_AGAIN}"
            )
            raise WeightsError(msg)
    if found.vision.patch > found.vision.image_size:
        msg = f"{found.source}: a patch of {found.vision.patch} pixels is larger than the image; {_COPY_AGAIN}"
        raise WeightsError(msg)
    levels = (*found.preprocess.mean, *found.preprocess.std)
    if not all(math.isfinite(level) for level in levels) or min(found.preprocess.std) <= 0:
        msg = f"{found.source}: pictures are normalised by {levels}; means must be finite, widths above zero"
        raise WeightsError(msg)
    return found


def hugging_face_architecture(config: Mapping[str, Any], preprocessor: Mapping[str, Any], source: str) -> Architecture:
    """Interpret a ``config.json`` and a ``preprocessor_config.json`` of transformers."""
    kind = str(config.get("model_type", ""))
    if kind not in ("clip", "clip_vision_model", "siglip", "siglip_vision_model"):
        remedy = (
            "siglip2 of variable resolution (NaFlex) is not supported; take the release with a fixed resolution"
            if kind.startswith("siglip2")
            else "CLIP and SigLIP are; other encoders are not supported"
        )
        msg = f"{source}: model_type {kind or 'missing'!r} is not read here; {remedy}"
        raise WeightsError(msg)
    whole = kind in ("clip", "siglip")
    clip = kind.startswith("clip")
    vision = dict(_CLIP_VISION if clip else _SIGLIP_VISION)
    vision |= config.get("vision_config") or {} if whole else config
    text = (_CLIP_TEXT if clip else _SIGLIP_TEXT) | (config.get("text_config") or {}) if whole else None
    joint = int(config.get("projection_dim") or vision.get("projection_dim") or 0)
    tower = (_hf_clip if clip else _hf_siglip)(vision, joint, source)
    words = None if text is None else _hf_text(text, joint if clip else tower.width, source, clip=clip)
    preprocess = from_hugging_face(preprocessor, source)
    _require_size(preprocess, tower, source)
    # SigLIP 2 has Gemma's tokens, and was trained on lower case; SigLIP on text without punctuation as well.
    gemma = words is not None and words.vocabulary == _GEMMA_TOKENS
    cleaning: Cleaning = "none" if clip else "lower" if gemma else "canonicalize"
    return Architecture(tower, words, preprocess, cleaning, source)


def _hf_clip(c: Mapping[str, Any], joint: int, source: str) -> TowerConfig:
    return TowerConfig(
        family="clip",
        layout="hf",
        width=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp=c["intermediate_size"],
        patch=c["patch_size"],
        image_size=c["image_size"],
        embed_dim=joint,
        activation=_activation(c.get("hidden_act", "quick_gelu"), source),
        eps=float(c.get("layer_norm_eps", 1e-5)),
        pooling="cls",
        pool_heads=0,
        class_token=True,
        pre_norm=True,
        patch_bias=False,
        rotary=False,
        projection="linear",
    )


def _hf_siglip(c: Mapping[str, Any], _: int, source: str) -> TowerConfig:
    if not c.get("vision_use_head", True):
        msg = f"{source}: vision_use_head is off; a SigLIP encoder without its pooling head has no feature to measure"
        raise WeightsError(msg)
    return TowerConfig(
        family="siglip",
        layout="hf",
        width=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp=c["intermediate_size"],
        patch=c["patch_size"],
        image_size=c["image_size"],
        embed_dim=c["hidden_size"],
        activation=_activation(c.get("hidden_act", "gelu_pytorch_tanh"), source),
        eps=float(c.get("layer_norm_eps", 1e-6)),
        pooling="map",
        pool_heads=c["num_attention_heads"],
        class_token=False,
        pre_norm=False,
        patch_bias=True,
        rotary=False,
        projection="none",
    )


def _hf_text(c: Mapping[str, Any], joint: int, source: str, *, clip: bool) -> TextConfig:
    # transformers keeps configurations that name token 2 working by pooling the largest number.
    eot = None if not clip or c["eos_token_id"] == 2 else int(c["eos_token_id"])
    return TextConfig(
        layout="hf",
        width=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp=c["intermediate_size"],
        context=c["max_position_embeddings"],
        vocabulary=c["vocab_size"],
        embed_dim=joint if clip else int(c.get("projection_size") or c["hidden_size"]),
        activation=_activation(c.get("hidden_act", "quick_gelu" if clip else "gelu_pytorch_tanh"), source),
        eps=float(c.get("layer_norm_eps", 1e-5 if clip else 1e-6)),
        causal=clip,
        pooling="eot" if clip else "last",
        eot=eot,
        projection_bias=not clip,
    )


def _activation(name: str, source: str) -> Activation:
    if name not in _ACTIVATIONS:
        msg = f"{source}: activation {name!r} is not known; known are {', '.join(_ACTIVATIONS)}"
        raise WeightsError(msg)
    return _ACTIVATIONS[name]


def open_clip_architecture(model: Mapping[str, Any], preprocess: Mapping[str, Any], source: str) -> Architecture:
    """Interpret ``model_cfg`` and ``preprocess_cfg`` of OpenCLIP."""
    vision, text = dict(model["vision_cfg"]), dict(model.get("text_cfg") or {})
    quick: Activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    embed_dim = int(model["embed_dim"])
    tower = (
        _timm(vision, embed_dim, source) if "timm_model_name" in vision else _native(vision, embed_dim, quick, source)
    )
    words = _open_clip_text(text, embed_dim, quick, source) if text else None
    cleaning: Cleaning = (
        "canonicalize" if (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize" else "none"
    )
    if tower.family != "clip" and not preprocess:
        msg = f"{source} has no preprocess_cfg, and OpenCLIP's default is not that of this model; take its own file"
        raise WeightsError(msg)
    prepared = from_open_clip(preprocess, tower.image_size, source)
    _require_size(prepared, tower, source)
    return Architecture(tower, words, prepared, cleaning, source)


def _native(c: Mapping[str, Any], embed_dim: int, activation: Activation, source: str) -> TowerConfig:
    _require_known(
        c, {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}, source
    )
    if not isinstance(c["layers"], int):
        msg = f"{source}: layers is {c['layers']}: this is a ResNet, and only vision transformers are supported"
        raise WeightsError(msg)
    return TowerConfig(
        family="clip",
        layout="open_clip",
        width=c["width"],
        layers=c["layers"],
        heads=c["width"] // c.get("head_width", 64),
        mlp=int(c["width"] * c.get("mlp_ratio", 4.0)),
        patch=c["patch_size"],
        image_size=c["image_size"],
        embed_dim=embed_dim,
        activation=activation,
        eps=1e-5,
        pooling="cls",
        pool_heads=0,
        class_token=True,
        pre_norm=True,
        patch_bias=False,
        rotary=False,
        projection="linear",
    )


def _timm(c: Mapping[str, Any], embed_dim: int, source: str) -> TowerConfig:
    name = c["timm_model_name"]
    known = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"}
    _require_known(c, known | {"timm_drop", "timm_drop_path"}, source)
    match = _TIMM_NAME.fullmatch(name)
    projection = c.get("timm_proj", "linear")
    if match is None or c.get("timm_pool") != "map" or (match["pe"] is None) != (projection == "none"):
        msg = (
            f"{source}: timm model {name} with pooling {c.get('timm_pool')} and projection {projection} is not known; "
            "known are the SigLIP and PE-Core (up to large) vision transformers with attention pooling"
        )
        raise WeightsError(msg)
    pe = match["pe"] is not None
    width, layers, heads, mlp = _TIMM_SIZES[match["pe_size"] if pe else match["size"]]
    if "image_size" in c and int(match["image"]) != c["image_size"]:
        msg = f"{source}: image_size {c['image_size']} differs from that of {name}; take the model made for this size"
        raise WeightsError(msg)
    exact = pe or _TIMM_EXACT_GELU.match(name) is not None
    return TowerConfig(
        family="pe" if pe else "siglip",
        layout="timm",
        width=width,
        layers=layers,
        heads=heads,
        mlp=mlp,
        patch=int(match["patch"]),
        image_size=int(match["image"]),
        embed_dim=embed_dim,
        activation="gelu" if exact else "gelu_tanh",
        eps=1e-5 if pe else 1e-6,
        pooling="map",
        pool_heads=8 if pe else heads,
        class_token=pe,
        pre_norm=pe,
        patch_bias=not pe,
        rotary=pe,
        projection="biased" if pe else "none",
    )


def _open_clip_text(c: Mapping[str, Any], embed_dim: int, quick: Activation, source: str) -> TextConfig:
    sizes = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
    variants = {"no_causal_mask", "proj_bias", "pool_type", "norm_kwargs", "act_kwargs"}
    _require_known(c, sizes | variants | {"hf_tokenizer_name", "tokenizer_kwargs"}, source)
    pooling = c.get("pool_type", "argmax")
    if pooling not in ("argmax", "last"):
        msg = f"{source}: text pooling {pooling!r} is not known; known are argmax and last"
        raise WeightsError(msg)
    tanh = (c.get("act_kwargs") or {}).get("approximate") == "tanh"
    kind: Literal["eot", "last"] = "eot" if pooling == "argmax" else "last"
    return TextConfig(
        layout="open_clip",
        width=c.get("width", 512),
        layers=c.get("layers", 12),
        heads=c.get("heads", 8),
        mlp=int(c.get("width", 512) * c.get("mlp_ratio", 4.0)),
        context=c.get("context_length", 77),
        vocabulary=c.get("vocab_size", 49408),
        embed_dim=embed_dim,
        activation="gelu_tanh" if tanh else quick,
        eps=float((c.get("norm_kwargs") or {}).get("eps", 1e-5)),
        causal=not c.get("no_causal_mask", False),
        pooling=kind,
        eot=None,
        projection_bias=bool(c.get("proj_bias", False)),
    )


def _require_known(config: Mapping[str, Any], known: set[str], source: str) -> None:
    unknown = sorted(key for key, value in config.items() if key not in known and value not in (None, False))
    if unknown:
        msg = f"{source}: {', '.join(unknown)} is not supported, and leaving it out would change the features"
        raise WeightsError(msg)


def _require_size(preprocess: Preprocess, tower: TowerConfig, source: str) -> None:
    if preprocess.size != tower.image_size:
        msg = (
            f"{source}: pictures are prepared at {preprocess.size} pixels and the model takes {tower.image_size}; "
            "the configuration files belong to different models: copy both from one repository"
        )
        raise WeightsError(msg)


def _read_preprocessor(folder: Path) -> dict[str, Any]:
    """Read what transformers 4 and 5 write about the image processor."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return read_json(path)
    path = folder / "processor_config.json"
    if path.is_file():
        nested = read_json(path).get("image_processor")
        if isinstance(nested, dict):
            return nested
    msg = (
        f"{folder} has no preprocessor_config.json, and releases of one model differ in how they resize; "
        "copy it from the model's repository"
    )
    raise WeightsError(msg)
