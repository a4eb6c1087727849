"""From a picture to what a model sees, bit for bit as the model's own implementation does it, with Pillow and numpy.

The resized picture is kept as 8-bit levels: the normalised float is a function of level and channel alone (768
numbers), so a cache of levels is four times smaller and gives the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tessera.mcdropout.errors import ImageError, WeightsError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
_LONGEST = 100_000
"""Pixels: a picture of 224 rows as long as this takes 67 MB while it is cut."""
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PILLOW_NUMBERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the input of a model.

    Attributes
    ----------
    size
        Side of the square that the model sees, in pixels.
    mode
        ``crop``: the shortest side becomes `size`, then the centre is cut out; ``squash``: both sides become `size`.
    interpolation
        Filter of the resizing (Pillow's, with antialiasing).
    mean, std
        Of each channel, for levels scaled to 0 … 1.
    odd_crop
        Where the cut begins if an odd number of pixels is to go: torchvision rounds the half to even, transformers
        rounds it down. One pixel apart on every second such picture.
    """

    size: int
    mode: Literal["crop", "squash"]
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    odd_crop: Literal["even", "down"]

    def record(self) -> dict[str, Any]:
        """Return the fields, for the results and the cache."""
        return asdict(self)

    def key(self) -> str:
        """Return 16 hexadecimal digits that change with every field."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]

    def levels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and cut a picture of mode RGB: levels 0 … 255 of shape (3, size, size).

        Raises
        ------
        ImageError
            If the picture is so elongated that it would be gigantic before it is cut.
        """
        if self.mode == "squash":
            image = image.resize((self.size, self.size), _FILTERS[self.interpolation])
        else:
            image = self._cut(image.resize(self._shortest_to_size(*image.size), _FILTERS[self.interpolation]))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def table(self) -> NDArray[np.float32]:
        """Return the normalised value of every level, (3, 256).

        In float32, ``(level / 255 - mean) / std``: what torchvision's ToTensor and Normalize compute.
        """
        scaled = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = np.asarray(self.mean, np.float32)[:, None], np.asarray(self.std, np.float32)[:, None]
        return (scaled - mean) / std

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the input of the model for one picture of mode RGB: (3, size, size)."""
        levels, table = self.levels(image), self.table()
        return np.stack([row[channel] for row, channel in zip(table, levels, strict=True)])

    def _shortest_to_size(self, width: int, height: int) -> tuple[int, int]:
        long = int(self.size * max(width, height) / min(width, height))
        if long > _LONGEST:
            msg = f"{width}x{height} pixels would become {long} along the longer side before the cut; crop the picture"
            raise ImageError(msg)
        return (self.size, long) if width <= height else (long, self.size)

    def _cut(self, image: Image.Image) -> Image.Image:
        spare = (image.width - self.size, image.height - self.size)
        left, top = (round(n / 2) if self.odd_crop == "even" else n // 2 for n in spare)
        return image.crop((left, top, left + self.size, top + self.size))


def normalise(levels: Tensor, table: Tensor) -> Tensor:
    """Turn levels (N, 3, H, W), uint8, into the model's input, float32, on the device where both lie.

    Parameters
    ----------
    levels
        From `Preprocess.levels`.
    table
        From `Preprocess.table`, on the same device. A look-up and no arithmetic: the same bits on every device.
    """
    channels = [table[c].index_select(0, levels[:, c].flatten().int()).view_as(levels[:, c]) for c in range(3)]
    return torch.stack(channels, 1)


def from_hugging_face(config: Mapping[str, Any], where: str) -> Preprocess:
    """Read a ``preprocessor_config.json`` of CLIP or SigLIP.

    Raises
    ------
    WeightsError
        If it asks for something that is not one of the two known ways to resize.
    """
    size, crop = config.get("size"), config.get("crop_size")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    cropped = bool(config.get("do_center_crop", "CLIP" in kind))
    side = _side(size, where, "size")
    if cropped and crop is not None and _side(crop, where, "crop_size") != side:
        msg = f"{where}: crop_size {crop} differs from size {size}; only cutting at the resized shortest side is known"
        raise WeightsError(msg)
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if not config.get(step, True)]
    if off:
        msg = f"{where}: {', '.join(off)} is off, and with it this is not the preprocessing of CLIP or SigLIP"
        raise WeightsError(msg)
    if abs(float(config.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-9:
        msg = f"{where}: rescale_factor is {config['rescale_factor']}, and only 1/255 is known"
        raise WeightsError(msg)
    number = config.get("resample", 3 if cropped else 2)
    if number not in _PILLOW_NUMBERS:
        msg = f"{where}: resample is {number}, and only 2 (bilinear) and 3 (bicubic) are known"
        raise WeightsError(msg)
    half = (0.5, 0.5, 0.5)
    return Preprocess(
        side,
        "crop" if cropped else "squash",
        _PILLOW_NUMBERS[number],
        _triple(config.get("image_mean", OPENAI_MEAN if cropped else half)),
        _triple(config.get("image_std", OPENAI_STD if cropped else half)),
        "down",
    )


def from_open_clip(config: Mapping[str, Any], image_size: int, where: str) -> Preprocess:
    """Read the ``preprocess_cfg`` of an ``open_clip_config.json``; what it leaves out is OpenCLIP's default.

    Raises
    ------
    WeightsError
        If it asks for a way to resize that is not known.
    """
    mode = config.get("resize_mode") or "shortest"
    interpolation: Interpolation = config.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash") or interpolation not in _FILTERS:
        msg = (
            f"{where}: resize_mode {mode!r} with interpolation {interpolation!r} is not known; "
            "known are shortest and squash with bilinear or bicubic"
        )
        raise WeightsError(msg)
    size = config.get("size", image_size)
    side = size if isinstance(size, int) else size[-1]
    mean, std = config.get("mean") or OPENAI_MEAN, config.get("std") or OPENAI_STD
    kind: Literal["crop", "squash"] = "squash" if mode == "squash" else "crop"
    return Preprocess(side, kind, interpolation, _triple(mean), _triple(std), "even")


def _side(size: Any, where: str, name: str) -> int:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        if size.get("height") == size.get("width") and "height" in size:
            return int(size["height"])
    msg = f"{where}: {name} is {size!r}; expected a number, a shortest_edge, or equal height and width"
    raise WeightsError(msg)


def _triple(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in ([values] * 3 if isinstance(values, (int, float)) else values))
    return r, g, b
