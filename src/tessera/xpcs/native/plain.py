"""The sums of the C library in NumPy, for installations without a C compiler: the same formulas, pair by pair.

Slower, and equal to the compiled sums but for rounding. What is left out of the C sums is left out here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.xpcs.physics import Floats

_COINCIDENT = 1e-3
_LEAST_CURVATURE = 0.1
_ROWS, _NODES = 32, 8


def flow_sums(at: Any, data: Any, out: Floats, *, diagonal: bool) -> None:
    """Add the sums over a block, see `tessera.xpcs.native.flow_sums`."""
    decay, phase, slopes, sine, cosine, across, share, flat = at.arrays[:8]
    robust, place = at.arrays[8], data.struct
    y, weight = data.arrays
    rows, columns = _axes(place.first, place.rows, place.left, place.width)
    inside = columns > rows if diagonal else np.ones(np.broadcast_shapes(rows.shape, columns.shape), bool)
    apart = slopes[:, columns[0]][:, None, :] - slopes[:, rows[:, 0]][:, :, None]
    fade = np.where(inside, np.exp(0.25 * np.where(inside, decay[rows] - decay[columns], 0.0)), 0.0)
    delta = np.where(inside, phase[columns] - phase[rows], 1.0)
    shares = None if share is None or diagonal else share[rows] * share[columns]
    for angle, wide in enumerate(across):
        root, slope = _sinc(sine[angle], cosine[angle], rows, columns, delta, wide, at.struct.smoothing, flat[angle])
        root, slope = root * fade, slope * fade
        g, h = root**4, slope * root**3
        functions = np.concatenate([g[None], g * apart[:3], h * apart[3:]])
        on = _cut(weight, angle, place)
        _add(functions, _cut(y, angle, place), shares if on is None else on, inside, _at(robust, angle), out[angle])


def static_sums(at: Any, data: Any, out: Floats) -> None:
    """Add the sums over a strip, see `tessera.xpcs.native.static_sums`."""
    decay, slopes = at.arrays[:2]
    robust, place = at.arrays[4], data.struct
    square, on_square, rest, on_rest = data.arrays
    first, n_rows = place.first, place.rows
    for left, width, y, weight in ((first, n_rows, square, on_square), (first + n_rows, place.width, rest, on_rest)):
        rows, columns = _axes(first, n_rows, left, width)
        inside = columns > rows
        g = np.where(inside, np.exp(np.where(inside, decay[rows] - decay[columns], 0.0)), 0.0)
        apart = slopes[:, columns[0]][:, None, :] - slopes[:, rows[:, 0]][:, :, None]
        functions = np.concatenate([g[None], g * apart])
        for angle in range(at.struct.n_phi):
            values, on = y[angle, :, :width], None if weight is None else weight[angle, :, :width]
            _add(functions, values, on, inside, _at(robust, angle), out[angle])


def read_mean(c2: np.ndarray[Any, Any], place: tuple[int, int, int, int], y: Floats) -> Floats:
    """Fill a block with the mean of both halves less one, see `tessera.xpcs.native.read_mean`."""
    first, rows, left, width = place
    row, column = _axes(*place)
    inside = column > row if left == first else np.ones((rows, width), bool)
    above = c2[:, first : first + rows, left : left + width].astype(np.float64) - 1.0
    below = c2[:, left : left + width, first : first + rows].astype(np.float64).transpose(0, 2, 1) - 1.0
    np.copyto(y[..., :width], 0.5 * (above + below), where=inside)
    half = np.where(inside, 0.5 * (above - below), 0.0)
    return np.asarray((half * half).sum((1, 2)))


def sum_squares(y: Floats) -> Floats:
    """Return Σy and Σy² of each angle."""
    flat = y.reshape(len(y), -1)
    return np.stack([flat.sum(1), (flat * flat).sum(1)], axis=1)


def to_nodes(spread: Floats, y: Floats, width: int, out: Floats) -> None:
    """Carry a rectangle to nodes, see `tessera.xpcs.native.to_nodes`."""
    segments = width // _ROWS
    # Without BLAS, whose sums would depend on the number of angles.
    across = np.einsum("ai,pij->paj", spread, y[..., :width])
    whole = across[..., : segments * _ROWS].reshape(*across.shape[:2], segments, _ROWS)
    ends = segments * _NODES
    out[..., :ends] = np.einsum("pasj,bj->pasb", whole, spread).reshape(*across.shape[:2], ends)
    out[..., ends : ends + width - segments * _ROWS] = across[..., segments * _ROWS :]


def _axes(first: int, rows: int, left: int, width: int) -> tuple[Any, Any]:
    """Return the times of the rows, (rows, 1), and of the columns, (1, width)."""
    return np.arange(first, first + rows)[:, None], np.arange(left, left + width)[None, :]


def _cut(block: Floats | None, angle: int, place: Any) -> Floats | None:
    return None if block is None else block[angle, :, : place.width]


def _sinc(
    sine: Floats, cosine: Floats, rows: Any, columns: Any, delta: Floats, across: float, smoothing: float, flat: bool
) -> tuple[Floats, Floats]:
    """Return sinc of the phase between two times, and (cos - sinc)/delta; see ``flow.h``."""
    close = np.ones(delta.shape, bool) if flat else delta < _COINCIDENT
    inverse = 1.0 / np.where(close, 1.0, delta)
    sinc = (sine[columns] * (cosine[rows] / across) - cosine[columns] * (sine[rows] / across)) * inverse
    apart = cosine[columns] * cosine[rows] + sine[columns] * sine[rows] - sinc
    sinc = sinc + apart * (0.5 * smoothing * inverse * inverse)
    square = across * across * delta * delta
    smooth = square + across * across * smoothing
    series = 1.0 - smooth / 6.0 * (1.0 - smooth / 20.0)
    slope = across * across * delta * (square / 30.0 - 1.0 / 3.0)
    return np.where(close, series, sinc), np.where(close, slope, apart * inverse)


def _add(functions: Floats, y: Any, w: Floats | None, inside: Any, robust: Any, out: Floats) -> None:
    """Add products with the data, sums, the upper half of the Gram matrix, and what a robust pass adds."""
    k = len(functions)
    if robust is not None:
        w, y, rho = _reweighed(functions[0], y, w, robust)
        w, y = np.where(inside, w, 0.0), np.where(inside, y, 0.0)
        out[(k + 2) * k :] += (w.sum(), y.sum(), np.where(inside, rho, 0.0).sum())
    on = functions if w is None else functions * w
    out[:k] += np.einsum("kij,ij->k", functions, np.where(inside, y, 0.0))
    out[k : 2 * k] += on.sum((1, 2))
    out[2 * k : (k + 2) * k] += np.triu(np.einsum("kij,lij->kl", on, functions)).ravel()


def _at(robust: Any, angle: int) -> tuple[int, bool, float, float, float, float] | None:
    """Return loss, whether scores are meant, 1/C², and of an angle 1/σ², contrast and offset."""
    if robust is None:
        return None
    struct, (scale, contrast, offset) = robust.struct, robust.arrays
    return struct.loss, bool(struct.scores), struct.inverse, scale[angle], contrast[angle], offset[angle]


def _reweighed(g: Floats, y: Floats, weight: Floats | None, robust: Any) -> tuple[Floats, Floats, Floats]:
    """Return weights, weighted residuals and losses, see ``robust.h``."""
    loss, scores, inverse, scale, contrast, offset = robust
    own = np.ones_like(g) if weight is None else weight
    r = offset + contrast * g - np.divide(y, own, out=np.zeros_like(g), where=own > 0.0)
    rho, slope, curvature = _rho(loss, scale * inverse * own * r * r)
    wr = own * slope * r
    return (scale * wr) ** 2 if scores else own * curvature, wr, rho


def _rho(loss: int, z: Floats) -> tuple[Floats, Floats, Floats]:
    """Return a loss, its slope and its curvature, in the order of ``enum loss``."""
    rho, slope, bend = z, np.ones_like(z), np.zeros_like(z)
    if loss == 1:
        root = np.sqrt(1.0 + z)
        rho, slope, bend = 2.0 * z / (root + 1.0), 1.0 / root, -0.5 / root**3
    elif loss == 2:
        root = np.sqrt(np.maximum(z, 1.0))
        rho, slope = np.where(z <= 1.0, z, 2.0 * root - 1.0), 1.0 / root
        bend = np.where(z <= 1.0, 0.0, -0.5 / root**3)
    elif loss == 3:
        slope = 1.0 / (1.0 + z)
        rho, bend = np.log1p(z), -(slope**2)
    elif loss == 4:
        slope = 1.0 / (1.0 + z * z)
        rho, bend = np.arctan(z), -2.0 * z * slope**2
    return rho, slope, np.maximum(slope + 2.0 * z * bend, _LEAST_CURVATURE * slope)
