"""What happens at a perturbed site: the callables that towers call on their activations.

Three ways to draw: from counter-based masks on the host (`SparseDraws`) or on the device (`DenseDraws`), and from
torch's global stream in the order of the original's calls (`TorchDraws`). All may work in place on what they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tessera.mcdropout.errors import SiteError
from tessera.mcdropout.masks import (
    WORD,
    DeviceKeys,
    Pairs,
    dense_kept,
    dense_normal,
    dense_words,
    dropped_elements,
    host_normal,
)
from tessera.mcdropout.recipes import Schedule, Strength
from tessera.mcdropout.sites import Site

_BLOCK_KEYS = 1 << 31
"""Where the keys of whole blocks begin, behind those of all sites."""


class SparseDraws:
    """Perturb with masks drawn on the host in the sparse form.

    Parameters
    ----------
    schedule
        What to do where.
    pairs
        Keys of the micro-batch.
    """

    def __init__(self, schedule: Schedule, pairs: Pairs) -> None:
        self.schedule = schedule
        self.pairs = pairs
        self.keys = DeviceKeys.of(pairs, torch.device("cpu"))

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """Perturb the activations (B, tokens, width) of a site."""
        strength = self.schedule.active.get(site.id)
        if strength is None:
            return x
        if site.kind == "stochastic_depth":
            return x.mul_(kept_branches(self.keys, site, strength.magnitude).to(x))
        count = x[0].numel()
        if strength.action == "dropout":
            dropped = dropped_elements(self.pairs, site.index, count, strength.magnitude)
            return drop(x, torch.from_numpy(dropped).to(x.device, non_blocking=True), strength.magnitude)
        noise = torch.from_numpy(host_normal(self.pairs, site.index, count)).to(x.device).view(x.shape)
        return add_noise(site, x, noise, strength)


class DenseDraws:
    """Perturb with masks drawn where the activations are, in a form that compiles into one graph.

    Parameters
    ----------
    schedule
        What to do where.
    keys
        Keys of the micro-batch, on the device.
    """

    def __init__(self, schedule: Schedule, keys: DeviceKeys) -> None:
        self.schedule = schedule
        self.keys = keys

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """Perturb the activations (B, tokens, width) of a site."""
        strength = self.schedule.active.get(site.id)
        if strength is None:
            return x
        if site.kind == "stochastic_depth":
            return x * kept_branches(self.keys, site, strength.magnitude).to(x)
        count = x.shape[1] * x.shape[2]
        if strength.action == "dropout":
            kept = dense_kept(self.keys, site.index, count, strength.magnitude).view(x.shape)
            return torch.where(kept, x * (1 / (1 - strength.magnitude)), 0)
        return add_noise(site, x, dense_normal(self.keys, site.index, count).view(x.shape), strength)


class TorchDraws:
    """Perturb with torch's global stream, call for call as the original does.

    Seed it with `torch.manual_seed` before a trial. The draws depend on the batch, on the order of the calls and on the
    device. Noise of the ``gaussian`` action scales with the standard deviation over the *whole batch*, and a skipped
    block is skipped for all images of a batch, both as in the original.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._skipped: dict[int, bool] = {}

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """Perturb the activations (B, tokens, width) of a site."""
        strength = self.schedule.active.get(site.id)
        if strength is None:
            return x
        if site.kind == "stochastic_depth":
            # One draw for a block: its second branch takes what the first one drew.
            skipped = self._skipped.pop(site.block, None)
            if skipped is None:
                self._skipped[site.block] = skipped = torch.rand(1).item() < strength.magnitude
            return torch.zeros_like(x) if skipped else x
        # A slice of a packed product has other strides than the original's tensor, and strides order the draws.
        x = x.contiguous()
        if strength.action == "dropout":
            return functional.dropout(x, strength.magnitude, training=True)
        if strength.action == "gaussian":
            spread = strength.magnitude * x.std().clamp(min=1e-12)
            return x + torch.randn_like(x) * spread
        return x * (1.0 + torch.randn_like(x) * strength.magnitude)


class Watch:
    """Remember which sites are passed, and leave the activations as they are."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """Note the site."""
        self.shapes[site.id] = tuple(x.shape[1:])
        return x

    def check(self, schedule: Schedule) -> None:
        """Compare with what is to be perturbed.

        Raises
        ------
        SiteError
            A site that is to be perturbed was not passed, or had another shape than it declares.
        """
        silent = [name for name in schedule.active if name not in self.shapes]
        if silent:
            msg = (
                f"{len(silent)} of {len(schedule.active)} requested sites never fire: {', '.join(silent[:8])}; "
                "their perturbation would do nothing, so leave them out"
            )
            raise SiteError(msg)
        for site, _ in schedule.requested:
            shape = self.shapes.get(site.id, site.shape)
            if shape not in (site.shape, (1, site.shape[1])):
                msg = f"site {site.id} has activations of shape {shape} and declares {site.shape}; correct the tower"
                raise SiteError(msg)


def drop(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    """Zero the dropped elements and rescale the others, in place where the memory allows.

    Parameters
    ----------
    x
        (B, tokens, width).
    dropped
        int64, places in the row-major order of `x`.
    p
        Probability: what is kept is multiplied by 1 / (1 - p).
    """
    if not x.is_contiguous():
        if x.stride(2) != 1 or x.stride(0) < x.shape[2] or x.stride(1) < x.shape[2]:
            x = x.contiguous()
        else:
            dropped = _strided(x, dropped)
    x.mul_(1 / (1 - p))
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    x.as_strided((span,), (1,)).index_fill_(0, dropped, 0)
    return x


def _strided(x: Tensor, places: Tensor) -> Tensor:
    """Turn places in row-major order into offsets in the memory of a slice."""
    rows = torch.div(places, x.shape[2], rounding_mode="floor")
    images = torch.div(rows, x.shape[1], rounding_mode="floor")
    return (
        images * x.stride(0) + (rows - images * x.shape[1]) * x.stride(1) + (places - rows * x.shape[2]) * x.stride(2)
    )


def add_noise(site: Site, x: Tensor, noise: Tensor, strength: Strength) -> Tensor:
    """Apply normal noise; the standard deviation of ``gaussian`` is that of the image, so no batch shows in it."""
    if strength.action == "scale":
        return x * (1 + strength.magnitude * noise).to(x.dtype)
    if x.shape[1] != site.shape[0]:
        msg = f"site {site.id}: the noise scales with all {site.shape[0]} tokens, and {x.shape[1]} are at hand"
        raise SiteError(msg)
    spread = x.float().flatten(1).std(1).clamp(min=1e-12)[:, None, None]
    return x + (strength.magnitude * spread * noise).to(x.dtype)


def kept_branches(keys: DeviceKeys, site: Site, p: float) -> Tensor:
    """Draw for each image whether its residual branch is kept: (B, 1, 1) bool; both branches of a block agree."""
    word = dense_words(keys, _BLOCK_KEYS + site.block, 1)[0]
    return (word >= round(p * WORD))[:, :, None]


def first_token_exact(schedule: Schedule, depth: int) -> bool:
    """Say whether the last of `depth` blocks may be computed for the class token alone with the same perturbation.

    Noise that scales with the standard deviation over all tokens needs all of them, and ``packed`` sites of that block
    would not be passed.
    """
    return all(
        site.kind != "packed" and strength.action != "gaussian"
        for site, strength in schedule.requested
        if site.block == depth - 1 and site.id in schedule.active
    )
