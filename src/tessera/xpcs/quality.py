"""Checks of two-time correlations before they are fitted: finite, plausible, decaying; and the noise they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.xpcs.dataset import C2Rows, Dataset, Matrix
from tessera.xpcs.errors import DataQualityError
from tessera.xpcs.start import noise_behind

_BLOCK: Final = 128
_SAMPLED: Final = 24
"""Rows of an angle from which its noise is taken; their ~1e4 values give it to about 1 %."""
_NEAR_ONE: Final = (0.5, 1.5)
_FEW_SIGMA: Final = 3.0


@dataclass(frozen=True, slots=True)
class AngleQuality:
    """What one matrix looks like off its diagonal.

    Attributes
    ----------
    bad
        Number of values that are not finite.
    bad_frames
        The frames (0-based in the selection) with most of them, at most five.
    least, most, mean
        Of the finite values.
    early, late
        Median at lags up to a fiftieth of the range, and beyond four fifths of it: top and floor of the correlation.
    noise
        Standard deviation of a value, from second differences along rows, which smooth dynamics do not show; NaN where
        there are too few values.
    """

    bad: int
    bad_frames: tuple[int, ...]
    least: float
    most: float
    mean: float
    early: float
    late: float
    noise: float


def assess_angle(rows: C2Rows, angle: int) -> AngleQuality:
    """Look at every value of one angle once."""
    n = rows.n_t
    bad_of = np.zeros(n, np.int64)
    least, most, total, count = np.inf, -np.inf, 0.0, 0
    early: list[Matrix] = []
    late: list[Matrix] = []
    differences: list[Matrix] = []
    sampled = set(np.linspace(0, max(0, n - 4), min(_SAMPLED, n)).astype(int).tolist())
    for first in range(0, n - 1, _BLOCK):
        end = min(first + _BLOCK, n - 1)
        block = rows.rows(angle, first, end)
        for i in range(end - first):
            row = block[i, i + 1 :]
            if first + i in sampled:
                _collect(row, n, early, late, differences)
            if not np.isfinite(row.sum(dtype=np.float64)):
                good = np.isfinite(row)
                bad_of[first + i] += np.count_nonzero(~good)
                bad_of[first + i + 1 :][~good] += 1
                row = row[good]
            if row.size:
                least, most = min(least, float(row.min())), max(most, float(row.max()))
                total, count = total + float(row.sum(dtype=np.float64)), count + row.size
    return AngleQuality(
        bad=int(bad_of.sum() // 2),
        bad_frames=tuple(int(f) for f in np.argsort(-bad_of, kind="stable")[:5] if bad_of[f]),
        least=least,
        most=most,
        mean=total / count if count else np.nan,
        early=_median(early),
        late=_median(late),
        noise=noise_behind(differences),
    )


def _collect(row: Matrix, n: int, early: list[Matrix], late: list[Matrix], differences: list[Matrix]) -> None:
    """Sort what a row of lags 1, 2, … contributes."""
    near, far = max(1, n // 50), (4 * n) // 5
    early.append(row[:near])
    if row.size > far:
        late.append(row[far:])
    if row.size > 2:
        differences.append(np.diff(row.astype(np.float64), 2))


def _median(parts: Sequence[Matrix]) -> float:
    values = _finite(parts)
    return float(np.median(values)) if values.size else np.nan


def _finite(parts: Sequence[Matrix]) -> Matrix:
    values = np.concatenate(parts) if parts else np.empty(0)
    return np.asarray(values[np.isfinite(values)])


def judge(dataset: Dataset, angles: Sequence[AngleQuality], *, omit: bool = False) -> list[str]:
    """Refuse data that cannot be fitted, and say what is unusual about data that can.

    Parameters
    ----------
    dataset
        What was looked at.
    angles
        One record per angle.
    omit
        Whether values that are not finite may be left out of the fit.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    DataQualityError
        If values are not finite, or all the same; the message names angle and frames.
    """
    warnings = []
    first = dataset.frames[0]
    for phi, found in zip(dataset.phi, angles, strict=True):
        where = f"{dataset.source}: angle {phi:g} deg"
        if found.bad:
            frames = ", ".join(str(first + f) for f in sorted(found.bad_frames))
            text = f"{where} holds {found.bad} values that are not finite, most of them in frames {frames}"
            if not omit:
                msg = (
                    f"{text}; leave these frames out (start_frame, end_frame), or this angle (phi_filtering), or these "
                    "values (job.experimental_data.nan=omit)"
                )
                raise DataQualityError(msg)
            warnings.append(f"{text}; they are left out")
        if found.least == found.most:
            msg = f"{where} holds {found.least:g} and nothing else; leave this angle out (phi_filtering)"
            raise DataQualityError(msg)
        if np.isfinite(found.late) and not _NEAR_ONE[0] <= found.late <= _NEAR_ONE[1]:
            warnings.append(
                f"{where} levels off at {found.late:.4g}, and the floor of g2 is near 1: is it g2 - 1, or not "
                "normalised? The offset is bounded to 0.5 … 1.5"
            )
        elif not found.early - found.late > _FEW_SIGMA * _error_of_median(found.noise, dataset.rows.n_t):
            warnings.append(f"{where} does not decay within its {dataset.rows.n_t} frames; it hardly determines D")
        if found.least < 0:
            warnings.append(
                f"{where} holds values down to {found.least:.3g}; correlations of intensities are not negative"
            )
    return warnings


def _error_of_median(noise: float, n: int) -> float:
    """Return the error of a median over the sampled lags, small even for few frames."""
    return noise / np.sqrt(max(1, _SAMPLED * (n // 50))) if np.isfinite(noise) else 0.0


def table(angles: Sequence[AngleQuality]) -> dict[str, NDArray[np.float64]]:
    """Return the figures as arrays, one entry per angle, for the results."""
    names = ("least", "most", "mean", "early", "late", "noise")
    return {name: np.array([getattr(a, name) for a in angles], np.float64) for name in names}
