"""C₂ away from the diagonal at a few nodes per 32 times: a small stand-in for the data, to start a fit with.

Where the model is smooth over `ROWS` x `ROWS` pairs of times, Σ y F ≈ Σ_ab Y_ab F(node_a, node_b) with Y = Lᵀ y L, and
L the polynomials that are one at one node and zero at the others. Nodes and weights are those of Gauss's rule for sums
over equally spaced points, whose orthogonal polynomials are Gram's (Golub & Welsch, Math. Comp. 23, 221, 1969): sums
without data are exact to degree 2·NODES - 1. Squares on the diagonal are kept as they are. Fits end on all data, so an
error here costs a pass and not the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tessera.xpcs import native
from tessera.xpcs.physics import Floats
from tessera.xpcs.tiles import ROWS, Filled, Place, Strip, n_strips
from tessera.xpcs.transport import Diffusion, Shear

NODES: Final = 8
"""Nodes per segment of `ROWS` times."""

_DEGREE: Final = 12
"""Of the polynomials by which integrals over time are carried from the grid to the nodes."""


@dataclass(frozen=True)
class Nodes:
    """Where the nodes of a time grid lie. A last segment that is shorter than the others has its own times as nodes.

    Attributes
    ----------
    n_t
        Number of times.
    spread
        Lᵀ, shape (NODES, ROWS).
    values
        From values at the times of a segment to values at its nodes, shape (ROWS, NODES).
    share
        Times that each node stands for, shape (number of nodes,).
    """

    n_t: int
    spread: Floats
    values: Floats
    share: Floats

    def at(self, vector: Floats) -> Floats:
        """Return vectors over the times, shape (..., n_t), at the nodes."""
        whole = self.n_t // ROWS * ROWS
        parts = vector[..., :whole].reshape(*vector.shape[:-1], -1, ROWS) @ self.values
        return np.concatenate([parts.reshape(*vector.shape[:-1], -1), vector[..., whole:]], axis=-1)

    def first(self, time: int) -> int:
        """Return the index of the first node of the segment that begins at a time; for the end of the grid, the end."""
        return min(time, self.n_t) // ROWS * NODES if time < self.n_t or self.n_t % ROWS == 0 else self.share.size


def nodes_of(n_t: int) -> Nodes:
    """Return the nodes of a grid of n_t times."""
    polynomials = _gram(np.arange(float(ROWS)), ROWS)  # orthonormal over the times
    k = np.arange(1, NODES)
    off = 0.5 * k * np.sqrt((ROWS**2 - k**2) / (4.0 * k**2 - 1))
    positions, vectors = np.linalg.eigh(np.diag(off, 1) + np.diag(off, -1))
    weights = ROWS * vectors[0] ** 2
    at_nodes = _gram(positions + 0.5 * (ROWS - 1), _DEGREE)
    spread = weights[:, None] * (at_nodes[:, :NODES] @ polynomials[:, :NODES].T)
    values = polynomials[:, :_DEGREE] @ at_nodes.T
    whole, rest = divmod(n_t, ROWS)
    return Nodes(n_t, np.ascontiguousarray(spread), values, np.concatenate([np.tile(weights, whole), np.ones(rest)]))


def _gram(points: Floats, count: int) -> Floats:
    """Return the first Gram polynomials, orthonormal over 0 … ROWS-1, at some points; shape (points, count)."""
    x = np.asarray(points, float) - 0.5 * (ROWS - 1)
    k = np.arange(1, count + 1)
    off = 0.5 * k * np.sqrt(np.maximum(ROWS**2 - k**2, 0) / (4.0 * k**2 - 1))
    out = np.zeros((x.size, count))
    out[:, 0] = ROWS**-0.5
    for n in range(1, count):
        before = out[:, n - 2] * off[n - 2] if n > 1 else 0.0
        out[:, n] = (x * out[:, n - 1] - before) / off[n - 1]
    return out


def compress(strip: Strip, nodes: Nodes) -> Strip:
    """Return a strip with what is right of its square at nodes; that `Place` counts nodes.

    Without weights a node stands for as many times as its share says; weights, where there are any, hold the shares.
    """
    rest = strip.rest
    place = rest.place
    if not place.width:
        return strip
    first, left = nodes.first(place.first), nodes.first(place.left)
    small = Place(first, NODES, left, nodes.share.size - left)

    def carried(block: Floats) -> Floats:
        out = native.aligned((len(block), NODES, small.stride))
        out[:] = 0.0
        native.to_nodes(nodes.spread, block, place.width, out)
        return out

    weight = None if rest.weight is None else carried(rest.weight)
    return Strip(strip.square, Filled(small, carried(rest.y), weight), strip.fixed)


def at_nodes(diffusion: Diffusion, shear: Shear, nodes: Nodes) -> tuple[Diffusion, Shear]:
    """Return the integrals at the nodes."""
    return (
        Diffusion(nodes.at(diffusion.decay), nodes.at(diffusion.slopes)),
        Shear(nodes.at(shear.phase), nodes.at(shear.slopes), shear.across, shear.turning, shear.smoothing),
    )


def worth_while(n_t: int) -> bool:
    """Return whether a grid is so long that nodes stand for it well and save time."""
    return n_strips(n_t) >= _FEWEST_STRIPS


_FEWEST_STRIPS: Final = 16
