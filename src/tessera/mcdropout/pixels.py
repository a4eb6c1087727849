"""The pixel cache: every image decoded, resized and cut once, in an HDF5 file that the ranks of a node map into memory.

The file is named by preprocessing and images, so it is reused over models with the same preprocessing, trials, sweeps
and restarts. It holds 8-bit levels in one contiguous data set: ranks write their blocks straight to its place in the
file, and readers share one copy in the page cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL
from numpy.typing import NDArray

from hpc import changed_hdf5, existing_hdf5, new_hdf5
from tessera.mcdropout.errors import ImageError
from tessera.mcdropout.images import read_image
from tessera.mcdropout.pixel_plan import FORMAT, PixelPlan
from tessera.mcdropout.preprocess import Preprocess

GOOD, ODD, ODD_SKIPPED, UNREADABLE = range(4)
"""States of an image: as expected; odd but used; left out as odd; left out as unreadable."""

_LISTED = 10


@dataclass(frozen=True)
class Block:
    """What became of a block of images.

    Attributes
    ----------
    start, stop
        Its images.
    status
        ``GOOD``, ``ODD``, ``ODD_SKIPPED`` or ``UNREADABLE`` for each.
    remarks
        What to say of an image, by its number.
    digest
        SHA-256 of the block's levels.
    """

    start: int
    stop: int
    status: NDArray[np.uint8]
    remarks: dict[int, str]
    digest: NDArray[np.uint8]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the block as named arrays, for the results of a unit."""
        said = json.dumps(self.remarks).encode()
        return {
            "range": np.array([self.start, self.stop]),
            "status": self.status,
            "remarks": np.frombuffer(said, np.uint8),
            "digest": self.digest,
        }

    @staticmethod
    def of(arrays: dict[str, NDArray[Any]]) -> Block:
        """Undo `arrays`."""
        start, stop = (int(n) for n in arrays["range"])
        said = {int(number): text for number, text in json.loads(arrays["remarks"].tobytes()).items()}
        return Block(start, stop, np.asarray(arrays["status"]), said, np.asarray(arrays["digest"]))


@dataclass(frozen=True)
class PixelCache:
    """The levels of all images, ready to use.

    Attributes
    ----------
    levels
        (images, 3, size, size), uint8, read-only; zeros for images that were left out.
    status
        State of every image.
    remarks
        What to say of an image, by its number.
    preprocess
        How they were prepared.
    where
        The file, or ``memory``.
    """

    levels: NDArray[np.uint8]
    status: NDArray[np.uint8]
    remarks: dict[int, str]
    preprocess: Preprocess
    where: str

    def usable(self) -> NDArray[np.int64]:
        """Return the numbers of the images that take part."""
        return np.flatnonzero(self.status <= ODD)


def free_bytes(folder: Path) -> int:
    """Return the space left where a folder is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def prepare(plan: PixelPlan, key: str) -> None:
    """Make the file that the blocks are written into, unless an earlier start of this run has done it. One rank.

    Raises
    ------
    ImageError
        If there is no room for it; the message says how much is needed.
    """
    path = plan.unfinished(key)
    if path.is_file():
        return
    free = free_bytes(plan.folder)
    if free < plan.nbytes:
        msg = (
            f"the pixel cache of {len(plan.paths)} images needs {plan.nbytes / 1e9:.2f} GB and {plan.folder} has "
            f"{free / 1e9:.2f} GB left; free space, set another folder, or keep the pixels in memory"
        )
        raise ImageError(msg)
    plan.folder.mkdir(parents=True, exist_ok=True)
    making = path.with_suffix(".making")
    with new_hdf5(making) as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        # Its place in the file must be known before anything is written, and zeros must not be written first.
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(plan.shape)
        h5py.h5d.create(file.id, b"levels", h5py.h5t.NATIVE_UINT8, space, layout)
    making.replace(path)


def build_block(plan: PixelPlan, key: str, start: int, stop: int, threads: int = 1) -> Block:
    """Decode and prepare images ``start … stop-1`` and write them to their place; on any rank, in any order.

    Raises
    ------
    OSError
        As raised by the file system, naming images and file: the engine tries again.
    """
    levels = np.zeros((stop - start, *plan.shape[1:]), np.uint8)
    block = decode_block(plan, start, levels, threads)
    path = plan.unfinished(key)
    offset = _offset(path) + start * int(np.prod(plan.shape[1:]))
    descriptor = os.open(path, os.O_WRONLY)
    try:
        data = memoryview(levels.data).cast("B")
        while data:
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written
    except OSError as error:
        what = f"{error.strerror}, while the pixels of images {start} to {stop - 1} were written; free space and resume"
        raise OSError(error.errno, what, str(path)) from error
    finally:
        os.close(descriptor)
    return block


def decode_block(plan: PixelPlan, start: int, levels: NDArray[np.uint8], threads: int = 1) -> Block:
    """Decode and prepare images into an array of zeros.

    Parameters
    ----------
    plan
        Which images, and how.
    start
        Number of the first.
    levels
        (images, 3, size, size); filled, but for images that are left out.
    threads
        To decode with; the result does not depend on it.
    """
    count = len(levels)
    status, remarks = np.zeros(count, np.uint8), {}

    def one(i: int) -> str:
        path = plan.paths[start + i]
        try:
            picture = read_image(path)
        except ImageError as error:
            status[i] = UNREADABLE
            return str(error)
        if picture.oddity and plan.odd != "convert":
            status[i] = ODD_SKIPPED
            return f"{path}: {picture.oddity}"
        try:
            levels[i] = plan.preprocess.levels(picture.image)
        except ImageError as error:
            status[i] = UNREADABLE
            return f"{path}: {error}"
        status[i] = ODD if picture.oddity else GOOD
        return f"{path}: {picture.oddity}" if picture.oddity else ""

    with ThreadPoolExecutor(threads) as pool:
        remarks = {start + i: said for i, said in enumerate(pool.map(one, range(count))) if said}
    digest = np.frombuffer(_digest(levels), np.uint8)
    return Block(start, start + count, status, remarks, digest)


def finish(plan: PixelPlan, key: str, blocks: Iterable[Block], threads: int = 1) -> PixelCache:
    """Check every block in the file, do damaged ones again, and give the file its name. One rank, after all blocks.

    A machine that died may have lost blocks that were written but not yet on its disk: their digests tell.

    Raises
    ------
    ImageError
        If the policy refuses an image, none is left, or blocks are missing: their images would pass for black ones.
    """
    path, final = plan.unfinished(key), plan.file(key)
    if not path.is_file() and final.is_file():
        return _open(final, plan.preprocess)
    done = sorted(blocks, key=lambda block: block.start)
    _require_all(plan, done)
    levels = _mapped(path, plan.shape)
    for i, block in enumerate(done):
        if _digest(levels[block.start : block.stop]) != block.digest.tobytes():
            done[i] = build_block(plan, key, block.start, block.stop, threads)
    status = np.concatenate([block.status for block in done])
    remarks = {number: said for block in done for number, said in block.remarks.items()}
    require_usable(plan, status, remarks)
    attributes = {
        "format": FORMAT,
        "key": key,
        "preprocess": json.dumps(plan.preprocess.record()),
        "pillow": PIL.__version__,
        "remarks": json.dumps(remarks),
    }
    with changed_hdf5(path) as file:
        for name in ("status", "paths", "digests", "starts"):
            file.pop(name, None)
        file["status"] = status
        file["paths"] = [str(image) for image in plan.paths]
        file["digests"] = np.stack([block.digest for block in done])
        file["starts"] = np.array([block.start for block in done])
        file.attrs.update(attributes)
    with path.open("rb") as raw:
        os.fsync(raw.fileno())
    path.replace(final)
    return _open(final, plan.preprocess)


def _require_all(plan: PixelPlan, blocks: Sequence[Block]) -> None:
    """Refuse blocks that do not cover all images, or cover some twice."""
    starts = [block.start for block in blocks] + [len(plan.paths)]
    ends = [0] + [block.stop for block in blocks]
    wrong = [f"{end} to {start - 1}" for end, start in zip(ends, starts, strict=True) if end != start]
    if wrong:
        msg = (
            f"the pixels of images {', '.join(wrong)} were not made, because their units failed (tessera status says "
            "why); remove the cause, then: tessera resume RUN --retry-failed"
        )
        raise ImageError(msg)


def require_usable(plan: PixelPlan, status: NDArray[np.uint8], remarks: dict[int, str]) -> None:
    """Refuse what the policy refuses.

    Raises
    ------
    ImageError
        With the images and what is wrong with them.
    """
    refused = [UNREADABLE] * (plan.unreadable == "refuse") + [ODD_SKIPPED] * (plan.odd == "refuse")
    bad = np.flatnonzero(np.isin(status, refused))
    if len(bad):
        raise ImageError(_listing(f"{len(bad)} of {len(status)} images are refused", [remarks[int(i)] for i in bad]))
    if not (status <= ODD).any():
        raise ImageError(_listing(f"none of the {len(status)} images can be used", list(remarks.values())))


def _listing(head: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([f"{head}:", *lines[:_LISTED], *more])


def build(
    plan: PixelPlan, key: str, *, block: int = 64, threads: int = 1, tick: Callable[[int], None] | None = None
) -> PixelCache:
    """Build a cache in this process.

    Parameters
    ----------
    plan, key
        What to build.
    block
        Images written at a time.
    threads
        To decode with.
    tick
        Called with the number of images done.
    """
    prepare(plan, key)
    blocks = []
    for start, stop in plan.blocks(block):
        blocks.append(build_block(plan, key, start, stop, threads))
        if tick is not None:
            tick(stop)
    return finish(plan, key, blocks, threads)


def open_cache(plan: PixelPlan, key: str, *, verify: bool = False) -> PixelCache | None:
    """Return the finished cache of a key, or None if there is none.

    Parameters
    ----------
    plan, key
        What is wanted.
    verify
        Read all levels and compare their digests: about a second for every 1.5 GB; one rank is enough.

    Raises
    ------
    ImageError
        If the file is damaged or does not hold what its name says, or the policy refuses an image in it.
    """
    path = plan.file(key)
    if not path.is_file():
        return None
    try:
        cache = _open(path, plan.preprocess, key=key, digests=verify)
    except (OSError, KeyError, ValueError) as error:
        msg = f"pixel cache {path} is damaged ({error}); delete it, and it is built again"
        raise ImageError(msg) from error
    require_usable(plan, cache.status, cache.remarks)
    return cache


def _open(path: Path, preprocess: Preprocess, *, key: str | None = None, digests: bool = False) -> PixelCache:
    with existing_hdf5(path) as file:
        shape = file["levels"].shape
        status = np.asarray(file["status"])
        remarks = {int(number): said for number, said in json.loads(file.attrs["remarks"]).items()}
        stored = json.loads(file.attrs["preprocess"])
        sums, starts = np.asarray(file["digests"]), [*np.asarray(file["starts"]).tolist(), shape[0]]
        if key is not None and file.attrs["key"] != key:
            msg = f"its key is {file.attrs['key']}"
            raise ValueError(msg)
    if stored != json.loads(json.dumps(preprocess.record())) or shape[2] != preprocess.size:
        msg = f"its preprocessing is {stored}"
        raise ValueError(msg)
    levels = _mapped(path, shape)
    if digests:
        for start, stop, digest in zip(starts, starts[1:], sums, strict=False):
            if _digest(levels[start:stop]) != digest.tobytes():
                msg = f"images {start} to {stop - 1} do not hold what was written"
                raise ValueError(msg)
    return PixelCache(levels, status, remarks, preprocess, str(path))


def _digest(levels: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(levels.data).digest()


def _offset(path: Path) -> int:
    with existing_hdf5(path) as file:
        return int(file["levels"].id.get_offset())


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    offset = _offset(path)
    if path.stat().st_size < offset + int(np.prod(shape)):
        msg = f"it is cut short at {path.stat().st_size} bytes"
        raise ValueError(msg)
    return np.memmap(path, np.uint8, "r", offset, tuple(shape))
