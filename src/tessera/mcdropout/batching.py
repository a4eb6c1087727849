"""How many (pass, image) pairs go through the tower at once."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.mcdropout.device import free_bytes
from tessera.mcdropout.errors import DeviceError
from tessera.mcdropout.sites import Site

_log = logging.getLogger(__name__)

_CPU_BYTES: Final = 5 << 20
"""Largest activation of a micro-batch on CPU: ViT-B/32 is fastest at 8 images, 5 MB, and 5 to 9 % slower at 32."""
_COPIES: Final = 12
"""Activations of the largest site's size that are alive at once on a GPU, generously, masks included."""


class MicroBatch:
    """A batch shape that stays the same until memory runs out.

    Every batch has this many pairs, the last one padded: one compiled graph serves all, and features are bit for bit
    the same however the work is cut. Out of memory halves it for the rest of the run; features then agree to rounding.

    Attributes
    ----------
    size
        Pairs in a batch.
    first
        What it was at the start.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            msg = f"a micro-batch of {size} images is asked for; give a number from 1 on, or auto"
            raise DeviceError(msg)
        self.size = self.first = size

    def shrink(self, error: torch.OutOfMemoryError) -> None:
        """Halve the shape after memory ran out.

        Raises
        ------
        DeviceError
            One image alone does not fit.
        """
        if self.size == 1:
            msg = "the device has too little memory for one image; use a smaller model, half precision, or device=cpu"
            raise DeviceError(msg) from error
        self.size = (self.size + 1) // 2
        _log.warning("out of memory: from here on %d images in a batch instead of %d", self.size, 2 * self.size)


def automatic_size(sites: Sequence[Site], device: torch.device) -> int:
    """Choose a micro-batch from the size of the largest activation and the memory of the device.

    Parameters
    ----------
    sites
        All sites of the tower.
    device
        Where it runs. On CPU the largest activation should stay in the cache; on a GPU a third of the free memory is
        used, up to 256 images.

    Returns
    -------
    int
        A power of two; on CPU and MPS the same on every machine.
    """
    largest = 4 * max(math.prod(site.shape) for site in sites if site.kind != "packed")
    free = free_bytes(device)
    fitting = _CPU_BYTES // largest if free is None else free // 3 // (_COPIES * largest)
    return 1 << int(math.log2(min(max(fitting, 1), 32 if free is None else 256)))


def padded(rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Repeat the last row until there are `size`."""
    return np.concatenate([rows, np.full(size - len(rows), rows[-1])]) if len(rows) < size else rows


def in_threads(
    compute: Callable[[NDArray[np.int64]], Tensor], parts: Sequence[NDArray[np.int64]], threads: int
) -> Iterator[Tensor]:
    """Compute parts on some threads at once, a few ahead of what is consumed; yield the results in order."""

    def one(part: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():  # a setting of each thread
            return compute(part)

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Tensor]] = deque()
        for part in parts:
            ahead.append(pool.submit(one, part))
            if len(ahead) >= 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
