"""One pass of the static fit: g₁² is a matrix of rank one, so the data are read once and multiplied by a few vectors.

For i < j, g₁² = K = exp(decay_i) exp(-decay_j). Sums of y K (u_j - u_i) are bilinear forms of y, and sums that do not
involve the data are products of sums over rows and columns, made for all strips at once; only the squares on the
diagonal are summed pair by pair. That is what ``native/static.c`` does. Left out against the direct form are the floor
of g₁ and the smoothing of the integral, as in `tessera.xpcs.kernel`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tessera.xpcs import native
from tessera.xpcs.kernel import n_sums
from tessera.xpcs.physics import Floats
from tessera.xpcs.tiles import ROWS, Strip, n_strips
from tessera.xpcs.transport import Diffusion

_RANGE: Final = 300.0
"""How far the decay may rise from the time that exponentials are seen from: their squares do not overflow."""


class StaticPass:
    """What a pass needs at given parameters, and the sums over a strip.

    Parameters
    ----------
    diffusion
        The integral over the time grid.
    n_phi
        Number of angles.
    weights
        What `native.robust` returns, for weights that depend on the residuals.
    """

    def __init__(self, diffusion: Diffusion, n_phi: int, weights: native.Kept | None = None) -> None:
        self._n_phi = n_phi
        decay = diffusion.decay
        # Sums of differences lose fewer digits if the vectors are about zero.
        slopes = native.padded(diffusion.slopes - diffusion.slopes.mean(1, keepdims=True))
        self._views, starts = _views(decay)
        seen = decay[starts]
        faded = native.aligned((seen.size, 1 + len(slopes), slopes.shape[1]))
        faded[:] = 0.0
        for view, start in zip(faded, starts, strict=True):
            view[0, start : decay.size] = np.exp(decay[start] - decay[start:])
            np.multiply(view[0], slopes, out=view[1:])
        self._at = native.static_pass((native.padded(decay), slopes, faded, seen), decay.size, n_phi, weights)
        self._after = native.static_after(self._at, self._views)

    def sums(self, strips: list[tuple[int, Strip]]) -> Floats:
        """Return sums over some strips, given with their numbers, that `kernel.combined` takes; shape (n_phi, 27)."""
        out = np.zeros((self._n_phi, n_sums(native.STATIC_FUNCTIONS)))
        for number, strip in strips:
            native.static_sums(self._at, strip.for_static, int(self._views[number]), self._after[number], out)
        return out


def _views(decay: Floats) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], list[int]]:
    """Return from which of some times each strip sees what is right of it, and those times."""
    views, starts = np.empty(n_strips(decay.size), np.intp), list[int]()
    for strip in range(views.size):
        end = min((strip + 1) * ROWS, decay.size - 1)
        if not starts or decay[end] - decay[starts[-1]] > _RANGE:
            starts.append(end)
        views[strip] = len(starts) - 1
    return views, starts
