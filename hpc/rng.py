"""Random streams keyed by what is computed, never by who computes it."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, key: str) -> np.random.Generator:
    """Return the stream of a unit: the counter-based Philox4x64 with a 128-bit key hashed from seed and unit key.

    Parameters
    ----------
    seed
        The job's seed.
    key
        Unit key (prefix it with the stage name where two stages have equal keys).

    Returns
    -------
    numpy.random.Generator
        The same stream on any rank, in any order, at any restart. Streams of different keys are independent
        (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
    """
    digest = hashlib.sha256(f"{seed}\x00{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
