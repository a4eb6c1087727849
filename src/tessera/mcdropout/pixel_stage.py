"""The stage that decodes and preprocesses every image once, and the pixels it leaves for the trials."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpc.job import Arrays, Map, Results, Unit
from tessera.mcdropout.preprocess import Preprocess, normalise
from tessera.mcdropout.stages import Ready

if TYPE_CHECKING:
    from hpc.context import Context

PIXELS = "pixels"
BLOCK = 64


class PixelStage(Map):
    """Temporary form: levels in the results of the stage."""

    name = PIXELS

    def __init__(self, job: Ready) -> None:
        self._job = job

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List blocks of images under every transform."""
        number = len(self._job.subject.paths)
        return [Unit(f"{key}/{first:07d}") for key in transforms(self._job) for first in range(0, number, BLOCK)]

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Decode one block."""
        key, _, first = unit.key.rpartition("/")
        how = transforms(self._job)[key]
        paths = self._job.subject.paths[int(first) : int(first) + BLOCK]
        with ThreadPoolExecutor(ctx.threads) as pool:
            found = list(pool.map(lambda p: _levels(p, how), paths))
        levels = np.stack([np.zeros((3, how.size, how.size), np.uint8) if isinstance(f, str) else f for f in found])
        reasons = np.array([f if isinstance(f, str) else "" for f in found])
        return {"levels": levels, "reasons": reasons}

    def merge(self, results: Results, ctx: Context) -> None:
        """Nothing."""


def _levels(path: str, how: Preprocess) -> NDArray[np.uint8] | str:
    try:
        with Image.open(path) as image:
            return how.levels(image)
    except OSError as error:
        return str(error)


def transforms(job: Ready) -> dict[str, Preprocess]:
    found = {}
    for model in job.subject.models:
        how = job.bench.architecture(model).preprocess
        found[how.key()] = how
    return found


def bad_images(job: Ready, ctx: Context) -> dict[int, str]:
    found = {}
    for key, arrays in ctx.results(PIXELS).items():
        first = int(key.rpartition("/")[2])
        found.update({first + i: str(r) for i, r in enumerate(arrays["reasons"]) if r})
    return found


def read_pixels(job: Ready, model: str, images: NDArray[np.int64], ctx: Context) -> Tensor:
    how = job.bench.architecture(model).preprocess
    levels = [ctx.results(PIXELS)[f"{how.key()}/{i // BLOCK * BLOCK:07d}"]["levels"][i % BLOCK] for i in images]
    return normalise(torch.from_numpy(np.stack(levels)), torch.from_numpy(how.table()))
