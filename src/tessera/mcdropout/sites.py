"""Where a perturbation may act: one record for each place in a tower, in the order of the forward pass.

The id of a site does not depend on the layout of the weights: ``blocks.09.mlp.fc2`` is the same place in a Hugging
Face, an OpenCLIP and a timm tower, so that one recipe is the same estimator in all three.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Layout: TypeAlias = Literal["hf", "open_clip", "timm"]
"""Whose implementation the weights come from: transformers, OpenCLIP's own or timm's vision transformer."""

Kind: TypeAlias = Literal["attention", "mlp", "stochastic_depth", "projection", "preexisting", "packed"]


@dataclass(frozen=True, slots=True)
class Site:
    """One place whose activations may be perturbed.

    Attributes
    ----------
    index
        Position in the order of the forward pass, from 0.
    id
        Name, the same for every layout of weights; block numbers have at least two digits.
    kind
        ``attention`` and ``mlp``: outputs of linear layers of blocks and of the attention pool; ``projection``: the
        last linear layer; ``stochastic_depth``: a residual branch before it is added; ``preexisting``: where the
        original implementation has a dropout of its own, idle in evaluation; ``packed``: several linear layers that
        the original computes as one (q, k and v), before they are taken apart: only to reproduce the original's draws.
    block
        Number of the block; -1 before the first, the number of blocks after the last.
    shape
        ``(tokens, width)`` of the activations of one image. Where only the class token is computed (see
        `towers.Tower.run`), the tensor at hand holds the first of these tokens.
    """

    index: int
    id: str
    kind: Kind
    block: int
    shape: tuple[int, int]


Perturb: TypeAlias = Callable[[Site, Tensor], Tensor]
"""Called on the activations (N, tokens, width) of every site that is passed; returns them, perturbed or untouched.

It must not write into its argument, which may be a view of a larger tensor."""


class SiteList:
    """Numbers the sites of a tower while it is built, in the order of the forward pass."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._sites: list[Site] = []

    def add(self, name: str, kind: Kind, block: int, shape: tuple[int, int]) -> Site:
        """Append a site and return it."""
        site = Site(len(self._sites), f"{self._prefix}{name}", kind, block, shape)
        self._sites.append(site)
        return site

    def all(self) -> tuple[Site, ...]:
        """Return the sites so far."""
        return tuple(self._sites)


# The modules of class Linear under the image encoder that a forward pass really calls. Not among them: projections that
# torch's MultiheadAttention reads without calling them, and what lies outside the encoder (CLIP's projections).
_WRAPPED = {
    "hf": re.compile(r"blocks\.\d+\.(attn\.(q|k|v|out)|mlp\.fc[12])|pool\.mlp\.fc[12]"),
    "open_clip": re.compile(r"blocks\.\d+\.mlp\.fc[12]"),
    "timm": re.compile(r"blocks\.\d+\.(attn\.(qkv|out)|mlp\.fc[12])|pool\.(attn\.(q|kv|out)|mlp\.fc[12])|head\.proj"),
}


def wrapped_by_original(layout: Layout, sites: Iterable[Site]) -> tuple[Site, ...]:
    """Return the sites that mcdo-vlm-uncertainty's uniform dropout reaches, in the order in which it draws.

    Its ``LinearDropoutWrapper`` replaces every Linear of the image encoder, and ``set_dropout_mode`` switches on every
    dropout that is there already: another estimator in each layout of one and the same model.
    """
    pattern = _WRAPPED[layout]
    return tuple(site for site in sites if site.kind == "preexisting" or pattern.fullmatch(site.id))
