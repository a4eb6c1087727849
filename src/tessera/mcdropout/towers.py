"""Vision encoders of CLIP, SigLIP and PE-Core as one small ViT with named sites, entered at any of its linear layers.

CLIP: Radford et al. 2021 (arXiv:2103.00020), the class token is projected. SigLIP and SigLIP 2: Zhai et al. 2023
(arXiv:2303.15343), attention pooling by a learned query. PE-Core: Bolya et al. 2025 (arXiv:2504.13181), class token,
rotary positions and attention pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tessera.mcdropout.blocks import Activation, Block, BlockShape, Entry, Mlp, Point, join_heads, split_heads, through
from tessera.mcdropout.sites import Layout, Perturb, Site, SiteList

_POINTS: dict[str, Point] = {
    "attn.qkv": "qkv",
    "attn.q": "qkv",
    "attn.k": "qkv",
    "attn.v": "qkv",
    "attn.out": "out",
    "attn.proj_drop": "out",
    "drop_path.attn": "out",
    "mlp.fc1": "fc1",
    "mlp.drop1": "fc1",
    "mlp.fc2": "fc2",
    "mlp.drop2": "fc2",
    "drop_path.mlp": "fc2",
}


@dataclass(frozen=True)
class TowerConfig:
    """Sizes and variant of a vision tower.

    Attributes
    ----------
    family, layout
        Model family, and the implementation whose weights are read.
    width, layers, heads, mlp
        Residual width, number of blocks, attention heads, hidden width of the MLPs.
    patch, image_size
        In pixels; both square. A remainder of the image beyond whole patches is not seen.
    embed_dim
        Width D of the feature.
    activation, eps
        Of the MLPs, and of the layer norms.
    pooling, pool_heads
        ``cls``: the class token; ``map``: attention pooling by a learned query, with so many heads.
    class_token, pre_norm, patch_bias, rotary
        Whether there is a class token, a layer norm before the first block, a bias in the patch embedding, and rotary
        positions besides the learned ones.
    projection
        The last linear layer: ``none``, ``linear`` (no bias) or ``biased``.
    """

    family: Literal["clip", "siglip", "pe"]
    layout: Layout
    width: int
    layers: int
    heads: int
    mlp: int
    patch: int
    image_size: int
    embed_dim: int
    activation: Activation
    eps: float
    pooling: Literal["cls", "map"]
    pool_heads: int
    class_token: bool
    pre_norm: bool
    patch_bias: bool
    rotary: bool
    projection: Literal["none", "linear", "biased"]

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Length of the sequence that the blocks see."""
        return self.grid**2 + self.class_token

    @property
    def own_dropouts(self) -> bool:
        """Whether the original implementation has idle dropouts of its own."""
        return self.layout == "timm"


class Tower(nn.Module):
    """A stack of blocks that can be entered at any linear layer; base of the vision and the text tower."""

    blocks: nn.ModuleList
    rotary: Tensor | None
    first_token_pooled: bool
    """The feature depends on the first token of the last block alone."""

    def __init__(self) -> None:
        super().__init__()
        self._sites: tuple[Site, ...] = ()

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def sites(self) -> tuple[Site, ...]:
        """Return every place where a perturbation may act, in the order of the forward pass."""
        return self._sites

    def run(
        self, tokens: Tensor, start: int, stop: int, perturb: Perturb | None = None, *, first_token_only: bool = False
    ) -> Tensor:
        """Run blocks ``start … stop-1``.

        Parameters
        ----------
        tokens
            (N, tokens, width), the residual stream before block `start`.
        start, stop
            Range of blocks.
        perturb
            Called at every site on the way.
        first_token_only
            Compute of the last block only the token that is pooled; allowed where `first_token_pooled`. The features
            are those of the whole block up to rounding; ``packed`` sites of that block are not passed.

        Returns
        -------
        Tensor
            (N, tokens, width), or (N, 1, width) after the last block with `first_token_only`.
        """
        for number in range(start, stop):
            tokens = self._block(number)(
                tokens, perturb, self.rotary, first_token_only=self._cut(number, first_token_only)
            )
        return tokens

    def enter(self, tokens: Tensor, start: int, site: Site, *, first_token_only: bool = False) -> Entry:
        """Run from block `start` without perturbation up to the linear layer of a site.

        Everything before the first perturbed site is a function of the image alone: compute it once, keep the entry,
        and `resume` from it in every pass.

        Parameters
        ----------
        tokens
            (N, tokens, width), the residual stream before block `start`.
        start
            The block to begin with, not after that of the site.
        site
            The first site that is perturbed. A site before the blocks has no entry; one behind them is entered after
            the last block.
        first_token_only
            As in `run`.
        """
        if site.block < start:
            msg = f"site {site.id} lies before block {start}, so it cannot be entered from there"
            raise ValueError(msg)
        tokens = self.run(tokens, start, min(site.block, self.depth), first_token_only=first_token_only)
        if site.block >= self.depth:
            return Entry(self.depth, "start", tokens)
        point = _POINTS[site.id.split("blocks.")[1].partition(".")[2]]
        cut = self._cut(site.block, first_token_only)
        return self._block(site.block).enter(tokens, point, self.rotary, first_token_only=cut)

    def resume(self, entry: Entry, perturb: Perturb | None = None, *, first_token_only: bool = False) -> Tensor:
        """Run from an entry through the last block; the result is what `run` returns."""
        if entry.block >= self.depth:
            return entry.residual
        cut = self._cut(entry.block, first_token_only)
        tokens = self._block(entry.block).resume(entry, perturb, self.rotary, first_token_only=cut)
        return self.run(tokens, entry.block + 1, self.depth, perturb, first_token_only=first_token_only)

    def _block(self, number: int) -> Block:
        return cast("Block", self.blocks[number])

    def _cut(self, number: int, first_token_only: bool) -> bool:
        if first_token_only and not self.first_token_pooled:
            msg = "this tower pools more than its first token: first_token_only would change its features"
            raise ValueError(msg)
        return first_token_only and number == self.depth - 1


class MapPool(nn.Module):
    """Attention pooling: a learned query attends to all tokens, then an MLP with a residual connection."""

    def __init__(self, config: TowerConfig, sites: SiteList) -> None:
        super().__init__()
        width, depth = config.width, config.layers
        shape = BlockShape(
            1, width, config.pool_heads, config.mlp, config.activation, config.eps, own_dropouts=config.own_dropouts
        )
        self.heads = config.pool_heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.q_sites = [sites.add("pool.attn.q", "attention", depth, (1, width))]
        self.kv_sites = [sites.add("pool.attn.kv", "packed", depth, (config.tokens, 2 * width))]
        self.k_sites = [sites.add("pool.attn.k", "attention", depth, (config.tokens, width))]
        self.v_sites = [sites.add("pool.attn.v", "attention", depth, (config.tokens, width))]
        self.out_sites = [sites.add("pool.attn.out", "attention", depth, (1, width))]
        if config.own_dropouts:
            self.out_sites.append(sites.add("pool.proj_drop", "preexisting", depth, (1, width)))
        self.mlp = Mlp(shape, sites, "pool.mlp", depth)

    def forward(self, x: Tensor, perturb: Perturb | None) -> Tensor:
        """Pool (N, tokens, width) to (N, 1, width)."""
        q = through(self.q_sites, self.q(self.latent).expand(len(x), -1, -1), perturb)
        k, v = through(self.kv_sites, self.kv(x), perturb).chunk(2, -1)
        k, v = through(self.k_sites, k, perturb), through(self.v_sites, v, perturb)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        x = through(self.out_sites, self.out(join_heads(functional.scaled_dot_product_attention(q, k, v))), perturb)
        return x + self.mlp.forward(self.norm(x), perturb)


class VisionTower(Tower):
    """A ViT from pixels to one feature vector for each image."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        width, sites = config.width, SiteList()
        self.patch = nn.Conv2d(3, width, config.patch, config.patch, bias=config.patch_bias)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.pos = nn.Parameter(torch.empty(1, config.tokens, width))
        self.pre_norm = nn.LayerNorm(width, eps=config.eps) if config.pre_norm else None
        before = [sites.add("embed.pos_drop", "preexisting", -1, (config.tokens, width))] if config.own_dropouts else []
        self.embed_sites = before
        shape = BlockShape(
            config.tokens,
            width,
            config.heads,
            config.mlp,
            config.activation,
            config.eps,
            own_dropouts=config.own_dropouts,
        )
        self.blocks = nn.ModuleList(Block(shape, sites, i) for i in range(config.layers))
        self.post_norm = nn.LayerNorm(width, eps=config.eps)
        self.pool = MapPool(config, sites) if config.pooling == "map" else None
        self.first_token_pooled = self.pool is None
        after = [sites.add("head.drop", "preexisting", config.layers, (1, width))] if config.own_dropouts else []
        self.head_sites = after
        self.proj: nn.Linear | None = None
        self.proj_sites: list[Site] = []
        if config.projection != "none":
            self.proj = nn.Linear(width, config.embed_dim, bias=config.projection == "biased")
            self.proj_sites = [sites.add("head.proj", "projection", config.layers, (1, config.embed_dim))]
        self.register_buffer("rotary", rotary_table(config) if config.rotary else None, persistent=False)
        self._sites = sites.all()

    def embed(self, pixels: Tensor, perturb: Perturb | None = None) -> Tensor:
        """Turn pixels (N, 3, image_size, image_size) into tokens (N, tokens, width) before block 0."""
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = through(self.embed_sites, x + self.pos, perturb)
        return x if self.pre_norm is None else self.pre_norm(x)

    def head(self, tokens: Tensor, perturb: Perturb | None = None) -> Tensor:
        """Pool and project the tokens after the last block to features (N, embed_dim), float32.

        The last norm of a class token and the projection are computed in float32 whatever the autocast around them:
        rounding of the output to half precision would be part of the variance that is measured.
        """
        if self.pool is not None:
            x = self.pool(self.post_norm(tokens), perturb)
        with torch.autocast(tokens.device.type, enabled=False):
            x = self.post_norm(tokens[:, :1].float()) if self.pool is None else x.float()
            x = through(self.head_sites, x, perturb)
            if self.proj is not None:
                x = through(self.proj_sites, self.proj(x), perturb)
        return x[:, 0].float()

    def forward(self, pixels: Tensor, perturb: Perturb | None = None) -> Tensor:
        """Compute features (N, embed_dim) of pixels (N, 3, image_size, image_size)."""
        return self.head(self.run(self.embed(pixels, perturb), 0, self.depth, perturb), perturb)


def rotary_table(config: TowerConfig) -> Tensor:
    """Return sine and cosine (2, tokens, channels of a head) of the rotary positions of PE-Core.

    Half of the channels turn with the column, half with the row (each counted from 1), in pairs of neighbours with
    frequencies ``10000^(-4 i / channels)``; the class token is not turned.
    """
    channels = config.width // config.heads
    # On the CPU even while a tower is built without memory: the table is computed, not loaded.
    frequencies = 10_000.0 ** -(torch.arange(0, channels // 2, 2, dtype=torch.float32, device="cpu") / (channels // 2))
    along = torch.arange(config.grid, dtype=torch.float32, device="cpu") + 1
    rows, columns = torch.meshgrid(along, along, indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], -1)
    angles = (places[..., None] * frequencies).flatten(1).repeat_interleave(2, -1)
    if config.class_token:
        angles = torch.cat([angles.new_zeros(1, channels), angles])
    return torch.stack([angles.sin(), angles.cos()])


def initialise(tower: nn.Module, seed: int) -> None:
    """Fill a tower, which may lie on the meta device, with random weights that depend on the seed alone.

    Matrices are normal with variance 1 / inputs, so that the activations of all blocks have about the same size;
    biases and embeddings are normal with standard deviation 0.02, norms are the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in tower.named_parameters():
        if "norm" in name:
            values[name] = torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            matrix = parameter.ndim in (2, 4) and "embed" not in name
            std = parameter.shape[1:].numel() ** -0.5 if matrix else 0.02
            values[name] = torch.randn(parameter.shape, generator=generator).mul_(std)
    tower.load_state_dict(values, assign=True)
