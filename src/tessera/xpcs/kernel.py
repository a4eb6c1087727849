"""One pass of the laminar-flow fit over blocks of pairs of times; no exponential, sine or division per pair and angle.

For i < j, with Δ = A_j - A_i the phase and c = cos(phi0 - phi), g₁² = K sinc⁴(cΔ) and K = exp(-(decay_j - decay_i)):

* K^¼ is a product of two exponentials, sin(cΔ)/c and cos(cΔ) are sums of two products of sines and cosines;
* 1/Δ is the same for all angles, so T = K^¼ sinc(cΔ) costs a few multiplications, and g = T⁴;
* dg/dp = g (u_j - u_i) for diffusion parameters and, of the shear, h (v_j - v_i), h = 4T³ (K^¼ cos(cΔ) - T)/Δ.

So Jᵀ J, Jᵀ y and the rest follow from the matrices g, h, gy, hy, g², gh, h²: from sums over their rows and columns and
products u'Mv with the few vectors u and v: Σ M (u_j-u_i)(v_j-v_i) = Σ_j colsum uv + Σ_i rowsum uv - u'Mv - v'Mu.
That is what ``native/flow.c`` sums, in one go per row.

Against the direct form (`tessera.xpcs.physics.g1_squared`) these are left out: the floor of g₁ at 1e-10 (changes g by
1e-20); the smoothing 1e-12 of the diffusion integral (changes an exponent by less than q²dt/2 · 1e-6). That of the
shear, ε = (q L dt/2π)² 1e-12, is kept in g to first order, but not in dg/dp (of order 1e-12 over γ̇²).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tessera.xpcs import native
from tessera.xpcs.physics import Floats
from tessera.xpcs.tiles import Filled
from tessera.xpcs.transport import Diffusion, Shear

_FLAT: Final = 2e-3
"""rad: with all phases below it, sinc x and cos x - sinc x are the first terms of their series, exact to 1e-15."""

_SLOPES: Final = native.FLOW_FUNCTIONS - 1
"""Vectors over the times: three slopes of the decay, four of the phase."""


class FlowPass:
    """What a pass needs at given parameters, and the sums over blocks of data.

    Parameters
    ----------
    diffusion, shear
        The integrals over the time grid, or at nodes that stand for it.
    share
        How many times a node stands for, shape (number of nodes,); None on the grid itself.
    weights
        What `native.robust` returns, for weights that depend on the residuals; not with shares.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        shear: Shear,
        share: Floats | None = None,
        weights: native.Kept | None = None,
    ) -> None:
        self._n_phi = shear.across.size
        slopes = np.concatenate([diffusion.slopes, 4 * shear.slopes])
        # Sums of differences lose fewer digits if the vectors are about zero.
        slopes -= slopes.mean(1, keepdims=True)
        turn = shear.across[:, None] * shear.phase
        vectors = [diffusion.decay, shear.phase, slopes, np.sin(turn), np.cos(turn)]
        flat = np.abs(shear.across) * shear.phase[-1] < _FLAT
        self._at = native.flow_pass(
            [native.padded(v) for v in vectors],
            shear.across,
            flat,
            None if share is None else native.padded(share),
            shear.smoothing,
            weights,
        )

    def sums(self, blocks: list[Filled]) -> Floats:
        """Return sums over some blocks that `combined` takes, shape (n_phi, 83)."""
        out = np.zeros((self._n_phi, n_sums(native.FLOW_FUNCTIONS)))
        for filled in blocks:
            native.flow_sums(self._at, filled.for_flow, out, diagonal=filled.place.diagonal)
        return out


def n_sums(functions: int) -> int:
    """Return how many numbers hold the sums of some functions with data, alone and with each other, and the rest."""
    return functions * (functions + 2) + native.EXTRA_SUMS


def combined(sums: Floats, functions: int) -> dict[str, Floats]:
    """Return Gram matrix, sums and products with the data of the functions that a pass sums.

    Parameters
    ----------
    sums
        Products with the data, sums, the upper half of the Gram matrix, and what a robust pass adds; shape
        (n_phi, `n_sums`).
    functions
        Their number k: g, g (u_j - u_i) for three diffusion parameters and, with flow, h (v_j - v_i) for four of the
        shear.

    Returns
    -------
    dict
        ``gram`` (n_phi, k, k), ``plain`` (n_phi, k), ``data`` (n_phi, k); and ``extra`` (n_phi, 3): of a robust pass
        the sums of weights, of weighted residuals, and of the loss.
    """
    k = functions
    half = np.triu(sums[:, 2 * k : (k + 2) * k].reshape(-1, k, k))
    gram = half + np.triu(half, 1).transpose(0, 2, 1)
    return {"gram": gram, "plain": sums[:, k : 2 * k], "data": sums[:, :k], "extra": sums[:, (k + 2) * k :]}
