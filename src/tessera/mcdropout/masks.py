"""Which elements a pass drops: counter-based draws keyed by (seed, trial, pass, site, image) and by nothing else.

A mask depends on its key alone: not on the batch an image is in, on the rank that computes it, or on the order of
anything. Philox is a block cipher of a counter (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
used here in two forms that draw *different* masks of the same law:

``sparse``
    Gaps between dropped elements are geometric, so a site of n elements costs n p draws instead of n. Philox4x64 of
    NumPy on the host: key (seed, trial), counter (·, image, site, pass).
``dense``
    One word for each element, Philox4x32-10 in integer operations of torch that fuse with their surroundings under
    `torch.compile`: key (seed, trial), counter (element // 4, image, site, pass).

Probabilities are resolved to 2^-32 in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.mcdropout.errors import DrawError

Form: TypeAlias = Literal["sparse", "dense"]
Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

WORD: Final = 1 << 32
SHARED_IMAGE: Final = WORD - 1
"""Takes the place of the image in the key when one mask serves all images of a pass."""
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class Pairs:
    """The (pass, image) pairs of one micro-batch, and the trial they belong to.

    Attributes
    ----------
    seed, trial
        Key of the trial; each below 2^32.
    passes, images
        (B,) int64: number of the pass, and stable number of the image in the manifest (not in a batch or on a rank).
    shared
        One mask for all images of a pass: every pass is one sampled network. The law of each image's features is the
        same; across images the draws are no longer independent.
    """

    seed: int
    trial: int
    passes: NDArray[np.int64]
    images: NDArray[np.int64]
    shared: bool = False

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("trial", self.trial)):
            if not 0 <= value < WORD:
                msg = f"{name} {value} is outside 0 … 2^32 - 1, which the key of the masks holds; choose a smaller one"
                raise DrawError(msg)
        for name, values in (("pass", self.passes), ("image", self.images)):
            if len(values) and not 0 <= values.min() <= values.max() < SHARED_IMAGE:
                msg = f"{name} numbers {values.min()} … {values.max()} are outside 0 … 2^32 - 2, which the key holds"
                raise DrawError(msg)

    def keyed_images(self) -> NDArray[np.int64]:
        """Return what stands for the image in the key of each pair."""
        return np.full_like(self.images, SHARED_IMAGE) if self.shared else self.images


def dropped_elements(pairs: Pairs, site: int, count: int, p: float, *, total: int | None = None) -> NDArray[np.int64]:
    """Draw the dropped elements of a site for a micro-batch, in the sparse form.

    The gap before the next dropped element is geometric: ``floor(log u / log(1 - p))`` with u uniform in (0, 1]
    (Devroye 1986, "Non-Uniform Random Variate Generation", X.2).

    Parameters
    ----------
    pairs
        Keys of the micro-batch of B pairs.
    site
        `Site.index`.
    count
        How many elements of each pair are wanted. Drawing fewer gives the beginning of the same mask.
    p
        Probability of dropping an element, inside (0, 1).
    total
        Distance in the result between the first elements of two pairs; `count` if not given.

    Returns
    -------
    ndarray
        int64: ``pair * total + element`` of every dropped element, ascending.
    """
    keys = np.stack([pairs.keyed_images(), pairs.passes], 1)
    # With one mask for all images of a pass there are as many draws as there are passes.
    unique, inverse = np.unique(keys, axis=0, return_inverse=True) if pairs.shared else (keys, np.arange(len(keys)))
    draws = _first_guess(count, p)
    places = _places(pairs, unique, site, draws, p)
    while places.size and places[:, -1].min() < count:
        draws *= 2
        places = _places(pairs, unique, site, draws, p)
    stride = count if total is None else total
    flat = (places + stride * np.arange(len(unique))[:, None])[places < count]
    if not pairs.shared:
        return cast("NDArray[np.int64]", flat)
    rows = np.split(flat % stride, np.searchsorted(flat, stride * np.arange(1, len(unique))))
    return np.concatenate([rows[of] + stride * row for row, of in enumerate(inverse.ravel())])


def _first_guess(count: int, p: float) -> int:
    """Return how many draws are hardly ever too few: six sigma above the mean."""
    mean = count * p
    return int(mean + 6 * np.sqrt(mean) + 16)


def _places(pairs: Pairs, keys: NDArray[np.int64], site: int, draws: int, p: float) -> NDArray[np.int64]:
    """Return the first `draws` dropped places (rows, draws) of each (image, pass) in `keys`."""
    words = np.empty((len(keys), (draws + 1) // 2), np.uint64)
    stream = host_stream(pairs, 0, 0, site)
    # Setting the counter of one stream costs a fifth of making a stream for each image.
    state = stream.state
    for row, (image, number) in enumerate(keys.tolist()):
        state["state"]["counter"] = np.array([0, image, site, number], np.uint64)
        stream.state = state
        words[row] = stream.random_raw(words.shape[1])
    gaps = words.astype("<u8", copy=False).view("<u4").astype(np.float64)
    gaps += 1
    gaps *= 1 / WORD
    np.log(gaps, out=gaps)
    gaps *= 1 / np.log1p(-p)
    places = gaps.astype(np.int64)
    places += 1
    np.cumsum(places, axis=1, out=places)
    places -= 1
    return places


def host_stream(pairs: Pairs, image: int, number: int, site: int) -> np.random.Philox:
    """Return the stream of one site in one pass of one image."""
    key = np.array([pairs.seed, pairs.trial], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, image, site, number], np.uint64))


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Encrypt counters with Philox4x32-10.

    Parameters
    ----------
    counter, key
        int64 tensors that broadcast against each other, holding unsigned 32-bit words.

    Returns
    -------
    tuple of four Tensor
        int64, unsigned 32-bit words.
    """
    a, b, c, d = counter
    k0, k1 = key
    for number in range(_ROUNDS):
        # A signed product wraps modulo 2^64, and its upper word is right once the sign is masked away.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        shift = (number * _WEYL[0], number * _WEYL[1])
        a, c = (
            (second >> 32 & (WORD - 1)) ^ b ^ (k0 + shift[0] & (WORD - 1)),
            (first >> 32 & (WORD - 1)) ^ d ^ (k1 + shift[1] & (WORD - 1)),
        )
        b, d = second & (WORD - 1), first & (WORD - 1)
    return a, b, c, d


@dataclass(frozen=True, slots=True)
class DeviceKeys:
    """The keys of a micro-batch as tensors on its device, so that one compiled graph serves all of them.

    Attributes
    ----------
    trial
        (2,) int64: seed and trial.
    passes, images
        (B, 1) int64.
    """

    trial: Tensor
    passes: Tensor
    images: Tensor

    @classmethod
    def of(cls, pairs: Pairs, device: torch.device) -> DeviceKeys:
        """Copy the keys to a device."""
        trial = torch.tensor([pairs.seed, pairs.trial], dtype=torch.int64)
        passes, images = torch.from_numpy(pairs.passes), torch.from_numpy(pairs.keyed_images())
        return cls(
            trial.to(device, non_blocking=True),
            passes[:, None].to(device, non_blocking=True),
            images[:, None].to(device, non_blocking=True),
        )


def dense_words(keys: DeviceKeys, site: int, count: int) -> Words:
    """Draw four words for each group of four elements of a site: each (B, ceil(count / 4)) int64."""
    blocks = torch.arange((count + 3) // 4, device=keys.images.device)[None]
    place = torch.full_like(keys.passes, site)
    return philox4x32((blocks, keys.images, place, keys.passes), (keys.trial[0], keys.trial[1]))


def dense_kept(keys: DeviceKeys, site: int, count: int, p: float) -> Tensor:
    """Draw which elements of a site are kept, in the dense form: (B, count) bool."""
    threshold = round(p * WORD)
    words = [word >= threshold for word in dense_words(keys, site, count)]
    return torch.stack(words, -1).flatten(1)[:, :count]


def dense_normal(keys: DeviceKeys, site: int, count: int) -> Tensor:
    """Draw standard normal numbers for the elements of a site: (B, count) float32 (Box and Muller 1958)."""
    first, second, third, fourth = (
        (word + 1).to(torch.float32) * (1 / WORD) for word in dense_words(keys, site, count)
    )
    normals = []
    for radius, angle in ((first, second), (third, fourth)):
        length, turn = torch.sqrt(-2 * torch.log(radius)), 2 * torch.pi * angle
        normals += [length * torch.cos(turn), length * torch.sin(turn)]
    return torch.stack(normals, -1).flatten(1)[:, :count]


def host_normal(pairs: Pairs, site: int, count: int) -> NDArray[np.float32]:
    """Draw standard normal numbers on the host: (B, count) float32, from the same streams as the sparse form."""
    out = np.empty((len(pairs.images), count), np.float32)
    for row, (image, number) in enumerate(zip(pairs.keyed_images(), pairs.passes, strict=True)):
        stream = host_stream(pairs, int(image), int(number), site)
        np.random.Generator(stream).standard_normal(out=out[row], dtype=np.float32)
    return out
