"""The same points in arrays and files."""

from __future__ import annotations

import h5py
import numpy as np

N = 1037
RNG = np.random.default_rng(11)
X, Y, SIGMA = RNG.normal(size=(2, N)), RNG.normal(size=N), RNG.uniform(0.5, 1, N)
MASK = RNG.random(N) > 0.1


def whole(source):
    chunks = [source.read(i) for i in range(source.n_chunks)]
    x = np.concatenate([c.x for c in chunks], axis=-1)
    y = np.concatenate([c.y for c in chunks])
    sigma = None if chunks[0].sigma is None else np.concatenate([c.sigma for c in chunks])
    mask = None if chunks[0].mask is None else np.concatenate([c.mask for c in chunks])
    return x, y, sigma, mask


def write_hdf5(path, **extra):
    with h5py.File(path, "w") as file:
        file["a/u"], file["a/v"], file["y"], file["err"], file["use"] = X[0], X[1], Y, SIGMA, MASK.astype(np.int8)
        file["both"], file["rows"] = X, X.T
        for name, value in extra.items():
            file[name] = value
    return path
