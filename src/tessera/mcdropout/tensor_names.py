"""Which tensors of a weight file make up a parameter of a tower: the layouts of transformers, OpenCLIP and timm."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tessera.mcdropout.errors import WeightsError
from tessera.mcdropout.text import TextConfig
from tessera.mcdropout.towers import TowerConfig

_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes
    ----------
    names
        The tensors, put one after the other along the rows.
    rows
        The thirds of the rows that are taken, of a matrix that packs q, k and v.
    transposed
        The file holds the transpose.
    """

    names: tuple[str, ...]
    rows: tuple[int, int] = (0, 3)
    transposed: bool = False

    def build(self, parts: list[Tensor], shape: torch.Size) -> Tensor:
        """Return the parameter in float32.

        Raises
        ------
        WeightsError
            If the parts do not make up its shape; the message names the tensors and both shapes.
        """
        found = " + ".join(f"{n} {tuple(p.shape)}" for n, p in zip(self.names, parts, strict=True))
        whole = parts[0] if len(parts) == 1 else _joined(parts)
        if whole is not None and self.rows != (0, 3):
            third = len(whole) // 3
            whole = whole[self.rows[0] * third : self.rows[1] * third]
        if whole is not None and self.transposed:
            whole = whole.T
        if whole is None or _essential(whole.shape) != _essential(shape):
            wanted = tuple(reversed(shape)) if self.transposed else tuple(shape)
            msg = f"{found}; the model needs {wanted}"
            raise WeightsError(msg)
        return whole.reshape(shape).to(torch.float32, copy=True).contiguous()


def _joined(parts: list[Tensor]) -> Tensor | None:
    fits = all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts)
    return torch.cat(parts) if fits else None


def _essential(shape: torch.Size) -> tuple[int, ...]:
    """Drop leading ones: an embedding may be stored with or without a batch axis."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)


def _linear(ours: str, *theirs: str) -> dict[str, Source]:
    return {f"{ours}.{end}": Source(tuple(f"{name}.{end}" for name in theirs)) for end in ("weight", "bias")}


def _of_mha(ours: str, theirs: str, rows: tuple[int, int] = (0, 3)) -> dict[str, Source]:
    """Return the packed q, k, v of torch's MultiheadAttention."""
    return {f"{ours}.{end}": Source((f"{theirs}.in_proj_{end}",), rows) for end in ("weight", "bias")}


_HF_BLOCK = {
    **_linear("norm1", "layer_norm1"),
    **_linear("attn.qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    **_linear("attn.out", "self_attn.out_proj"),
    **_linear("norm2", "layer_norm2"),
    **_linear("mlp.fc1", "mlp.fc1"),
    **_linear("mlp.fc2", "mlp.fc2"),
}
_OPEN_CLIP_BLOCK = {
    **_linear("norm1", "ln_1"),
    **_of_mha("attn.qkv", "attn"),
    **_linear("attn.out", "attn.out_proj"),
    **_linear("norm2", "ln_2"),
    **_linear("mlp.fc1", "mlp.c_fc"),
    **_linear("mlp.fc2", "mlp.c_proj"),
}
_TIMM_BLOCK = {
    **_linear("norm1", "norm1"),
    **_linear("attn.qkv", "attn.qkv"),
    **_linear("attn.out", "attn.proj"),
    **_linear("norm2", "norm2"),
    **_linear("mlp.fc1", "mlp.fc1"),
    **_linear("mlp.fc2", "mlp.fc2"),
}
_HF_VISION = {
    **_linear("patch", "vision_model.embeddings.patch_embedding"),
    "cls": Source(("vision_model.embeddings.class_embedding",)),
    "pos": Source(("vision_model.embeddings.position_embedding.weight",)),
    # The misspelling is in every released CLIP.
    **_linear("pre_norm", "vision_model.pre_layrnorm"),
    **_linear("post_norm", "vision_model.post_layernorm"),
    "proj.weight": Source(("visual_projection.weight",)),
    "pool.latent": Source(("vision_model.head.probe",)),
    **_of_mha("pool.q", "vision_model.head.attention", (0, 1)),
    **_of_mha("pool.kv", "vision_model.head.attention", (1, 3)),
    **_linear("pool.out", "vision_model.head.attention.out_proj"),
    **_linear("pool.norm", "vision_model.head.layernorm"),
    **_linear("pool.mlp.fc1", "vision_model.head.mlp.fc1"),
    **_linear("pool.mlp.fc2", "vision_model.head.mlp.fc2"),
}
_OPEN_CLIP_VISION = {
    **_linear("patch", "visual.conv1"),
    "cls": Source(("visual.class_embedding",)),
    "pos": Source(("visual.positional_embedding",)),
    **_linear("pre_norm", "visual.ln_pre"),
    **_linear("post_norm", "visual.ln_post"),
    "proj.weight": Source(("visual.proj",), transposed=True),
}
_TIMM_VISION = {
    **_linear("patch", "visual.trunk.patch_embed.proj"),
    "cls": Source(("visual.trunk.cls_token",)),
    "pos": Source(("visual.trunk.pos_embed",)),
    **_linear("pre_norm", "visual.trunk.norm_pre"),
    **_linear("post_norm", "visual.trunk.norm"),
    **_linear("proj", "visual.trunk.head"),
    "pool.latent": Source(("visual.trunk.attn_pool.latent",)),
    **_linear("pool.q", "visual.trunk.attn_pool.q"),
    **_linear("pool.kv", "visual.trunk.attn_pool.kv"),
    **_linear("pool.out", "visual.trunk.attn_pool.proj"),
    **_linear("pool.norm", "visual.trunk.attn_pool.norm"),
    **_linear("pool.mlp.fc1", "visual.trunk.attn_pool.mlp.fc1"),
    **_linear("pool.mlp.fc2", "visual.trunk.attn_pool.mlp.fc2"),
}
_HF_TEXT = {
    "embedding.weight": Source(("text_model.embeddings.token_embedding.weight",)),
    "pos": Source(("text_model.embeddings.position_embedding.weight",)),
    **_linear("post_norm", "text_model.final_layer_norm"),
}
_OPEN_CLIP_TEXT = {
    "embedding.weight": Source(("token_embedding.weight",)),
    "pos": Source(("positional_embedding",)),
    **_linear("post_norm", "ln_final"),
}
_VISION = {
    "hf": (_HF_VISION, _HF_BLOCK, "vision_model.encoder.layers."),
    "open_clip": (_OPEN_CLIP_VISION, _OPEN_CLIP_BLOCK, "visual.transformer.resblocks."),
    "timm": (_TIMM_VISION, _TIMM_BLOCK, "visual.trunk.blocks."),
}


def vision_source(config: TowerConfig, parameter: str) -> Source:
    """Return where a parameter of a `VisionTower` comes from."""
    top, block, stem = _VISION[config.layout]
    return _lookup(parameter, top, block, stem)


def text_source(config: TextConfig, parameter: str) -> Source:
    """Return where a parameter of a `TextTower` comes from."""
    if config.layout == "hf":
        projection = "text_model.head" if config.projection_bias else "text_projection"
        return _lookup(parameter, _HF_TEXT | _linear("proj", projection), _HF_BLOCK, "text_model.encoder.layers.")
    # OpenCLIP keeps a matrix to multiply with from the right, or a linear layer if it has a bias.
    projection_source = (
        _linear("proj", "text_projection")
        if config.projection_bias
        else {"proj.weight": Source(("text_projection",), transposed=True)}
    )
    return _lookup(parameter, _OPEN_CLIP_TEXT | projection_source, _OPEN_CLIP_BLOCK, "transformer.resblocks.")


def _lookup(parameter: str, top: dict[str, Source], block: dict[str, Source], stem: str) -> Source:
    match = _BLOCK.match(parameter)
    if match is None:
        return top[parameter]
    source = block[parameter[match.end() :]]
    return replace(source, names=tuple(f"{stem}{match[1]}.{name}" for name in source.names))


def is_buffer(name: str) -> bool:
    """Say whether a tensor of a file is no weight: positions and masks that older versions stored."""
    return name.endswith(("position_ids", "attn_mask", "rope.pos_embed", "rope.bands", "rope.freqs"))


def belongs_to_vision(name: str) -> bool:
    """Say whether a tensor of a file is a part of the image encoder."""
    return name.startswith(("vision_model.", "visual.", "visual_projection."))
