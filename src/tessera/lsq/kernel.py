"""One pass over one chunk, compiled once: model, derivatives, products and sums fused by XLA.

A chunk is cut into tiles that fit a core's cache, and a `jax.lax.scan` inside the compiled function goes over them:
what depends on the parameters alone is moved out of that loop by XLA and computed once per chunk. (A scan that is not
compiled is traced again at every call: that is what made it slow elsewhere.) Derivatives are forward-mode, batched
over the parameters: reverse mode would go back through everything each point depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tessera.lsq.compilation import double, use_persistent_cache
from tessera.lsq.errors import ModelError
from tessera.lsq.losses import Loss, weigh
from tessera.lsq.model import Model
from tessera.lsq.objective import Order

if TYPE_CHECKING:
    from jax import Array

TILE: Final = 2048
"""Points per tile: a few dozen intermediate vectors of them fit the second-level cache."""

_UNSHARED: Final = 1 << 17
"""Multiplications of a product that XLA makes on one thread, whatever the number of CPUs. Larger ones are shared out,
and their sums over points then depend on how many share them."""
_SHORT: Final = 64
"""Points of a piece of a product, at least."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What a compiled pass computes; one compilation for each.

    Attributes
    ----------
    order, single, scores
        As in `tessera.lsq.objective.Objective.evaluate`.
    loss, loss_scale
        As in `tessera.lsq.losses.weigh`.
    tile
        Points per tile; chunks are padded to a multiple of it (see `tile_of`). 0: the chunk is one tile.
    rows
        Whether the weighted rows [J r] are returned as well, for a factorisation instead of a product.
    """

    order: Order
    single: bool = False
    scores: bool = False
    loss: Loss = "linear"
    loss_scale: float = 1.0
    tile: int = TILE
    rows: bool = False


@lru_cache(maxsize=32)
def compiled(model: Model, what: Pass) -> Callable[..., dict[str, Array]]:
    """Return ``run(theta, x, y, w)`` for chunks of any one shape.

    The result holds ``cost`` and ``gram`` (groups, q, q): products of the columns of [J r] over each group's points, J
    with respect to the model's own arguments (order 1 and 2); with ``scores`` also
    ``scores`` (groups, p, p), with ``rows`` also ``rows`` (q, m).
    """
    import jax

    use_persistent_cache()
    run = jax.jit(lambda theta, x, y, w: _chunk(model, what, theta, x, y, w))

    def call(theta: Any, x: Any, y: Any, w: Any) -> dict[str, Array]:
        with double():
            sums: dict[str, Array] = run(theta, x, y, w)
        return sums

    return call


def values(model: Model, theta: Any, x: Any, shift: Array | None = None) -> Array:
    """Return the model at points x with the parameters of each point's group, plus a shift of each argument."""
    import jax.numpy as jnp

    layout = model.layout()
    arguments = []
    for column in range(layout.shape[1]):
        shared = bool((layout[:, column] == layout[0, column]).all()) or model.groups is None
        if shared:
            value = theta[layout[0, column]]
        else:
            assert model.groups is not None  # noqa: S101 - for the type checker
            value = theta[layout[:, column]][x[model.groups.row].astype(jnp.int32)]
        arguments.append(value if shift is None else value + shift[column])
    return _vector(model.function(x, *arguments), x.shape[-1], "values")


def _vector(result: Any, m: int, what: str) -> Array:
    import jax.numpy as jnp

    f = jnp.asarray(result)
    if f.shape not in {(m,), ()}:
        msg = (
            f"the model returns {what} of shape {f.shape} for {m} points; it must return one value for each: shape "
            f"({m},)"
        )
        raise ModelError(msg)
    return jnp.broadcast_to(f, (m,))


def _chunk(model: Model, what: Pass, theta: Array, x: Array, y: Array, w: Array) -> dict[str, Array]:
    import jax
    import jax.numpy as jnp

    if what.single:
        theta, x, y, w = (a.astype(jnp.float32) for a in (theta, x, y, w))
    m = y.shape[0]
    if what.tile == 0 or m == what.tile:
        return _wide(_tile(model, what, theta, x, y, w))
    tiles = (
        jnp.moveaxis(x.reshape((*x.shape[:-1], m // what.tile, what.tile)), -2, 0),
        y.reshape(-1, what.tile),
        w.reshape(-1, what.tile),
    )

    def body(sums: dict[str, Array], tile: tuple[Array, Array, Array]) -> tuple[dict[str, Array], None]:
        part = _wide(_tile(model, what, theta, *tile))
        return {k: sums[k] + part[k] for k in sums}, None

    shapes = jax.eval_shape(lambda t: _wide(_tile(model, what, theta, *t)), tuple(a[0] for a in tiles))
    zero = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items()}
    return jax.lax.scan(body, zero, tiles)[0]


def _wide(sums: dict[str, Array]) -> dict[str, Array]:
    """Return float64 sums whatever the arithmetic was."""
    import jax.numpy as jnp

    return {k: v.astype(jnp.float64) for k, v in sums.items()}


def _tile(model: Model, what: Pass, theta: Array, x: Array, y: Array, w: Array) -> dict[str, Array]:
    import jax.numpy as jnp

    f, jacobian = _with_derivatives(model, what, theta, x)
    live = w > 0
    r = jnp.where(live, w * (f - y), 0)
    slope: Any = 1.0
    if what.loss == "linear":
        cost = 0.5 * jnp.dot(r, r)
    else:
        costs, slope, curvature = weigh(what.loss, what.loss_scale, r)
        cost = jnp.sum(costs)
    if jacobian is None:
        return {"cost": cost}
    j = jnp.where(live, w * jacobian, 0)
    if what.loss == "linear":
        rows = _stacked(j, r)
    else:
        root = jnp.sqrt(curvature)
        rows = _stacked(j * root, slope * r / root)
    gram = jnp.swapaxes(_product(_by_group(model, x, rows), rows), -1, -2)
    if what.loss == "linear":  # the product has it: a sum of its own would take a third of the time of a small model
        cost = 0.5 * jnp.sum(gram[:, -1, -1])
    sums = {"cost": cost, "gram": gram}
    if what.scores:
        scored = j * (slope * r)
        sums["scores"] = _product(_by_group(model, x, scored), scored)
    if what.rows:
        sums["rows"] = rows
    return sums


def _product(a: Array, b: Array) -> Array:
    """Return a bᵀ, sums over points in an order that does not depend on the number of CPUs: made in small parts."""
    import jax
    import jax.numpy as jnp

    flat = a.reshape(-1, a.shape[-1])
    rows = max(_UNSHARED // (_SHORT * b.shape[0]), 1)
    if flat.shape[0] <= rows:
        return _by_pieces(flat, b).reshape(*a.shape[:-1], b.shape[0])
    blocks = jnp.pad(flat, ((0, -flat.shape[0] % rows), (0, 0))).reshape(-1, rows, flat.shape[1])
    product: Array = jax.lax.map(lambda block: _by_pieces(block, b), blocks).reshape(-1, b.shape[0])
    product = product[: flat.shape[0]]
    return product.reshape(*a.shape[:-1], b.shape[0])


def _by_pieces(a: Array, b: Array) -> Array:
    """Return a bᵀ, points in pieces one after the other."""
    import jax
    import jax.numpy as jnp

    m = b.shape[-1]
    piece = max(_UNSHARED // (a.shape[0] * b.shape[0]), _SHORT)
    if m <= piece:
        return a @ b.T

    def add(total: Array, first: Array) -> tuple[Array, None]:
        left, right = (jax.lax.dynamic_slice_in_dim(v, first, piece, axis=-1) for v in (a, b))
        return total + left @ right.T, None

    whole = m // piece * piece
    rest: Array = a[:, whole:] @ b[:, whole:].T
    return jax.lax.scan(add, rest, jnp.arange(0, whole, piece))[0]


def _stacked(j: Array, r: Array) -> Array:
    """Return [J r] as rows in memory.

    On a CPU XLA makes of a concatenation a branch per element, which would cost more than the model (12 of 20 ns per
    point for an exponential); written in place, and kept from being fused into the product, it costs nothing.
    """
    import jax.numpy as jnp

    p = j.shape[0]
    rows: Array = _kept(jnp.zeros((p + 1, r.shape[0]), r.dtype).at[:p].set(j).at[p].set(r))
    return rows


def _kept(values: Any) -> Any:
    """Return the same, written to memory instead of being computed again wherever it is used."""
    import jax

    barrier: Any = jax.lax.optimization_barrier
    return barrier(values)


def _by_group(model: Model, x: Array, rows: Array) -> Array:
    """Return the rows once per group, with zeros at the points of the others: (groups, q, m)."""
    import jax.numpy as jnp

    if model.groups is None:
        return rows[None]
    mine = x[model.groups.row][None] == jnp.arange(model.groups.count, dtype=x.dtype)[:, None]
    return jnp.where(mine[:, None, :], rows[None], 0)


def _with_derivatives(model: Model, what: Pass, theta: Array, x: Array) -> tuple[Array, Array | None]:
    """Return the model and its Jacobian with respect to its arguments, shape (arguments, m)."""
    import jax
    import jax.numpy as jnp

    if what.order == 0:
        return values(model, theta, x), None
    p = len(model.arguments)
    if model.jacobian is not None:
        jacobian = jnp.asarray(model.jacobian(x, *(theta[i] for i in model.layout()[0])))
        if jacobian.shape != (x.shape[-1], p):
            msg = f"the model's Jacobian has shape {jacobian.shape}; it must be (points, parameters): {x.shape[-1], p}"
            raise ModelError(msg)
        return values(model, theta, x), jacobian.T
    f, tangent = jax.linearize(lambda shift: values(model, theta, x, shift), jnp.zeros(p, theta.dtype))
    return f, jax.vmap(tangent)(jnp.eye(p, dtype=theta.dtype))


def tile_of(chunk_size: int) -> int:
    """Return the points per tile: near `TILE`, and a divisor of the chunk if there is one, so that none is padded."""
    near = [t for t in range(TILE // 2, TILE + TILE // 4, 8) if chunk_size % t == 0]
    return min(near, key=lambda t: abs(t - TILE), default=TILE)


def padded(m: int, tile: int) -> int:
    """Return the number of points, filled up to whole tiles."""
    return m if tile == 0 else -(-m // tile) * tile


def trace(model: Model, x: np.ndarray[Any, Any]) -> None:
    """Trace the model once, without running it.

    Raises
    ------
    ModelError
        If it cannot be traced or returns another shape than one value per point.
    """
    import jax

    p = int(model.layout().max()) + 1
    try:
        with double():
            jax.eval_shape(lambda t, v: values(model, t, v), np.zeros(p), np.zeros(x.shape))
    except (TypeError, IndexError, jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = (
            f"the model cannot be traced by JAX ({type(error).__name__}: {first}); write it with jax.numpy instead of "
            "numpy or math, and without branches on values"
        )
        raise ModelError(msg) from error
