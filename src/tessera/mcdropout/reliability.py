"""How far repeated trials agree on which images are uncertain, and what that is worth.

Formulas and gates are those of mcdo-vlm-uncertainty (``reliability_from_trials``, ``status_from_metrics``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Status = Literal["usable", "marginal", "failed", "insufficient_trials"]

USABLE_RHO: Final = 0.8
USABLE_SNR: Final = 2.0
USABLE_ICC: Final = 0.75
FAILED_RHO: Final = 0.6
FAILED_SNR: Final = 1.0
MORE_PASSES: Final = 512
"""Passes up to which a marginal model is worth trying, as the original's plan has it."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Agreement of K trials on N images.

    Attributes
    ----------
    signal, noise, snr
        Variance between the images' means, mean variance within an image, and their ratio.
    icc
        ICC(1,1) of Shrout & Fleiss (1979): one-way random effects, single trial.
    pairwise_spearman_median, pairwise_spearman_iqr, pairwise_spearman_q25, pairwise_spearman_q75
        Of the rank correlations of all K(K-1)/2 pairs of trials.
    """

    num_trials: int
    num_images: int
    signal: float
    noise: float
    snr: float
    icc: float
    pairwise_spearman_median: float
    pairwise_spearman_iqr: float
    pairwise_spearman_q25: float
    pairwise_spearman_q75: float

    @property
    def status(self) -> Status:
        """The original's verdict; a single trial says nothing about reliability."""
        if self.num_trials < 2:
            return "insufficient_trials"
        rho = self.pairwise_spearman_median
        if rho >= USABLE_RHO and self.snr >= USABLE_SNR and self.icc >= USABLE_ICC:
            return "usable"
        return "failed" if rho < FAILED_RHO or self.snr < FAILED_SNR else "marginal"

    def record(self) -> dict[str, Any]:
        """Return the original's JSON keys, ``status`` included."""
        return {**asdict(self), "status": self.status}


def reliability(values: ArrayLike) -> Reliability:
    """Measure the agreement of trials.

    Parameters
    ----------
    values
        Shape (K, N): an uncertainty of each image from each trial.

    Returns
    -------
    Reliability
        All measures NaN where K < 2.

    Raises
    ------
    ValueError
        If the shape is wrong, there are fewer than two images, or a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        msg = f"reliability needs values of shape (trials, images) with at least two images, not {array.shape}"
        raise ValueError(msg)
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        msg = f"the value of trial {bad[0]}, image {bad[1]} is not finite; leave that image out of all trials"
        raise ValueError(msg)
    k, n = array.shape
    if k < 2:
        return Reliability(k, n, *(float("nan"),) * 8)
    means = array.mean(axis=0)
    signal = float(means.var(ddof=1))
    noise = float(array.var(axis=0, ddof=1).mean())
    between, within = k * signal, noise  # the mean squares of a one-way analysis of variance
    total = between + (k - 1) * within
    rho = spearman_matrix(array)[np.triu_indices(k, 1)]
    low, high = np.percentile(rho, [25.0, 75.0])
    return Reliability(
        num_trials=k,
        num_images=n,
        signal=signal,
        noise=noise,
        snr=signal / noise if noise > 0 else float("inf"),
        icc=(between - within) / total if total > 0 else 0.0,
        pairwise_spearman_median=float(np.median(rho)),
        pairwise_spearman_iqr=float(high - low),
        pairwise_spearman_q25=float(low),
        pairwise_spearman_q75=float(high),
    )


def spearman_matrix(rows: ArrayLike) -> Floats:
    """Return the rank correlations between rows, shape (K, K); 0 where a row is constant, 1 on the diagonal.

    Parameters
    ----------
    rows
        Shape (K, N); ties get their average rank.
    """
    ranks = rankdata(np.asarray(rows, np.float64), axis=1)
    # Centred ranks are multiples of 1/2: their sums of products are exact, whatever the order of summation.
    centred = ranks - (ranks.shape[1] + 1) / 2
    products = centred @ centred.T
    scale = np.sqrt(np.outer(np.diag(products), np.diag(products)))
    rho = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(rho, 1.0)
    return np.asarray(np.clip(rho, -1.0, 1.0))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return the rank correlation of two rows; 0 where one of them is constant."""
    return float(spearman_matrix(np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)]))[0, 1])


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve by the rank sum (Mann & Whitney); NaN where a class is empty.

    Parameters
    ----------
    scores
        Shape (N,).
    labels
        Shape (N,), true for what high scores should find.
    """
    positive = np.asarray(labels, bool)
    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    ranks = rankdata(np.asarray(scores, np.float64))
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def go_no_go(statuses: Iterable[Status]) -> str:
    """Return what the verdicts of all models at all T together say: ``go``, or why not and what next."""
    found = set(statuses)
    if "usable" in found:
        return "go"
    if "marginal" in found:
        return f"marginal: raise the passes, up to T = {MORE_PASSES}"
    return "insufficient_trials: run at least two trials" if found == {"insufficient_trials"} else "no-go"
