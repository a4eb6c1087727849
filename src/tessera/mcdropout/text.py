"""Text encoders of CLIP, SigLIP and PE-Core, of the same blocks and with the same sites as the vision towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tessera.mcdropout.blocks import Activation, Block, BlockShape, through
from tessera.mcdropout.sites import Layout, Perturb, SiteList
from tessera.mcdropout.towers import Tower


@dataclass(frozen=True)
class TextConfig:
    """Sizes and variant of a text tower.

    Attributes
    ----------
    layout
        The implementation whose weights are read.
    width, layers, heads, mlp
        Residual width, number of blocks, attention heads, hidden width of the MLPs.
    context, vocabulary
        Longest sequence and number of tokens.
    embed_dim
        Width of the feature.
    activation, eps
        Of the MLPs, and of the layer norms.
    causal
        A token sees only those before it.
    pooling
        ``eot``: the first end-of-text token; ``last``: the last of the sequence, padding or not.
    eot
        Number of the end-of-text token; None: the largest number in a text.
    projection_bias
        Whether the projection has a bias.
    """

    layout: Layout
    width: int
    layers: int
    heads: int
    mlp: int
    context: int
    vocabulary: int
    embed_dim: int
    activation: Activation
    eps: float
    causal: bool
    pooling: Literal["eot", "last"]
    eot: int | None
    projection_bias: bool


class TextTower(Tower):
    """A transformer from token numbers to one feature vector for each text."""

    first_token_pooled = False

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.rotary = None
        width, sites = config.width, SiteList("text.")
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.pos = nn.Parameter(torch.empty(1, config.context, width))
        shape = BlockShape(
            config.context, width, config.heads, config.mlp, config.activation, config.eps, causal=config.causal
        )
        self.blocks = nn.ModuleList(Block(shape, sites, i) for i in range(config.layers))
        self.post_norm = nn.LayerNorm(width, eps=config.eps)
        self.proj = nn.Linear(width, config.embed_dim, bias=config.projection_bias)
        self.proj_sites = [sites.add("head.proj", "projection", config.layers, (1, config.embed_dim))]
        self._sites = sites.all()

    def embed(self, texts: Tensor) -> Tensor:
        """Turn token numbers (N, length) into the residual stream (N, length, width) before block 0."""
        embedded: Tensor = self.embedding(texts)
        return embedded + self.pos[:, : texts.shape[1]]

    def pooled_rows(self, texts: Tensor) -> Tensor:
        """Return which token of each text (N, length) is pooled: (N,)."""
        if self.config.pooling == "last":
            return torch.full((len(texts),), texts.shape[1] - 1, device=texts.device)
        if self.config.eot is None:
            return texts.argmax(-1)
        return (texts == self.config.eot).int().argmax(-1)

    def head(self, tokens: Tensor, rows: Tensor, perturb: Perturb | None = None) -> Tensor:
        """Pool and project the tokens after the last block to features (N, embed_dim), float32.

        Parameters
        ----------
        tokens
            (N, length, width).
        rows
            From `pooled_rows`.
        perturb
            Called at the projection.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), rows].float()
            x: Tensor = self.proj(self.post_norm(pooled[:, None]))
            return through(self.proj_sites, x, perturb)[:, 0].float()

    def forward(self, texts: Tensor, perturb: Perturb | None = None) -> Tensor:
        """Compute features (N, embed_dim) of token numbers (N, length)."""
        tokens = self.run(self.embed(texts), 0, self.depth, perturb)
        return self.head(tokens, self.pooled_rows(texts), perturb)
