"""What the trial engine asks of a tower, the same for images and texts."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from tessera.mcdropout.sites import Perturb
from tessera.mcdropout.text import TextTower
from tessera.mcdropout.towers import Tower, VisionTower


class Encoder(Protocol):
    """A tower in four steps: embed, enter at the first perturbed site, resume from there, pool and project."""

    @property
    def tower(self) -> Tower:
        """The blocks."""

    def embed(self, inputs: Tensor, perturb: Perturb | None) -> Tensor:
        """Return the tokens before block 0."""

    def pooled(self, inputs: Tensor) -> Tensor | None:
        """Return which token of each input is pooled (N,), if that depends on the input."""

    def head(self, tokens: Tensor, pooled: Tensor | None, perturb: Perturb | None) -> Tensor:
        """Return the features (N, D), float32."""


class ImageEncoder:
    """An encoder of pixels (N, 3, H, W)."""

    def __init__(self, tower: VisionTower) -> None:
        self.tower: Tower = tower
        self._vision = tower

    def embed(self, inputs: Tensor, perturb: Perturb | None) -> Tensor:
        """Return the tokens before block 0."""
        return self._vision.embed(inputs, perturb)

    def pooled(self, inputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """All images are pooled alike."""
        return None

    def head(self, tokens: Tensor, pooled: Tensor | None, perturb: Perturb | None) -> Tensor:  # noqa: ARG002
        """Return the features (N, D), float32."""
        return self._vision.head(tokens, perturb)


class TextEncoder:
    """An encoder of token numbers (N, length)."""

    def __init__(self, tower: TextTower) -> None:
        self.tower: Tower = tower
        self._text = tower

    def embed(self, inputs: Tensor, perturb: Perturb | None) -> Tensor:  # noqa: ARG002
        """Return the tokens before block 0; no site lies there."""
        return self._text.embed(inputs)

    def pooled(self, inputs: Tensor) -> Tensor | None:
        """Return which token ends each text."""
        return self._text.pooled_rows(inputs)

    def head(self, tokens: Tensor, pooled: Tensor | None, perturb: Perturb | None) -> Tensor:
        """Return the features (N, D), float32."""
        return self._text.head(tokens, cast("Tensor", pooled), perturb)


def encoder_of(tower: nn.Module) -> Encoder:
    """Return a tower as the engine sees it.

    Raises
    ------
    TypeError
        It is no tower.
    """
    if isinstance(tower, VisionTower):
        return ImageEncoder(tower)
    if isinstance(tower, TextTower):
        return TextEncoder(tower)
    msg = f"a VisionTower or a TextTower is wanted, not {type(tower).__name__}"
    raise TypeError(msg)
