"""Uncertainties of an image from the features of its passes: variances, spectrum, directions.

Names and formulas are those of mcdo-vlm-uncertainty (``phase_two/metrics.py``, ``exp0b``, ``exp3``); the variances
here are **unbiased** (divided by T - 1), unlike `trace_pre` and `trace_post` of the moment sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOP_EIGENVALUES: Final = 10
TOP_DIMENSIONS: Final = 64
_COSINE_EDGE: Final = 1e-6
"""The original keeps cosines this far from ±1 before the arc cosine, whose slope is infinite there."""
_FLAT: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of the features of each image over the passes.

    Attributes
    ----------
    mean, variance
        Shape (N, D); the variance is unbiased.
    """

    mean: Floats
    variance: Floats


def geometry(features: NDArray[np.floating]) -> dict[str, Floats]:
    """Return all measures that need the features themselves, one pass over the images.

    Parameters
    ----------
    features
        Shape (T, N, D), the passes' features before normalisation, T >= 2.

    Returns
    -------
    dict
        Shape (N,), but ``eigs_pre`` and ``eigs_post`` (N, 10), the largest eigenvalues of the covariance first;
        ``mean_pre`` and ``variance_pre`` (N, D). ``_post`` is of the features divided by their norm.

    Raises
    ------
    ValueError
        If there are fewer than two passes.
    """
    passes = np.asarray(features, np.float64)
    if passes.ndim != 3 or passes.shape[0] < 2:
        msg = f"covariances need features of shape (passes, images, dimensions) with two passes, not {passes.shape}"
        raise ValueError(msg)
    norms = np.sqrt(np.einsum("tnd,tnd->tn", passes, passes))
    unit = passes / np.maximum(norms, _FLAT)[:, :, None]
    pre, post = _spread(passes), _spread(unit)
    found = {
        "mean_pre": pre.mean,
        "variance_pre": pre.variance,
        "trace_pre_unbiased": pre.variance.mean(axis=1),
        "trace_post_unbiased": post.variance.mean(axis=1),
        "max_dim_var": pre.variance.max(axis=1),
        "norm_var": norms.var(axis=0, ddof=1),
        **_directions(unit),
    }
    for name, data, spread in (("pre", passes, pre), ("post", unit, post)):
        spectrum = _spectrum(data - spread.mean)
        found[f"eigs_{name}"] = _leading(spectrum)
        found[f"offdiag_{name}"] = _off_diagonal(spectrum, spread.variance)
        if name == "pre":
            found |= _shape_of_spectrum(spectrum)
    return found


def _spread(passes: Floats) -> Spread:
    return Spread(passes.mean(axis=0), passes.var(axis=0, ddof=1))


def _spectrum(centred: Floats) -> Floats:
    """Return the eigenvalues, shape (N, T), falling, of XᵀX/(T-1): those of XXᵀ/(T-1), which is smaller."""
    by_image = np.ascontiguousarray(centred.transpose(1, 0, 2))
    gram = by_image @ by_image.transpose(0, 2, 1) / (centred.shape[0] - 1)
    values = np.linalg.eigvalsh(gram)[:, ::-1]
    return np.asarray(np.maximum(values, 0.0))


def _leading(spectrum: Floats) -> Floats:
    leading = np.zeros((spectrum.shape[0], TOP_EIGENVALUES))
    kept = spectrum[:, :TOP_EIGENVALUES]
    leading[:, : kept.shape[1]] = kept
    return leading


def _off_diagonal(spectrum: Floats, variance: Floats) -> Floats:
    """Return the share of the covariance's Frobenius norm that lies off its diagonal."""
    whole = (spectrum**2).sum(axis=1)
    off = np.maximum(whole - (variance**2).sum(axis=1), 0.0)
    return np.asarray(np.sqrt(off) / np.maximum(np.sqrt(whole), _FLAT))


def _shape_of_spectrum(spectrum: Floats) -> dict[str, Floats]:
    total = spectrum.sum(axis=1)
    flat = total < _FLAT
    safe = np.where(flat, 1.0, total)
    share = spectrum / safe[:, None]
    logs = np.log(np.where(share > _FLAT, share, 1.0))
    squares = np.where(flat, 1.0, (spectrum**2).sum(axis=1))
    return {
        "top_eigenvalue": spectrum[:, 0],
        "effective_rank": np.where(flat, 0.0, total**2 / squares),
        "spectral_entropy": np.where(flat, 0.0, -(share * logs).sum(axis=1)),
        "anisotropy": np.where(flat, 0.0, spectrum[:, 0] / safe),
    }


def _directions(unit: Floats) -> dict[str, Floats]:
    mean = unit.mean(axis=0)
    mean /= np.maximum(np.sqrt(np.einsum("nd,nd->n", mean, mean)), _FLAT)[:, None]
    cosines = np.einsum("tnd,nd->tn", unit, mean)
    edge = 1.0 - _COSINE_EDGE
    angles = np.arccos(np.clip(cosines, -edge, edge))
    return {"angular_var": angles.var(axis=0, ddof=1), "mean_cosine_dev": 1.0 - cosines.mean(axis=0)}


def weighted_traces(mean: Floats, variance: Floats) -> dict[str, Floats]:
    """Return variances of the dimensions that tell images apart; these need all images at once.

    Parameters
    ----------
    mean, variance
        Shape (N, D): over the passes of each image, the variance of either kind (biased or unbiased).

    Returns
    -------
    dict
        ``weighted_trace_pre``: Σ_d w_d var_d with w_d in proportion to the variance over the images of the mean;
        ``topk64_trace_pre``: mean of var_d over the 64 dimensions of largest w_d. Shape (N,).
    """
    power = mean.var(axis=0, ddof=1) if mean.shape[0] > 1 else np.zeros(mean.shape[1])
    total = power.sum()
    weights = power / total if total >= _FLAT else np.full(power.size, 1 / power.size)
    best = np.argsort(-power, kind="stable")[:TOP_DIMENSIONS]
    return {
        "weighted_trace_pre": np.einsum("nd,d->n", variance, weights),
        "topk64_trace_pre": variance[:, best].mean(axis=1),
    }
