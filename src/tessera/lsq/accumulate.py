"""The objective of a user's model: a pass over chunks of data, reduced over ranks.

Rounding: within a tile of some thousand points sums are those of a matrix product, tiles of a chunk are added one after
the other, chunks in pairs. The relative error of a sum of positive terms is thus below (tile + tiles per chunk +
log2 chunks) eps, some 5e-13, whatever the number of points. Where one chunk holds all data its rows are
factorised (QR) instead of multiplied, so that the condition number of J is not squared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.compilation import double
from tessera.lsq.errors import ModelError
from tessera.lsq.guard import Guarded
from tessera.lsq.kernel import Pass, compiled, padded, tile_of, trace, values
from tessera.lsq.losses import Loss
from tessera.lsq.model import Model
from tessera.lsq.objective import Order, Sum
from tessera.lsq.profile import phase
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.lsq.sources import Chunk, prefetched

Arrays = Mapping[str, NDArray[Any]]

_SINGLE: Final = 1_000_000  # points from which a pass in float32 saves more than its compilation costs
_UNSHARED: Final = 8000  # elements of a matrix that no BLAS shares out over threads
_ROWS: Final = 1 << 22  # bytes of [J r] up to which a single chunk is factorised


@dataclass(frozen=True)
class Settings:
    """How a model is summed over data.

    Attributes
    ----------
    loss, loss_scale
        Robust loss and its scale in standard errors.
    threads
        Chunks computed at the same time.
    scan
        Whether the loop over the tiles of a chunk is inside the compiled function.
    precision
        ``float32`` or ``float64``; ``auto``: float32 where the caller says it will do, there are a million points or
        more, and the data can be told apart in it.
    """

    loss: Loss = "linear"
    loss_scale: float = 1.0
    threads: int = 1
    scan: bool = True
    precision: str = "auto"


@dataclass(frozen=True)
class ModelObjective:
    """Sum of weighted squares (or a robust loss) of a model's residuals over a chunk source.

    Attributes
    ----------
    model, source, add
        Model, checked data, and the sum over chunks and ranks.
    settings
        How. (Without ``scan`` the tiles of a chunk are looped over in Python.)
    every
        Only every so many-th chunk takes part: a sample.
    """

    model: Model
    source: Guarded
    add: Sum
    settings: Settings = Settings()
    every: int = 1
    _moments: dict[str, float] = field(default_factory=dict)
    _samples: dict[int, ModelObjective] = field(default_factory=dict, init=False, repr=False)  # never of another sum

    @property
    def names(self) -> tuple[str, ...]:
        """One name per parameter."""
        return self.model.names

    @property
    def chunks(self) -> range:
        """The chunks that take part."""
        return range(0, self.source.n_chunks, self.every)

    def sample(self, every: int) -> ModelObjective:
        """Return the objective of every so many-th chunk."""
        if every not in self._samples:
            self._samples[every] = replace(self, every=every, _moments={})
        return self._samples[every]

    def check(self, x0: Vector) -> None:
        """Try the model on the first chunk.

        Raises
        ------
        ModelError
            If it cannot be traced, returns another shape, is not finite, or depends on a point's neighbours.
        """
        chunk = self.source.read(0)
        trace(self.model, chunk.x)
        what = self._pass(2, single=False, scores=False)
        out = self._contribution(what, x0, chunk, first=False)
        if not all(np.isfinite(v).all() for v in out.values()):
            raise ModelError(_not_finite(self.model, x0, chunk))
        if what.tile:
            self._require_pointwise(what, x0, chunk)

    def evaluate(self, x: Vector, *, order: Order = 2, single: bool = False, scores: bool = False) -> Quadratic:
        """Pass over the data once; see `tessera.lsq.objective.Objective`."""
        theta = np.asarray(x, np.float64)
        first = not self._moments
        if first and single:
            self.evaluate(theta, order=0)  # a resumed warm-up: whether float32 will do is a matter of all data
            first = False
        what = self._pass(order, single, scores)

        def contributions(mine: range) -> Iterator[Arrays]:
            indices = self.chunks[mine.start : mine.stop]
            pool, waiting = _pool(self.settings.threads), deque[Future[Arrays]]()
            for _, chunk in prefetched(self.source, indices):
                if len(waiting) >= self.settings.threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(self._contribution, what, theta, chunk, first))
            while waiting:
                yield waiting.popleft().result()

        with phase("accumulation"):
            sums = self.add(len(self.chunks), contributions)
        if first:
            self._moments.update(_moments(sums))
        return self._quadratic(theta, sums, order)

    def _require_pointwise(self, what: Pass, x0: Vector, chunk: Chunk) -> None:
        """Change every second point and see whether the others notice."""
        odd = np.arange(chunk.y.size) % 2 == 1
        live = ~odd if chunk.mask is None else ~odd & chunk.mask
        changed = np.where(odd, chunk.x[..., :1], chunk.x)
        one = self._contribution(what, x0, replace(chunk, mask=live), first=False)
        two = self._contribution(what, x0, replace(chunk, mask=live, x=changed), first=False)
        if not np.allclose(one["gram"], two["gram"], rtol=1e-9, atol=0.0):
            msg = (
                "the model's value at a point depends on the other points it is called with; data are passed in "
                "chunks, so compute such things (means, maxima, grids) beforehand and let the model use the result"
            )
            raise ModelError(msg)

    def _pass(self, order: Order, single: bool, scores: bool) -> Pass:
        s = self.settings
        many = self.source.n_points // self.every >= _SINGLE
        low = s.precision == "float32" or (single and s.precision == "auto" and many and not self._moments["blunt"])
        m = min(self.source.chunk_size, self.source.n_points)
        small = len(self.chunks) == 1 and 8 * (len(self.model.arguments) + 1) * m <= _ROWS
        rows = small and order > 0 and not low and self.model.groups is None
        # Rows are factorised here, block by block; products of long rows would be shared out over threads by XLA, in an
        # order that depends on their number: they are made tile by tile.
        tile = 0 if rows else tile_of(self.source.chunk_size)
        return Pass(order, low, scores, s.loss, s.loss_scale, tile, rows)

    def _contribution(self, what: Pass, theta: Vector, chunk: Chunk, first: bool) -> Arrays:
        w = _weights(chunk)
        size = min(self.source.chunk_size, self.source.n_points) if len(self.chunks) > 1 else chunk.y.size
        fill = padded(size, what.tile) - chunk.y.size
        # Padding repeats the last point: a model that is finite on the data stays so.
        edge = [(0, 0)] * (chunk.x.ndim - 1) + [(0, fill)]
        x = np.pad(chunk.x, edge, mode="edge") if fill else chunk.x
        y, weights = (np.pad(chunk.y, (0, fill)), np.pad(w, (0, fill))) if fill else (chunk.y, w)
        step = y.size if self.settings.scan or what.rows else what.tile
        run = compiled(self.model, what)
        sums: dict[str, NDArray[Any]] = {}
        for first_of in range(0, y.size, step):
            part = slice(first_of, first_of + step)
            out = run(theta, np.ascontiguousarray(x[..., part]), y[part], weights[part])
            sums = {k: np.asarray(v) + sums.get(k, 0) for k, v in out.items()}
        if what.rows:
            del sums["gram"]
            sums["root"] = _triangle(sums.pop("rows"))
            if what.loss == "linear":
                with np.errstate(over="ignore"):  # a trial far off: an infinite cost is rejected
                    sums["cost"] = np.array(0.5 * np.sum(sums["root"][:, -1] ** 2))
        sums["count"] = np.array(np.count_nonzero(w), np.int64)
        sums["rejected"] = np.array(w.size, np.int64) - sums["count"]
        return sums | (_sums_of_data(chunk.y, w) | {"blunt": np.array(float(not self.source.single))} if first else {})

    def _quadratic(self, theta: Vector, sums: dict[str, NDArray[Any]], order: Order) -> Quadratic:
        p = theta.size
        layout = self.model.layout()
        gradient, hessian = np.zeros(p), np.zeros((p, p))
        if "gram" in sums:
            for index, gram in zip(layout, sums["gram"], strict=True):
                hessian[np.ix_(index, index)] += gram[:-1, :-1]
                gradient[index] += gram[:-1, -1]
        scores = None
        if "scores" in sums:
            scores = np.zeros((p, p))
            for index, middle in zip(layout, sums["scores"], strict=True):
                scores[np.ix_(index, index)] += middle
        root = sums.get("root") if order > 0 else None
        if root is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                full = root.T @ root
            hessian, gradient = full[:p, :p], full[:p, p]
        known = {k: sums[k] for k in ("cost", "count", "rejected")}
        arrays = {**known, "gradient": gradient, "hessian": hessian, "power": np.array(self._moments["power"])}
        q = Quadratic.from_sums(theta, arrays | ({} if scores is None else {"scores": scores}))
        return replace(q, root=root, spread=self._moments["spread"])


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads that compute chunks; kept, because every new thread leaves a heap of its own behind."""
    return ThreadPoolExecutor(threads, "tiles")


def _not_finite(model: Model, x0: Vector, chunk: Chunk) -> str:
    """Return the message for a model that is not finite at the start values."""
    with double():
        f = np.asarray(values(model, np.asarray(x0), chunk.x))
    start = ", ".join(f"{n} = {v:g}" for n, v in zip(model.names, x0, strict=True))
    bad = np.flatnonzero(~np.isfinite(f))
    if not bad.size:
        return f"the model's derivatives are not finite at the start values {start}; start elsewhere"
    return (
        f"the model is {f[bad[0]]} at the start values {start}, first at point {bad[0]} of chunk 0 with x = "
        f"{chunk.x[..., bad[0]]}; start elsewhere or mask such points"
    )


def _weights(chunk: Chunk) -> NDArray[np.float64]:
    """Return 1/sigma, and 0 where a point does not take part."""
    w = np.ones(chunk.y.size) if chunk.sigma is None else 1.0 / np.asarray(chunk.sigma, np.float64)
    return w if chunk.mask is None else np.where(chunk.mask, w, 0.0)


def _sums_of_data(y: NDArray[Any], w: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    weighted = w * y
    return {
        "w2": np.array(np.sum(w * w)),
        "w2y": np.array(np.sum(w * weighted)),
        "w2yy": np.array(np.sum(weighted * weighted)),
    }


def _moments(sums: Arrays) -> dict[str, float]:
    total, mean, square = (float(sums[k]) for k in ("w2", "w2y", "w2yy"))
    count = max(int(sums["count"]), 1)
    blunt = float(sums["blunt"])
    return {"power": square, "blunt": blunt, "spread": max(square - mean**2 / total, 0.0) / count if total > 0 else 0.0}


def _triangle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the triangular factor of the transposed rows, filled up to a square.

    Blocks are factorised one after the other, each with the factor so far on top (Golub & Van Loan, section 5.3.9),
    small enough for no BLAS to use threads on them: the bits would depend on how many.
    """
    q = rows.shape[0]
    if not np.isfinite(rows).all():
        return np.full((q, q), np.nan)
    block = max(_UNSHARED // q, 2 * q)
    factor = np.zeros((0, q))
    for first in range(0, rows.shape[1], block):
        stacked = np.concatenate([factor, rows[:, first : first + block].T])
        factor = np.asarray(np.linalg.qr(stacked, mode="r"))
    square = np.zeros((q, q))
    square[: factor.shape[0]] = factor
    return square
