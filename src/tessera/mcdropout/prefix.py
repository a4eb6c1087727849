"""The part of the forward pass before the first perturbed site: computed once for an image and kept.

It is a function of the image alone, so only what comes after it runs in every pass. A tower perturbed in its last three
blocks runs a quarter of itself in a pass; one perturbed only behind its last linear layer next to nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tessera.mcdropout.blocks import Entry


@dataclass(frozen=True)
class Prepared:
    """What is known of some images before the first pass.

    Attributes
    ----------
    entry
        The state before the first perturbed site, for all images. Where the embedding itself is perturbed its block is
        -1, and the residual is what the tower embeds.
    pooled
        (N,) which token is pooled, for texts.
    reference
        (N, D) float32, features with nothing perturbed.
    """

    entry: Entry
    pooled: Tensor | None
    reference: Tensor

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        parts = (self.entry.residual, self.entry.hidden, self.reference)
        return sum(part.nbytes for part in parts if part is not None)


class EntryStore:
    """Collects the entries of consecutive batches in one piece of memory.

    Parameters
    ----------
    count
        How many images there will be.
    """

    def __init__(self, count: int) -> None:
        self._count, self._filled = count, 0
        self._whole: Entry | None = None

    def add(self, entry: Entry, count: int) -> None:
        """Add the first `count` images of an entry."""
        if self._whole is None:
            hidden = None if entry.hidden is None else self._room(entry.hidden)
            self._whole = Entry(entry.block, entry.point, self._room(entry.residual), hidden)
        rows = slice(self._filled, self._filled + count)
        self._whole.residual[rows] = entry.residual[:count]
        if self._whole.hidden is not None and entry.hidden is not None:
            self._whole.hidden[rows] = entry.hidden[:count]
        self._filled += count

    def whole(self) -> Entry:
        """Return the entry of all images."""
        if self._whole is None or self._filled < self._count:
            msg = f"{self._filled} of {self._count} images were entered"
            raise ValueError(msg)
        return self._whole

    def _room(self, part: Tensor) -> Tensor:
        return part.new_empty((self._count, *part.shape[1:]))


class PrefixCache:
    """Keeps what is known of blocks of images, the latest used, up to a number of bytes.

    Parameters
    ----------
    limit
        Bytes; the block in use is kept whatever its size.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[bytes, Prepared] = OrderedDict()

    def get(self, images: NDArray[np.int64]) -> Prepared | None:
        """Return what is kept of a block of images, by their numbers."""
        key = images.tobytes()
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, images: NDArray[np.int64], prepared: Prepared) -> None:
        """Keep a block, and let go of those not used for longest."""
        self._kept[images.tobytes()] = prepared
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)
