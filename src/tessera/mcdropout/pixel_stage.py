"""The stage that decodes and preprocesses every image once, and the pixels it leaves for the trials."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc.errors import InputError
from hpc.job import Arrays, Map, Results, Unit
from tessera.mcdropout import device as devices
from tessera.mcdropout import pixels
from tessera.mcdropout.errors import DeviceError, ImageError
from tessera.mcdropout.pixel_plan import PixelPlan
from tessera.mcdropout.pixels import Block, PixelCache
from tessera.mcdropout.preprocess import Preprocess, normalise

if TYPE_CHECKING:
    from hpc.context import Context
    from tessera.mcdropout.options import PixelOptions

PIXELS: Final = "pixels"
_IMAGES_IN_UNIT: Final = 64
_DEVICE_SHARE: Final = 0.5
"""Of the free memory of a GPU that the pixels may take."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transform:
    """A preprocessing that models of the run need; ``key`` names its cache, ``stored`` says where it is."""

    plan: PixelPlan
    key: str
    stored: str


class PixelBook:
    """The pixels of all images under all transforms of a run, on one rank.

    Parameters
    ----------
    transforms
        By the key of the preprocessing.
    device
        Of the engines.
    on_device
        ``auto``: on a GPU where there is room; ``device``: or it is an error; else never.
    """

    def __init__(self, transforms: dict[str, Transform], device: torch.device, on_device: str) -> None:
        self.transforms = transforms
        self._device, self._on_device = device, on_device
        self.caches: dict[str, PixelCache] = {}
        self._tables: dict[str, tuple[Tensor | None, Tensor]] = {}

    def cache(self, key: str) -> PixelCache:
        """Return the finished pixels of a transform.

        Raises
        ------
        ImageError
            If they are damaged.
        """
        if key not in self.caches:
            found = pixels.open_cache(self.transforms[key].plan, self.transforms[key].key)
            if found is None:
                path = self.transforms[key].plan.file(self.transforms[key].key)
                msg = f"the pixel cache {path} is gone since it was built; put it back, or start the run anew"
                raise ImageError(msg)
            self.caches[key] = found
        return self.caches[key]

    def bad_images(self) -> dict[int, str]:
        """By number of the image: why it takes no part; the same for all transforms."""
        cache = self.cache(min(self.transforms))
        return {int(i): cache.remarks[int(i)] for i in np.flatnonzero(cache.status > pixels.ODD)}

    def read(self, key: str, images: NDArray[np.int64]) -> Tensor:
        """Return the pixels of some images, shape (N, 3, H, W), normalised, on the device if they are kept there."""
        whole, table = self._placed(key)
        if whole is not None:
            return normalise(whole[torch.from_numpy(images).to(whole.device)], table)
        return normalise(torch.from_numpy(self.cache(key).levels[images]), table)

    def _placed(self, key: str) -> tuple[Tensor | None, Tensor]:
        """Copy the levels to the GPU if they fit there, once."""
        if key not in self._tables:
            cache = self.cache(key)
            table = torch.from_numpy(cache.preprocess.table())
            whole = None
            if (
                self._device.type == "cuda"
                and self._on_device in ("auto", "device")
                and self._fits(cache.levels.nbytes)
            ):
                whole, table = torch.from_numpy(np.array(cache.levels)).to(self._device), table.to(self._device)
            self._tables[key] = whole, table
        return self._tables[key]

    def _fits(self, needed: int) -> bool:
        free = devices.free_bytes(self._device) or 0
        if needed <= _DEVICE_SHARE * free:
            return True
        text = f"the pixels need {needed / 1e9:.2f} GB and {self._device} has {free / 1e9:.2f} GB free"
        if self._on_device == "device":
            msg = f"{text}, of which they may take half; use job.pixels.store=auto"
            raise DeviceError(msg)
        _log.warning("%s: they stay in host memory and are copied block by block", text)
        return False


def plan_pixels(
    paths: Sequence[str], preprocess: Sequence[Preprocess], options: PixelOptions, ctx: Context
) -> dict[str, Transform]:
    """Decide where the pixels of each transform are kept. Rank 0.

    Parameters
    ----------
    paths
        The images.
    preprocess
        What the models need; the same one may come several times.
    options
        Of the job.
    ctx
        Names the run directory.

    Returns
    -------
    dict
        By the key of the preprocessing; where there is no room on disk, ``stored`` is ``memory``.
    """
    folder = options.cache or ctx.results_dir.parent / "pixels"
    token = hashlib.sha256(str(ctx.results_dir).encode()).hexdigest()[:12]
    images = tuple(Path(p) for p in paths)
    found = {}
    for how in {p.key(): p for p in preprocess}.values():
        plan = PixelPlan(images, how, folder, token, options.on_bad, options.odd)
        found[how.key()] = Transform(plan, plan.key(), _where(plan, options, ctx))
    return found


def _where(plan: PixelPlan, options: PixelOptions, ctx: Context) -> str:
    key = plan.key()
    if options.store == "host":
        return "memory"
    if plan.file(key).is_file() or plan.unfinished(key).is_file():
        return "disk"
    free = pixels.free_bytes(plan.folder)
    if options.store == "disk" or free >= plan.nbytes:
        return "disk"
    text = "the pixels need %.2f GB and %s has %.2f GB left: they are kept in memory, and made again at every start"
    ctx.log.warning(text, plan.nbytes / 1e9, plan.folder, free / 1e9)
    return "memory"


def in_memory(transform: Transform, ctx: Context) -> PixelCache:
    """Decode all images into memory shared by the ranks of a node. Collective.

    Raises
    ------
    ImageError
        If the policy refuses an image.
    """
    plan, mine = transform.plan, list[Block]()

    def fill(levels: NDArray[np.uint8], part: int, parts: int) -> None:
        first, end = part * len(levels) // parts, (part + 1) * len(levels) // parts
        if end > first:
            mine.append(pixels.decode_block(plan, first, levels[first:end], ctx.threads))

    levels = ctx.shared(plan.shape, np.uint8, fill)
    blocks = ctx.ranks.bcast(_once(ctx.ranks.gather(mine)))
    status = np.concatenate([block.status for block in blocks])
    remarks = {number: said for block in blocks for number, said in block.remarks.items()}
    pixels.require_usable(plan, status, remarks)
    return PixelCache(levels, status, remarks, plan.preprocess, "memory")


def _once(gathered: list[list[Block]] | None) -> list[Block]:
    """Return each part once, in order: every node has decoded all of them."""
    by_start = {block.start: block for blocks in gathered or [] for block in blocks}
    return [by_start[start] for start in sorted(by_start)]


class HasPixels(Protocol):
    """The job, as far as this stage needs it."""

    @property
    def book(self) -> PixelBook:
        """The pixels of the run, once they are planned."""
        ...


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise InputError(str(error)) from error


class PixelStage(Map):
    """Decode and preprocess the images of all transforms that are not there yet."""

    name = PIXELS

    def __init__(self, job: HasPixels) -> None:
        self._job = job

    def units(self, ctx: Context) -> Sequence[Unit]:
        """List blocks of images of the transforms that have no finished cache."""
        del ctx
        listed = []
        with _refused():
            for name, transform in self._job.book.transforms.items():
                plan, key = transform.plan, transform.key
                if transform.stored == "memory" or pixels.open_cache(plan, key, verify=True) is not None:
                    continue
                pixels.prepare(plan, key)
                listed += [Unit(f"{name}/{a:07d}-{b:07d}", b - a) for a, b in plan.blocks(_IMAGES_IN_UNIT)]
        return listed

    def run(self, unit: Unit, ctx: Context) -> Arrays:
        """Decode one block into its place in the cache."""
        name, _, images = unit.key.rpartition("/")
        start, stop = (int(n) for n in images.split("-"))
        transform = self._job.book.transforms[name]
        return pixels.build_block(transform.plan, transform.key, start, stop, ctx.threads).arrays()

    def merge(self, results: Results, ctx: Context) -> None:
        """Check the blocks and give the caches their names."""
        with _refused():
            for name, transform in self._job.book.transforms.items():
                blocks = [Block.of(arrays) for key, arrays in results.items() if key.rpartition("/")[0] == name]
                if blocks:
                    pixels.finish(transform.plan, transform.key, blocks, ctx.threads)
