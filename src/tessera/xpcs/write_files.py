"""Two-time correlations into the layouts that `tessera.xpcs.load` reads, for tests and demonstrations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc import new_hdf5


def write_aps_u(
    path: Path, matrices: Iterable[NDArray[Any]], phi: NDArray[Any], q: NDArray[Any], *, compression: str | None = None
) -> None:
    """Write the layout of APS-U: every wavevector with every angle, upper halves.

    Parameters
    ----------
    path
        The HDF5 file.
    matrices
        Symmetric, all angles of the first wavevector, then of the next; taken one at a time.
    phi, q
        deg, shape (n_phi,), and 1/Å, shape (n_q,).
    compression
        Of each matrix as one chunk; boost_corr writes float32 with ``lzf``. None: without chunks.
    """
    with new_hdf5(path) as file:
        file["xpcs/qmap/dynamic_v_list_dim0"] = np.asarray(q, np.float64)
        file["xpcs/qmap/dynamic_v_list_dim1"] = np.asarray(phi, np.float64)
        count = 0
        for count, matrix in enumerate(matrices, start=1):
            chunks = matrix.shape if compression else None
            name = f"xpcs/twotime/correlation_map/c2_{count:05d}"
            file.create_dataset(name, data=np.triu(matrix), compression=compression, chunks=chunks)
        file["xpcs/twotime/processed_bins"] = np.arange(1, count + 1)


def write_aps_old(path: Path, matrices: Iterable[NDArray[Any]], phi: NDArray[Any], q: NDArray[Any]) -> None:
    """Write the layout of APS before its upgrade: a list of pairs of wavevector and angle, upper halves.

    Parameters
    ----------
    path
        The HDF5 file.
    matrices
        Symmetric, one per pair; taken one at a time.
    phi, q
        Of each pair, deg and 1/Å, shape (n,).
    """
    with new_hdf5(path) as file:
        file["xpcs/dqlist"] = np.asarray(q, np.float64)[None]
        file["xpcs/dphilist"] = np.asarray(phi, np.float64)[None]
        for count, matrix in enumerate(matrices, start=1):
            file[f"exchange/C2T_all/g2_{count:05d}"] = np.triu(matrix)
