"""One pass of the laminar-flow fit over tiles of pairs of times; no exponential, sine or division per pair and angle.

For i < j, with Δ = A_j - A_i the phase and c = cos(phi0 - phi), g₁² = K sinc⁴(cΔ) and K = exp(-(decay_j - decay_i)):

* K^¼ sin(cΔ)/c and K^¼ cos(cΔ) are matrices of rank two, made of vectors over the time grid by a matrix product;
* 1/Δ is the same for all angles, so T = K^¼ sinc(cΔ) costs one multiplication, and g = T⁴;
* dg/dp = g (u_j - u_i) for diffusion parameters and H (u_j - u_i), H = 4T³ (K^¼ cos(cΔ) - T)/Δ, for those of the shear.

So Jᵀ J, Jᵀ y and the rest follow from the matrices g, H, gy, Hy, g², gH, H²: from their row and column sums and the
products u'Mv with the few vectors u: Σ M (u_j-u_i)(v_j-v_i) = Σ_j colsum uv + Σ_i rowsum uv - u'Mv - v'Mu.

Against the direct form (`tessera.xpcs.physics.g1_squared`) these are left out: the floor of g₁ at 1e-10 (changes g by
1e-20); the smoothing 1e-12 of the diffusion integral (changes an exponent by less than q²dt/2 · 1e-6); that of the
shear integral where Δ is above 3 rad (changes g by less than c² ε, ε = (q L dt/2π)² 1e-12, and far less where cΔ is
above one) or ε below 1e-10. Below 3 rad it is kept in g, to first order, but never in dg/dp (of order 1e-12 over γ̇²).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tessera.xpcs.physics import Floats
from tessera.xpcs.tiles import COLUMNS, ROWS, Filled, Tile, below
from tessera.xpcs.transport import Diffusion, Shear

BASIS: Final = 8
"""Functions whose Gram matrix a pass yields: g, g du for three diffusion parameters, H du for four of the shear."""

GROUP: Final = 2 * ROWS * COLUMNS
"""Most elements of one array of a group of angles; five such arrays and the data are the working set."""

_FLAT: Final = 2e-3
"""rad: with all phases below it, cos x - sinc x is the first two terms of its series, which are exact to 1e-15."""

_NEAR: Final = 3.0
"""rad: pairs with a larger phase hardly feel the smoothing."""

_UNSEEN: Final = 1e-10
"""rad²: g does not feel a smoothing below it."""

_COINCIDENT: Final = 1e-3
"""rad: below it sinc x is 1 - x²/6 + x⁴/120 to rounding, and the difference form would lose digits."""

# Rows of the table of vectors: three slopes of the decay, one, four slopes of the phase.
_DECAY, _ONE, _PHASE = slice(0, 3), 3, slice(4, 8)

_SQUARES: Final = 4
"""Where the squares begin among the seven matrices yg, yH, g, H, g², gH, H²; those before are linear in g or H."""


class Scratch:
    """The arrays one thread works in."""

    def __init__(self, n_phi: int, n_t: int) -> None:
        self.pair = np.empty(2 * GROUP)
        self.products = np.empty(3 * GROUP)
        self.moments = np.empty(ROWS * 7 * n_phi * BASIS)
        self.columns = np.empty((3, n_phi, n_t))


class FlowPass:
    """What a pass needs at given parameters, and the sums over a chunk of tiles.

    Parameters
    ----------
    diffusion, shear
        The integrals over the time grid, or at nodes that stand for it.
    share
        How many times a node stands for, shape (number of nodes,); None on the grid itself.
    """

    def __init__(self, diffusion: Diffusion, shear: Shear, share: Floats | None = None) -> None:
        self.diffusion, self.shear, self.share = diffusion, shear, share
        across = shear.across[:, None]
        turn = across * shear.phase
        sine, cosine = np.sin(turn), np.cos(turn)
        # sin(x_j - x_i)/c = (sin x_j/c) cos x_i - cos x_j (sin x_i/c), and the like for cos(x_j - x_i).
        self.before = np.stack([np.stack([cosine, -sine / across], axis=2), np.stack([cosine, sine], axis=2)])
        self.after = np.stack([np.stack([sine / across, cosine], axis=1), np.stack([cosine, sine], axis=1)])
        self.flat = np.abs(shear.across) * shear.phase[-1] < _FLAT
        slopes = np.concatenate([diffusion.slopes, np.zeros_like(shear.phase)[None], 4 * shear.slopes])
        # Sums of differences lose fewer digits if the vectors are about zero.
        self.table = slopes - slopes.mean(1, keepdims=True)
        self.table[_ONE] = 1.0
        self.shared = self.table if share is None else self.table * share
        kinds = ((_DECAY, _DECAY), (_DECAY, _PHASE), (_PHASE, _PHASE))
        self.pairs = [(self.table[u, None] * self.shared[v]).reshape(-1, self.table.shape[1]).T for u, v in kinds]

    def sums(self, strips: Sequence[Sequence[Filled]], scratch: Scratch) -> dict[str, Floats]:
        """Sum over some strips what `combined` makes Gram matrix, sums and products with the data of.

        Returns
        -------
        dict
            ``crossed`` Σ u_i M_ij v_j, shape (8, 7, n_phi, 8): vectors at i, matrices, angles, vectors at j; and
            ``decays``, ``mixed``, ``phases`` Σ M_ij (u_i v_i + u_j v_j) of the squares, (n_phi, 9), (n_phi, 12) and
            (n_phi, 16).
        """
        n_phi = scratch.columns.shape[1]
        crossed = np.zeros((BASIS, 7, n_phi, BASIS))
        first, end = min(tiles[0].tile.first for tiles in strips), max(tiles[-1].tile.right for tiles in strips)
        scratch.columns[..., first:end] = 0.0
        for tiles in strips:
            moments = self._moments(tiles, scratch)
            rows = slice(tiles[0].tile.first, tiles[0].tile.end)
            if self.share is None:
                crossed += _along(self.table[:, rows], moments)
            else:
                crossed[:, :2] += _along(self.table[:, rows], moments[:, :2])
                crossed[:, 2:] += _along(self.shared[:, rows], moments[:, 2:])
            scratch.columns[..., rows] += moments[:, _SQUARES:, :, _ONE].transpose(1, 2, 0)
        ends = [
            columns @ pairs[first:end]
            for columns, pairs in zip(scratch.columns[..., first:end], self.pairs, strict=True)
        ]
        return {"crossed": crossed, "decays": ends[0], "mixed": ends[1], "phases": ends[2]}

    def _moments(self, strip: Sequence[Filled], scratch: Scratch) -> Floats:
        """Sum the matrices times the vectors over the columns of a strip; shape (rows, 7, n_phi, 8)."""
        first, n_phi = strip[0].tile, len(strip[0].y)
        rows = first.end - first.first
        total = scratch.moments[: rows * 7 * n_phi * BASIS].reshape(rows, 7, n_phi, BASIS)
        total[:] = 0.0
        for filled in strip:
            tile = filled.tile
            width = tile.right - tile.left
            shared, vectors = _Shared(self, tile), self._vectors(tile)
            step = max(1, GROUP // (rows * width))
            for low in range(0, n_phi, step):
                angles = slice(low, min(low + step, n_phi))
                group = (angles.stop - low, rows, width)
                size = group[0] * rows * width
                pair = scratch.pair[: 2 * size].reshape(2, *group)
                products = scratch.products[: 3 * size].reshape(3, *group)
                weight = None if filled.weight is None else filled.weight[angles]
                shared.values(angles, pair, products[0])
                columns = scratch.columns[:, angles, tile.left : tile.right]
                _contract(vectors, (pair, products), (filled.y[angles], weight), total[:, :, angles], columns)
        return total

    def _vectors(self, tile: Tile) -> tuple[Floats, Floats, Floats]:
        """Return the vectors over the columns for the data and for the rest, and what rows are summed with."""
        columns = slice(tile.left, tile.right)
        data = np.ascontiguousarray(self.table[:, columns].T)
        if self.share is None:
            return data, data, np.ones(tile.end - tile.first)
        return data, np.ascontiguousarray(self.shared[:, columns].T), self.share[tile.first : tile.end]


def _contract(
    vectors: tuple[Floats, Floats, Floats],
    arrays: tuple[Floats, Floats],
    data: tuple[Floats, Floats | None],
    total: Floats,
    columns: Floats,
) -> None:
    """Make the seven matrices of g and H, add them times the vectors over the columns, and columns of the squares."""
    for_data, for_rest, for_rows = vectors
    pair, products = arrays
    y, weight = data
    g, h = pair

    def add(matrices: Floats, vectors: Floats, into: Floats) -> None:
        # One tall product: many small ones would spend their time on being called.
        flat = matrices.reshape(-1, matrices.shape[-1]) @ vectors
        into += flat.reshape(*matrices.shape[:-1], BASIS).transpose(2, 0, 1, 3)

    np.multiply(g, g, out=products[0])
    np.multiply(g, h, out=products[1])
    np.multiply(h, h, out=products[2])
    if weight is not None:
        products *= weight
    add(products, for_rest, total[:, _SQUARES:])
    columns += for_rows @ products
    if weight is None:
        add(pair, for_rest, total[:, 2:_SQUARES])
    else:
        add(np.multiply(pair, weight, out=products[:2]), for_rest, total[:, 2:_SQUARES])
    pair *= y
    add(pair, for_data, total[:, :2])


def _along(left: Floats, moments: Floats) -> Floats:
    """Multiply by vectors over the rows; shape (8, ...)."""
    return np.asarray((left @ moments.reshape(len(moments), -1)).reshape(BASIS, *moments.shape[1:]))


class _Shared:
    """What all angles of a tile have in common."""

    def __init__(self, at: FlowPass, tile: Tile) -> None:
        self.at, self.tile = at, tile
        rows, columns = slice(tile.first, tile.end), slice(tile.left, tile.right)
        decay, phase = at.diffusion.decay, at.shear.phase
        self.delta = phase[columns] - phase[rows, None]
        if tile.diagonal:
            self.delta[below(tile.end - tile.first)] = 1.0  # far from coincident
        with np.errstate(divide="ignore"):
            self.inverse = 1.0 / self.delta
        self.before, self.after = at.before[:, :, rows], at.after[..., columns]
        if tile.diagonal:
            self.inverse[below(tile.end - tile.first)] = 0.0
            self.fading = np.exp(-0.25 * np.maximum(decay[columns] - decay[rows, None], 0.0))
        else:
            # Seen from the first column both factors are at most one: neither overflows.
            fading_i = np.exp(0.25 * (decay[rows] - decay[tile.left]))
            fading_j = np.exp(0.25 * (decay[tile.left] - decay[columns]))
            self.before, self.after = self.before * fading_i[:, None], self.after * fading_j
            self.fading = np.outer(fading_i, fading_j)
        self.near = 0
        if at.shear.smoothing > _UNSEEN:
            self.near = int(np.searchsorted(phase[columns], phase[tile.end - 1] + _NEAR))
        self.coincident = np.nonzero(self.delta < _COINCIDENT) if self.delta.min() < _COINCIDENT else None

    def values(self, angles: slice, pair: Floats, spare: Floats) -> None:
        """Fill ``pair`` with g and H/4."""
        sinc, slope = pair
        np.matmul(self.before[:, angles], self.after[:, angles], out=pair)
        if self.tile.diagonal:
            pair *= self.fading
        sinc *= self.inverse
        slope -= sinc
        for k in np.flatnonzero(self.at.flat[angles]):
            slope[k] = self._series(float(self.at.shear.across[angles][k]))
        if self.near:
            root = 0.5 * self.at.shear.smoothing * self.inverse[:, : self.near] ** 2
            sinc[:, :, : self.near] += slope[:, :, : self.near] * root
        if self.coincident is not None:
            across = self.at.shear.across[angles, None]
            squares = across**2 * (self.delta[self.coincident] ** 2 + self.at.shear.smoothing)
            sinc[:, *self.coincident] = self.fading[self.coincident] * (1 - squares / 6 * (1 - squares / 20))
        slope *= self.inverse
        square = np.multiply(sinc, sinc, out=spare)
        sinc *= square
        slope *= sinc
        np.multiply(square, square, out=sinc)

    def _series(self, across: float) -> Floats:
        """Return K^¼ (cos x - sinc x) where x is so small that the difference would have no digits."""
        square = (across * self.delta) ** 2
        return np.asarray(self.fading * square * (square / 30 - 1 / 3))


def combined(sums: dict[str, Floats]) -> dict[str, Floats]:
    """Return Gram matrix, sums and products with the data of the `BASIS` functions from sums of `FlowPass.sums`.

    Returns
    -------
    dict
        ``gram`` (n_phi, 8, 8), ``plain`` (n_phi, 8), ``data`` (n_phi, 8).
    """
    crossed = sums["crossed"].transpose(1, 2, 0, 3)
    n_phi = crossed.shape[1]
    plain, data = np.empty((n_phi, BASIS)), np.empty((n_phi, BASIS))
    steps = crossed[:, :, _ONE] - crossed[..., _ONE]  # Σ M (v_j - v_i)
    for out, of_g, of_h in ((data, 0, 1), (plain, 2, 3)):
        out[:, 0] = crossed[of_g][:, _ONE, _ONE]
        out[:, 1:4] = steps[of_g][:, _DECAY]
        out[:, 4:] = steps[of_h][:, _PHASE]
    gram = np.empty((n_phi, BASIS, BASIS))
    gram[:, 0, 0] = crossed[4][:, _ONE, _ONE]
    gram[:, 0, 1:4] = steps[4][:, _DECAY]
    gram[:, 0, 4:] = steps[5][:, _PHASE]
    both = crossed[_SQUARES:] + crossed[_SQUARES:].transpose(0, 1, 3, 2)
    gram[:, 1:4, 1:4] = sums["decays"].reshape(n_phi, 3, 3) - both[0][:, _DECAY, _DECAY]
    gram[:, 1:4, 4:] = sums["mixed"].reshape(n_phi, 3, 4) - both[1][:, _DECAY, _PHASE]
    gram[:, 4:, 4:] = sums["phases"].reshape(n_phi, 4, 4) - both[2][:, _PHASE, _PHASE]
    gram[:, 1:, 0] = gram[:, 0, 1:]
    gram[:, 4:, 1:4] = gram[:, 1:4, 4:].transpose(0, 2, 1)
    return {"gram": gram, "plain": plain, "data": data}
