"""One pass of the static fit: g₁² is a matrix of rank one, so the data are read once and multiplied by a few vectors.

For i < j, g₁² = K = exp(decay_i) exp(-decay_j). Sums of y K (u_j - u_i) are bilinear forms of y, and sums that do not
involve the data are products of sums over rows and columns; only the squares on the diagonal need a matrix.
Left out against the direct form are the floor of g₁ and the smoothing of the integral, as in `tessera.xpcs.kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tessera.xpcs.physics import Floats
from tessera.xpcs.tiles import Filled, upper
from tessera.xpcs.transport import Diffusion

BASIS: Final = 4
"""Functions whose Gram matrix a pass yields: g and g du for the three diffusion parameters."""

_ONE, _DECAY = 3, slice(0, 3)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Bilinear forms u'Mv of y g, w g and w g², and Σ w g² (u_i v_i + u_j v_j); each (n_phi, 4, 4)."""

    data: Floats
    plain: Floats
    square: Floats
    ends: Floats


class StaticPass:
    """What a pass needs at given parameters, and the sums over a chunk of tiles.

    Parameters
    ----------
    diffusion
        The integral over the time grid.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        self.decay = diffusion.decay
        ones = np.ones_like(self.decay)[None]
        self.table = np.concatenate([diffusion.slopes - diffusion.slopes.mean(1, keepdims=True), ones])

    def sums(self, strips: Sequence[Sequence[Filled]]) -> dict[str, Floats]:
        """Return Gram matrix, sums and products with the data of the `BASIS` functions over some strips.

        Returns
        -------
        dict
            ``gram`` (n_phi, 4, 4), ``plain`` (n_phi, 4), ``data`` (n_phi, 4).
        """
        n_phi = len(strips[0][0].y)
        total = _Sums(*np.zeros((4, n_phi, BASIS, BASIS)))
        for strip in strips:
            self._square(strip[0], total)
            if len(strip) > 1:
                self._rest(strip[1:], total)
        return _combine(total)

    def _square(self, filled: Filled, total: _Sums) -> None:
        """Add the square on the diagonal."""
        rows = slice(filled.tile.first, filled.tile.end)
        left = self.table[:, rows]
        fading = np.exp(-np.maximum(self.decay[rows] - self.decay[rows, None], 0.0)) * upper(*filled.y.shape[1:])
        total.data[:] += left @ (filled.y * fading) @ left.T
        weighted = fading if filled.weight is None else filled.weight * fading
        square = weighted * fading
        total.plain[:] += left @ weighted @ left.T
        total.square[:] += left @ square @ left.T
        both = square.sum(-1) + square.sum(-2)
        total.ends[:] += (both[..., None, :] * left) @ left.T

    def _rest(self, tiles: Sequence[Filled], total: _Sums) -> None:
        """Add the tiles right of the square; seen from the first column no exponential overflows."""
        first = tiles[0].tile
        before = np.exp(self.decay[first.first : first.end] - self.decay[first.left])
        left = self.table[:, first.first : first.end]
        moments = np.zeros((len(tiles[0].y), first.end - first.first, BASIS))
        for filled in tiles:
            tile = filled.tile
            after = np.exp(self.decay[first.left] - self.decay[tile.left : tile.right])
            right = self.table[:, tile.left : tile.right]
            faded = after * right
            moments += (filled.y.reshape(-1, after.size) @ faded.T).reshape(moments.shape)
            if filled.weight is None:
                self._products(before, left, faded, after * faded, right, total)
            else:
                self._weighted(filled.weight, before, left, faded, after * faded, right, total)
        total.data[:] += (left * before) @ moments

    @staticmethod
    def _products(before: Floats, left: Floats, faded: Floats, twice: Floats, right: Floats, total: _Sums) -> None:
        """Add what does not involve the data: products of sums over rows and over columns."""
        once = left * before
        square = once * before
        total.plain[:] += np.outer(once.sum(1), faded.sum(1))
        total.square[:] += np.outer(square.sum(1), twice.sum(1))
        total.ends[:] += square @ left.T * twice[_ONE].sum() + square[_ONE].sum() * (twice @ right.T)

    @staticmethod
    def _weighted(
        weight: Floats, before: Floats, left: Floats, faded: Floats, twice: Floats, right: Floats, total: _Sums
    ) -> None:
        once = left * before
        square = once * before
        pairs = (twice[:, None] * right).reshape(BASIS * BASIS, -1)
        moments = weight @ np.concatenate([faded, twice, pairs]).T
        total.plain[:] += once @ moments[..., :BASIS]
        total.square[:] += square @ moments[..., BASIS : 2 * BASIS]
        total.ends[:] += (moments[..., BASIS + _ONE][:, None] * square) @ left.T
        total.ends[:] += (square[_ONE] @ moments[..., 2 * BASIS :]).reshape(-1, BASIS, BASIS)


def _combine(total: _Sums) -> dict[str, Floats]:
    """Make sums over pairs of the bilinear forms."""

    def linear(forms: Floats) -> Floats:
        steps = forms[:, _ONE, _DECAY] - forms[:, _DECAY, _ONE]
        return np.concatenate([forms[:, _ONE, _ONE, None], steps], axis=1)

    square = linear(total.square)
    gram = np.empty((len(square), BASIS, BASIS))
    gram[:, 0] = gram[:, :, 0] = square
    full = total.ends - total.square - total.square.transpose(0, 2, 1)
    gram[:, 1:, 1:] = full[:, _DECAY, _DECAY]
    return {"gram": gram, "plain": linear(total.plain), "data": linear(total.data)}
