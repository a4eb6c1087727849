"""``fitted_data.npz``: the maps of data, fit and residuals under homodyne's names, written angle by angle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tessera.xpcs.diagonal import Method, corrected
from tessera.xpcs.fitted import AngleFit, Fitted
from tessera.xpcs.physics import Floats

MAPS: Final = 6
"""Maps of n_phi x n_t x n_t float64 in the file."""


def npz_bytes(fitted: Fitted) -> int:
    """Return the size of ``fitted_data.npz``."""
    return MAPS * 8 * fitted.dataset.rows.n_phi * fitted.dataset.rows.n_t**2


def write_npz(path: Path, fitted: Fitted, angles: Sequence[AngleFit], method: Method) -> None:
    """Write ``fitted_data.npz``, one angle in memory at a time, not compressed (noise does not get smaller).

    ``c2_theoretical_raw`` is 1 + g₁²; ``c2_theoretical_scaled`` is that times ``per_angle_scaling[:, 0]`` plus
    ``per_angle_scaling[:, 1]``, the best straight line of each angle (so, as in homodyne, this second number is the
    offset less the contrast); ``c2_solver_scaled`` is the fit itself, ``per_angle_scaling_solver`` its contrast and
    offset. ``residuals`` are ``c2_exp - c2_theoretical_scaled``, ``residuals_normalized`` that over σ (homodyne: over
    5 % of ``c2_exp``).

    Parameters
    ----------
    path
        The file.
    fitted, angles
        From `tessera.xpcs.fitted`.
    method
        For the diagonal of ``c2_exp``.
    """
    data = fitted.dataset
    n = data.rows.n_t
    line = np.array([[a.contrast, a.offset - a.contrast] for a in angles])

    def measured(angle: int) -> Floats:
        return corrected(data.matrix(angle), method)

    def raw(angle: int) -> Floats:
        return 1.0 + fitted.g1_squared(angle, 0, n)

    def scaled(angle: int) -> Floats:
        return np.asarray(line[angle, 0] * raw(angle) + line[angle, 1])

    def solver(angle: int) -> Floats:
        return np.asarray(fitted.offset[angle] + fitted.contrast[angle] * (raw(angle) - 1.0))

    def residuals(angle: int) -> Floats:
        return np.asarray(measured(angle) - scaled(angle))

    def normalized(angle: int) -> Floats:
        return np.asarray(residuals(angle) / fitted.sigma)

    stacks: dict[str, Callable[[int], Floats]] = {
        "c2_exp": measured,
        "c2_theoretical_raw": raw,
        "c2_theoretical_scaled": scaled,
        "c2_solver_scaled": solver,
        "residuals": residuals,
        "residuals_normalized": normalized,
    }
    small = {
        "phi_angles": data.phi,
        "per_angle_scaling": line,
        "per_angle_scaling_solver": np.stack([fitted.contrast, fitted.offset], axis=1),
        "t1": data.times,
        "t2": data.times,
        "q": np.array([data.q]),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in small.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)
        for name, matrix in stacks.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                header = {"descr": "<f8", "fortran_order": False, "shape": (data.rows.n_phi, n, n)}
                np.lib.format.write_array_header_1_0(stream, header)
                for angle in range(data.rows.n_phi):
                    stream.write(np.ascontiguousarray(matrix(angle), "<f8").tobytes())
