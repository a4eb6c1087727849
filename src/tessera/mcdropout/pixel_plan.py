"""Which images are cached, how they are prepared, and the name that follows from both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessera.mcdropout.errors import ImageError
from tessera.mcdropout.images import OddPolicy, UnreadablePolicy
from tessera.mcdropout.preprocess import Preprocess

FORMAT = 1
"""Of the cache file; part of its name, so that an older file is never misread."""


@dataclass(frozen=True)
class PixelPlan:
    """Which images are to be cached, how, and where.

    Attributes
    ----------
    paths
        The images; their positions in this list are their numbers from here on.
    preprocess
        How they are prepared.
    folder
        Where caches are kept; several runs may share it.
    token
        Distinguishes the unfinished files of runs that build the same cache at once.
    unreadable, odd
        What happens to images that cannot be read, and to odd ones.
    """

    paths: tuple[Path, ...]
    preprocess: Preprocess
    folder: Path
    token: str
    unreadable: UnreadablePolicy = "skip"
    odd: OddPolicy = "convert"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (images, 3, size, size) of the levels."""
        return (len(self.paths), 3, self.preprocess.size, self.preprocess.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the levels."""
        return int(np.prod(self.shape))

    def blocks(self, size: int) -> list[tuple[int, int]]:
        """Cut the images into blocks ``(start, stop)`` of at most `size`."""
        return [(start, min(start + size, len(self.paths))) for start in range(0, len(self.paths), size)]

    def key(self) -> str:
        """Return 32 hexadecimal digits for preprocessing, policy, and name, size, times and inode of every image.

        Raises
        ------
        ImageError
            Only if the list is empty; a file that is not there is told from one that is, and reported when read.
        """
        if not self.paths:
            msg = "the list of images is empty; there is nothing to cache"
            raise ImageError(msg)
        digest = hashlib.sha256(f"{FORMAT} {self.preprocess.key()} {self.odd}\n".encode())
        for path in self.paths:
            stat = path.stat() if path.is_file() else None
            # Not by its mtime alone: a copy that keeps it may hold another picture of the same size.
            seen = () if stat is None else (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            traits = " ".join(map(str, seen)) or "absent"
            digest.update(f"{path}\0{traits}\n".encode())
        return digest.hexdigest()[:32]

    def file(self, key: str) -> Path:
        """Return the finished cache of a key."""
        return self.folder / f"pixels-{key}.h5"

    def unfinished(self, key: str) -> Path:
        """Return the file in which this run builds it."""
        return self.folder / f"pixels-{key}.{self.token}.building"
