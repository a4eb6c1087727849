"""Covariance of the parameters from the local model at the minimum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.quadratic import Quadratic
from tessera.lsq.subproblem import column_scale, degenerate, linearised


def covariance(q: Quadratic, *, absolute: bool = False, regularization: float = 1e-14) -> NDArray[np.float64]:
    """Return the covariance of the parameters.

    Parameters
    ----------
    q
        The local model at the minimum. With ``scores`` the covariance is the sandwich H⁻¹ S H⁻¹ (Huber 1967; White
        1980), which holds also where the errors of the data are wrong or not of one size; else it is H⁻¹.
    absolute
        Whether the errors of the data are what they say; else H⁻¹ is multiplied by chi² per degree of freedom.
    regularization
        Eigenvalues of the scaled JᵀJ below this fraction of the largest count as zero.

    Returns
    -------
    numpy.ndarray
        Shape (p, p). Rows and columns of parameters that the data do not determine are infinite, as is everything
        where there is no degree of freedom to tell the errors from.
    """
    p = q.x.size
    freedom = q.count - p
    if not absolute and q.scores is None and freedom <= 0:
        return np.full((p, p), np.inf)
    scale = column_scale(q)
    problem = linearised(q, scale, regularization)
    _, s, vt = np.linalg.svd(problem.a, full_matrices=False)
    keep = s > problem.cutoff * max(float(s[0]), np.finfo(float).tiny)
    root = vt[keep].T / s[keep] / scale[:, None]
    inverse = root @ root.T
    if q.scores is not None:
        found = inverse @ q.scores @ inverse
    else:
        found = inverse if absolute else inverse * (2 * q.cost / freedom)
    lost = degenerate(problem)
    found[lost, :] = np.inf
    found[:, lost] = np.inf
    return np.asarray(0.5 * (found + found.T))
