"""One pass of the static fit: g₁² is a matrix of rank one, so the data are read once and multiplied by a few vectors.

For i < j, g₁² = K = exp(decay_i) exp(-decay_j). Sums of y K (u_j - u_i) are bilinear forms of y, and sums that do not
involve the data are products of sums over rows and columns, made for all strips at once; only the squares on the
diagonal need a matrix. Left out against the direct form are the floor of g₁ and the smoothing of the integral, as in
`tessera.xpcs.kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tessera.xpcs.physics import Floats
from tessera.xpcs.tiles import ROWS, Filled, n_strips, upper
from tessera.xpcs.transport import Diffusion

BASIS: Final = 4
"""Functions whose Gram matrix a pass yields: g and g du for the three diffusion parameters."""

_ONE, _DECAY = 3, slice(0, 3)

_DATA, _PLAIN, _SQUARE, _ENDS = range(4)
"""The forms that a pass sums: u'Mv of y g, w g and w g², and Σ w g² (u_i v_i + u_j v_j)."""

_RANGE: Final = 300.0
"""How far the decay may rise from the time that exponentials are seen from: their squares do not overflow."""


@dataclass(frozen=True, slots=True)
class _View:
    """exp(-decay) as it is seen from one time, times the table; zero before that time.

    Attributes
    ----------
    faded, twice
        exp(-(decay - seen)) u and exp(-2 (decay - seen)) u, shape (n_t, 4).
    after
        Sums of ``faded``, of ``twice`` and of products of ``twice`` with the table over all times from the beginning
        of a strip, shape (number of strips + 1, 4 + 4 + 16).
    """

    faded: Floats
    twice: Floats
    after: Floats


class StaticPass:
    """What a pass needs at given parameters, and the sums over a chunk of tiles.

    Parameters
    ----------
    diffusion
        The integral over the time grid.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        n_t = diffusion.decay.size
        self.table = np.ones((n_t, BASIS))
        self.table[:, _DECAY] = (diffusion.slopes - diffusion.slopes.mean(1, keepdims=True)).T
        strips, missing = n_strips(n_t), -n_t % ROWS
        decay = np.append(diffusion.decay, np.full(missing, diffusion.decay[-1])).reshape(strips, ROWS)
        # Rows that the last strip lacks are zero here, and so in all sums.
        self.left = np.concatenate([self.table, np.zeros((missing, BASIS))]).reshape(strips, ROWS, BASIS)
        self.left = np.ascontiguousarray(self.left.transpose(0, 2, 1))
        self.fading = np.exp(-np.maximum(decay[:, None] - decay[..., None], 0.0)) * upper(ROWS, ROWS)
        self.fading[-1, :, ROWS - missing :] = 0.0
        self.views, self.view_of, seen = self._views(diffusion.decay)
        before = np.exp(decay - seen[:, None])[:, None]
        self.once = before * self.left
        self.square = before * self.once
        self.on_squares, self.on_rest = self._without_data()

    def _views(self, decay: Floats) -> tuple[list[_View], list[int], Floats]:
        """Return views of the decay, which of them each strip has, and the decay at the time it is seen from."""
        strips = len(self.left)
        views: list[_View] = []
        view_of, seen = [], np.empty(strips)
        for k in range(strips):
            end = min((k + 1) * ROWS, decay.size - 1)
            if not views or decay[end] - seen[k - 1] > _RANGE:
                views.append(self._view(decay, end))
                seen[k] = decay[end]
            else:
                seen[k] = seen[k - 1]
            view_of.append(len(views) - 1)
        return views, view_of, seen

    def _view(self, decay: Floats, first: int) -> _View:
        after = np.zeros((decay.size, 1))
        after[first:, 0] = np.exp(decay[first] - decay[first:])
        faded = after * self.table
        twice = after * faded
        pairs = (twice[:, :, None] * self.table[:, None]).reshape(-1, BASIS * BASIS)
        parts = np.add.reduceat(np.concatenate([faded, twice, pairs], axis=1), np.arange(0, decay.size, ROWS))
        return _View(
            faded, twice, np.cumsum(np.append(parts, np.zeros((1, parts.shape[1])), axis=0)[::-1], axis=0)[::-1]
        )

    def _without_data(self) -> tuple[Floats, Floats]:
        """Return the forms of g and g² on the square of each strip and right of it; each (strips, 3, 4, 4)."""
        strips = len(self.left)
        transposed = self.left.transpose(0, 2, 1)
        squared = self.fading**2
        both = squared.sum(-1) + squared.sum(-2)
        squares = [self.left @ self.fading @ transposed, self.left @ squared @ transposed]
        after = np.stack([self.views[view].after[k + 1] for k, view in enumerate(self.view_of)])
        once, twice = after[:, None, :BASIS], after[:, None, BASIS : 2 * BASIS]
        pairs = after[:, 2 * BASIS :].reshape(strips, BASIS, BASIS)
        summed = self.square.sum(2)[..., None]
        ends = self.square @ transposed * twice[..., _ONE:] + summed[:, _ONE:] * pairs
        return (
            np.stack([*squares, (both[:, None] * self.left) @ transposed], axis=1),
            np.stack([self.once.sum(2)[..., None] * once, summed * twice, ends], axis=1),
        )

    def sums(self, strips: Sequence[Sequence[Filled]]) -> dict[str, Floats]:
        """Sum over some strips what `combined` makes Gram matrix, sums and products with the data of.

        Returns
        -------
        dict
            ``forms`` (4, n_phi, 4, 4).
        """
        total = np.zeros((4, len(strips[0][0].y), BASIS, BASIS))
        for square, *rest in strips:
            self._add_square(square, total)
            for filled in rest:
                self._add_rest(filled, total)
        return {"forms": total}

    def _add_square(self, filled: Filled, total: Floats) -> None:
        """Add the square on the diagonal."""
        strip, rows = filled.tile.first // ROWS, filled.tile.end - filled.tile.first
        left, fading = self.left[strip, :, :rows], self.fading[strip, :rows, :rows]
        total[_DATA] += left @ (filled.y * fading) @ left.T
        if filled.weight is None:
            total[_PLAIN:] += self.on_squares[strip][:, None]
            return
        weighted = filled.weight * fading
        square = weighted * fading
        total[_PLAIN] += left @ weighted @ left.T
        total[_SQUARE] += left @ square @ left.T
        total[_ENDS] += ((square.sum(-1) + square.sum(-2))[:, None] * left) @ left.T

    def _add_rest(self, filled: Filled, total: Floats) -> None:
        """Add all that is right of the square."""
        tile = filled.tile
        strip = tile.first // ROWS
        view, once = self.views[self.view_of[strip]], self.once[strip]
        faded = view.faded[tile.left :]
        n_phi, rows, columns = filled.y.shape
        moments = filled.y.reshape(-1, columns) @ faded
        total[_DATA] += once @ moments.reshape(n_phi, rows, BASIS)
        if filled.weight is None:
            total[_PLAIN:] += self.on_rest[strip][:, None]
            return
        left, square, twice = self.left[strip], self.square[strip], view.twice[tile.left :]
        pairs = (twice[:, :, None] * self.table[tile.left :, None]).reshape(-1, BASIS * BASIS)
        moments = filled.weight @ np.concatenate([faded, twice, pairs], axis=1)
        total[_PLAIN] += once @ moments[..., :BASIS]
        total[_SQUARE] += square @ moments[..., BASIS : 2 * BASIS]
        total[_ENDS] += (moments[..., BASIS + _ONE][:, None] * square) @ left.T
        total[_ENDS] += (square[_ONE] @ moments[..., 2 * BASIS :]).reshape(-1, BASIS, BASIS)


def combined(sums: dict[str, Floats]) -> dict[str, Floats]:
    """Return Gram matrix, sums and products with the data of the `BASIS` functions from sums of `StaticPass.sums`.

    Returns
    -------
    dict
        ``gram`` (n_phi, 4, 4), ``plain`` (n_phi, 4), ``data`` (n_phi, 4).
    """
    forms = sums["forms"]

    def linear(form: Floats) -> Floats:
        steps = form[:, _ONE, _DECAY] - form[:, _DECAY, _ONE]
        return np.concatenate([form[:, _ONE, _ONE, None], steps], axis=1)

    gram = np.empty(forms.shape[1:])
    gram[:, 0] = gram[:, :, 0] = linear(forms[_SQUARE])
    full = forms[_ENDS] - forms[_SQUARE] - forms[_SQUARE].transpose(0, 2, 1)
    gram[:, 1:, 1:] = full[:, _DECAY, _DECAY]
    return {"gram": gram, "plain": linear(forms[_PLAIN]), "data": linear(forms[_DATA])}
