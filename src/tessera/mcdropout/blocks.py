"""The transformer block of all towers, with every site named and every linear layer a place to enter or leave.

Pre-norm residual block of ViT (Dosovitskiy et al. 2021, arXiv:2010.11929): ``x + attn(norm(x))``, ``x + mlp(norm(x))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from tessera.mcdropout.sites import Perturb, Site, SiteList

Activation: TypeAlias = Literal["gelu", "gelu_tanh", "quick_gelu"]
Point: TypeAlias = Literal["start", "qkv", "out", "fc1", "fc2"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply GELU: exact, its tanh form, or ``x sigmoid(1.702 x)`` of the OpenAI weights (arXiv:1606.08415)."""
    if activation == "quick_gelu":
        scaled = 1.702 * x
        # Without gradients the same bits in one piece of memory instead of three: half the time.
        return x * torch.sigmoid(scaled) if torch.is_grad_enabled() else scaled.sigmoid_().mul_(x)
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a block and how it computes.

    Attributes
    ----------
    tokens, width, heads, mlp
        Sequence length, residual width, attention heads, hidden width of the MLP.
    activation
        Of the MLP.
    eps
        Of the layer norms.
    causal
        A token sees only those before it (CLIP's text tower).
    own_dropouts
        The original implementation has dropouts of its own here (timm): they become sites of kind ``preexisting``.
    """

    tokens: int
    width: int
    heads: int
    mlp: int
    activation: Activation
    eps: float
    causal: bool = False
    own_dropouts: bool = False


@dataclass(frozen=True)
class Entry:
    """A state inside a tower from which the forward pass goes on.

    Attributes
    ----------
    block
        The block it lies in; the number of blocks means: after the last one.
    point
        ``start``: before the block. Else the linear layer whose output, before any perturbation, is in `hidden`.
    residual
        The residual stream (N, tokens, width) that `hidden` will be added to.
    hidden
        Output of the linear layer `point`; None at ``start``.
    """

    block: int
    point: Point
    residual: Tensor
    hidden: Tensor | None = None

    def take(self, images: Tensor) -> Entry:
        """Return the state of some images, by their indices; one may come several times."""
        hidden = None if self.hidden is None else self.hidden[images]
        return Entry(self.block, self.point, self.residual[images], hidden)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, shape: BlockShape, sites: SiteList, name: str, block: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.width, shape.mlp)
        self.fc2 = nn.Linear(shape.mlp, shape.width)
        self.activation = shape.activation
        inner, outer = (shape.tokens, shape.mlp), (shape.tokens, shape.width)
        self.fc1_sites = [sites.add(f"{name}.fc1", "mlp", block, inner)]
        self.drop_sites = [sites.add(f"{name}.drop1", "preexisting", block, inner)] if shape.own_dropouts else []
        self.fc2_sites = [sites.add(f"{name}.fc2", "mlp", block, outer)]
        if shape.own_dropouts:
            self.fc2_sites.append(sites.add(f"{name}.drop2", "preexisting", block, outer))

    def forward(self, x: Tensor, perturb: Perturb | None) -> Tensor:
        """Map (N, tokens, width) to the same shape."""
        return self.after_fc2(self.fc2(self.after_fc1(self.fc1(x), perturb)), perturb)

    def after_fc1(self, hidden: Tensor, perturb: Perturb | None) -> Tensor:
        """Go on from the output of fc1 to the input of fc2."""
        hidden = activate(through(self.fc1_sites, hidden, perturb), self.activation)
        return through(self.drop_sites, hidden, perturb)

    def after_fc2(self, hidden: Tensor, perturb: Perturb | None) -> Tensor:
        """Go on from the output of fc2 to that of the MLP."""
        return through(self.fc2_sites, hidden, perturb)


def through(sites: list[Site], x: Tensor, perturb: Perturb | None) -> Tensor:
    """Show the activations to the perturbation, once for each site."""
    if perturb is not None:
        for site in sites:
            x = perturb(site, x)
    return x


class Attention(nn.Module):
    """Multi-head self-attention with q, k and v from one matrix product."""

    def __init__(self, shape: BlockShape, sites: SiteList, name: str, block: int) -> None:
        super().__init__()
        self.heads, self.causal = shape.heads, shape.causal
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        one = (shape.tokens, shape.width)
        self.packed_site = sites.add(f"{name}.qkv", "packed", block, (shape.tokens, 3 * shape.width))
        self.qkv_sites = [sites.add(f"{name}.{part}", "attention", block, one) for part in "qkv"]
        self.out_sites = [sites.add(f"{name}.out", "attention", block, one)]
        if shape.own_dropouts:
            self.out_sites.append(sites.add(f"{name}.proj_drop", "preexisting", block, one))

    def after_qkv(self, qkv: Tensor, perturb: Perturb | None, rotary: Tensor | None, queries: int) -> Tensor:
        """Go on from the packed q, k, v (N, tokens, 3 width) to what the output projection sees (N, queries, width)."""
        if queries == qkv.shape[1]:
            qkv = through([self.packed_site], qkv, perturb)
        q, k, v = qkv.chunk(3, -1)
        return self.attend(q[:, :queries], k, v, perturb, rotary)

    def from_first_token(self, x: Tensor, perturb: Perturb | None, rotary: Tensor | None) -> Tensor:
        """Attend from the first token only: (N, tokens, width) to (N, 1, width)."""
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = functional.linear(x[:, :1], weight[:width], bias[:width])
        k, v = functional.linear(x, weight[width:], bias[width:]).chunk(2, -1)
        return self.attend(q, k, v, perturb, rotary)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, perturb: Perturb | None, rotary: Tensor | None) -> Tensor:
        """Perturb q, k and v, and attend."""
        parts = [through([site], x, perturb) for site, x in zip(self.qkv_sites, (q, k, v), strict=True)]
        q, k, v = (split_heads(x, self.heads) for x in parts)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return join_heads(functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (N, tokens, width) to (N, heads, tokens, width / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`."""
    return x.transpose(1, 2).flatten(-2)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels by the angle of their token (arXiv:2104.09864).

    Parameters
    ----------
    x
        (N, heads, tokens, channels); a shorter sequence than the table's is its beginning.
    rotary
        (2, tokens, channels): sine and cosine; 0 and 1 for tokens that are not rotated.
    """
    sine, cosine = rotary[:, : x.shape[-2]].unbind()
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return (x * cosine + turned * sine).to(x.dtype)


class Block(nn.Module):
    """One pre-norm residual block."""

    def __init__(self, shape: BlockShape, sites: SiteList, number: int) -> None:
        super().__init__()
        name, full = f"blocks.{number:02d}", (shape.tokens, shape.width)
        self.number = number
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.attn = Attention(shape, sites, f"{name}.attn", number)
        self.attn_branch = sites.add(f"{name}.drop_path.attn", "stochastic_depth", number, full)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.mlp = Mlp(shape, sites, f"{name}.mlp", number)
        self.mlp_branch = sites.add(f"{name}.drop_path.mlp", "stochastic_depth", number, full)

    def forward(
        self, x: Tensor, perturb: Perturb | None, rotary: Tensor | None = None, *, first_token_only: bool = False
    ) -> Tensor:
        """Run the block on (N, tokens, width); of the result only the first token (N, 1, width) where asked for."""
        if first_token_only:
            attended = self.attn.from_first_token(self.norm1(x), perturb, rotary)
            return self._after_out(x[:, :1], self.attn.out(attended), perturb)
        return self._after_qkv(x, self.attn.qkv(self.norm1(x)), perturb, rotary, x.shape[1])

    def enter(self, x: Tensor, point: Point, rotary: Tensor | None = None, *, first_token_only: bool = False) -> Entry:
        """Run the block without perturbation up to the output of one linear layer."""
        if point == "start":
            return Entry(self.number, point, x)
        hidden = self.attn.qkv(self.norm1(x))
        if point == "qkv":
            return Entry(self.number, point, x, hidden)
        queries = 1 if first_token_only else x.shape[1]
        hidden, x = self.attn.out(self.attn.after_qkv(hidden, None, rotary, queries)), x[:, :queries]
        if point == "out":
            return Entry(self.number, point, x, hidden)
        x = x + hidden
        hidden = self.mlp.fc1(self.norm2(x))
        if point == "fc2":
            hidden = self.mlp.fc2(self.mlp.after_fc1(hidden, None))
        return Entry(self.number, point, x, hidden)

    def resume(
        self, entry: Entry, perturb: Perturb | None, rotary: Tensor | None = None, *, first_token_only: bool = False
    ) -> Tensor:
        """Run the rest of the block from a state inside it."""
        x, hidden = entry.residual, entry.hidden
        if hidden is None:
            return self.forward(x, perturb, rotary, first_token_only=first_token_only)
        queries = 1 if first_token_only else x.shape[1]
        if entry.point == "qkv":
            return self._after_qkv(x, hidden, perturb, rotary, queries)
        after = {"out": self._after_out, "fc1": self._after_fc1, "fc2": self._after_fc2}[entry.point]
        return after(x[:, :queries], hidden[:, :queries], perturb)

    def _after_qkv(
        self, x: Tensor, hidden: Tensor, perturb: Perturb | None, rotary: Tensor | None, queries: int
    ) -> Tensor:
        attended = self.attn.after_qkv(hidden, perturb, rotary, queries)
        return self._after_out(x[:, :queries], self.attn.out(attended), perturb)

    def _after_out(self, x: Tensor, hidden: Tensor, perturb: Perturb | None) -> Tensor:
        x = x + through([*self.attn.out_sites, self.attn_branch], hidden, perturb)
        return self._after_fc1(x, self.mlp.fc1(self.norm2(x)), perturb)

    def _after_fc1(self, x: Tensor, hidden: Tensor, perturb: Perturb | None) -> Tensor:
        return self._after_fc2(x, self.mlp.fc2(self.mlp.after_fc1(hidden, perturb)), perturb)

    def _after_fc2(self, x: Tensor, hidden: Tensor, perturb: Perturb | None) -> Tensor:
        return x + through([self.mlp_branch], self.mlp.after_fc2(hidden, perturb), perturb)
