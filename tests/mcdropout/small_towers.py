"""Small towers with random weights, and inputs for them."""

from __future__ import annotations

import numpy as np
import torch

from tessera.mcdropout.text import TextConfig, TextTower
from tessera.mcdropout.towers import TowerConfig, VisionTower, initialise

SIDE = 32


def clip(layout: str = "hf", *, layers: int = 4, width: int = 48) -> VisionTower:
    config = TowerConfig(
        family="clip",
        layout=layout,
        width=width,
        layers=layers,
        heads=4,
        mlp=3 * width,
        patch=8,
        image_size=SIDE,
        embed_dim=24,
        activation="quick_gelu",
        eps=1e-5,
        pooling="cls",
        pool_heads=4,
        class_token=True,
        pre_norm=True,
        patch_bias=False,
        rotary=False,
        projection="linear",
    )
    return filled(VisionTower(config))


def siglip(layout: str = "hf", *, layers: int = 2) -> VisionTower:
    config = TowerConfig(
        family="siglip",
        layout=layout,
        width=48,
        layers=layers,
        heads=4,
        mlp=96,
        patch=8,
        image_size=SIDE,
        embed_dim=48,
        activation="gelu_tanh",
        eps=1e-6,
        pooling="map",
        pool_heads=4,
        class_token=False,
        pre_norm=False,
        patch_bias=True,
        rotary=False,
        projection="none",
    )
    return filled(VisionTower(config))


def filled(tower):
    initialise(tower, 1)
    return tower.eval()


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def numbers(count: int) -> np.ndarray:
    """Image numbers with gaps, so that a place in a batch cannot pass for one."""
    return 5 + 3 * np.arange(count)


def text() -> TextTower:
    config = TextConfig(
        layout="hf",
        width=48,
        layers=3,
        heads=4,
        mlp=96,
        context=12,
        vocabulary=60,
        embed_dim=24,
        activation="quick_gelu",
        eps=1e-5,
        causal=True,
        pooling="eot",
        eot=59,
        projection_bias=False,
    )
    return filled(TextTower(config))
