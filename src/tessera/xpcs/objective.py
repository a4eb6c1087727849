"""The XPCS fit as an objective of `tessera.lsq`: sums over the tiles of C₂, from which cost and derivatives follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.losses import Loss
from tessera.lsq.objective import Order, Sum
from tessera.lsq.quadratic import Quadratic, Vector
from tessera.xpcs import coarse, native
from tessera.xpcs.arguments import check_geometry, check_loss, check_names, errors_of, time_grid
from tessera.xpcs.assemble import Shape, assemble, assemble_at, noise_cost, scale_of, scores_at
from tessera.xpcs.dataset import ArrayC2, C2Rows
from tessera.xpcs.kernel import FlowPass, combined
from tessera.xpcs.kernel_static import StaticPass
from tessera.xpcs.physics import Floats, Parameter, parameters_of
from tessera.xpcs.room import Room
from tessera.xpcs.scaling import make
from tessera.xpcs.start import noise_variances, quantile_scaling
from tessera.xpcs.tiles import Strip, n_chunks, read_strip, strips_of
from tessera.xpcs.transport import Grid, diffusion, shear


class XpcsObjective:
    """`tessera.lsq.objective.Objective` of two-time correlations.

    Each pair of different times counts once. If C₂ is not symmetric, its halves are taken as two measurements: cost,
    count and JᵀJ are those of the whole square. Values that are NaN or infinite are left out. By least squares contrast
    and offset are eliminated; with a robust loss they are parameters like the others, and the mean of both halves is
    one measurement.

    Parameters
    ----------
    c2
        Shape (n_phi, n_t, n_t), or a reader of rows.
    phi
        Angles of the wavevector, deg, shape (n_phi,).
    q
        Wavevector, 1/Å.
    dt
        Time between frames, s; or give ``times``.
    times
        Of the frames, s, evenly spaced, shape (n_t,); dt·(0 … n_t-1) by default.
    gap
        Between stator and rotor, Å; for laminar flow.
    model
        ``static_isotropic``, ``static_anisotropic`` or ``laminar_flow``.
    scaling
        See `tessera.xpcs.scaling.make`.
    sigma
        Standard error of a value of C₂: one number, one per angle, or an array like C₂ (symmetric); 1 by default.
    fixed
        Values of physical parameters that are not fitted.
    add
        How contributions of chunks are added up over ranks; in this process by default.
    threads
        Threads that share the chunks of this rank.
    hold
        Whether the upper triangle may be kept in memory; else it is read in every pass over all data.
    loss, loss_scale
        As in `tessera.lsq.losses`; the scale in standard errors.

    Raises
    ------
    XpcsInputError
        If shapes or units do not fit.
    ParameterError
        If the model, the scaling or a name is not known.
    """

    def __init__(
        self,
        c2: NDArray[Any] | C2Rows,
        phi: NDArray[Any] | float,
        *,
        q: float,
        dt: float | None = None,
        times: NDArray[Any] | None = None,
        gap: float | None = None,
        model: str = "laminar_flow",
        scaling: str = "auto",
        sigma: float | NDArray[Any] | None = None,
        fixed: Mapping[str, float] | None = None,
        add: Sum | None = None,
        threads: int = 1,
        hold: bool = True,
        loss: Loss = "linear",
        loss_scale: float = 1.0,
    ) -> None:
        self._c2: C2Rows = ArrayC2(c2) if isinstance(c2, np.ndarray) else c2
        angles = np.atleast_1d(np.asarray(phi, np.float64))
        check_geometry(self._c2, angles, q, gap, model)
        self.grid = Grid(time_grid(self._c2.n_t, dt, times), angles, float(q), gap)
        parameters = parameters_of(model)
        self.model = model
        self.given = {} if fixed is None else dict(fixed)
        check_names(self.given, parameters)
        self.free = tuple(k for k, p in enumerate(parameters) if p.name not in self.given)
        self._base = np.array([self.given.get(p.name, p.start) for p in parameters])
        constant = quantile_scaling(self._c2) if scaling == "constant" else None
        self.scaling = make(scaling, angles, constant)
        self.parameters: tuple[Parameter, ...] = tuple(parameters[k] for k in self.free)
        self._precision, self._weights = errors_of(sigma, self._c2)
        self._add = add
        self._threads, self._hold = threads, hold
        check_loss(loss, loss_scale)
        self.loss, self._loss_scale = loss, loss_scale
        self._strips: dict[int, Strip] = {}
        self._room = Room()
        self.nodes: coarse.Nodes | None = None
        self._whole: XpcsObjective = self
        self._fixed: Floats | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Physical parameters that are fitted, then contrasts, then offsets."""
        return (*(p.name for p in self.parameters), *self.scaling.names)

    @property
    def linear(self) -> tuple[int, ...]:
        """Indices of contrasts and offsets, where they are eliminated."""
        if self.loss != "linear":
            return ()
        return tuple(range(len(self.free), len(self.names)))

    @property
    def lower(self) -> Vector:
        """Lower bounds: homodyne's."""
        return np.concatenate([[p.lower for p in self.parameters], self.scaling.lower])

    @property
    def upper(self) -> Vector:
        """Upper bounds: homodyne's."""
        return np.concatenate([[p.upper for p in self.parameters], self.scaling.upper])

    @cached_property
    def small(self) -> XpcsObjective:
        """What a fit is started with, by least squares: a stand-in for the data (see `tessera.xpcs.coarse`), or all."""
        if self.nodes is not None:
            return self
        coarsely = self.model == "laminar_flow" and coarse.worth_while(self._c2.n_t)
        if not coarsely and self.loss == "linear":
            return self
        small = object.__new__(XpcsObjective)
        small.__dict__.update(self.__dict__)
        small.loss = "linear"
        if not coarsely:
            small.__dict__["small"] = small
            return small
        small.nodes = coarse.nodes_of(self._c2.n_t)
        small._strips, small._hold, small._whole = {}, True, self
        return small

    def noise_cost(self) -> float:
        """Return the cost that noise alone leaves, judged by differences of neighbours; after a pass. Collective."""
        if self._fixed is None:
            msg = "the cost of noise is known only after a pass"
            raise RuntimeError(msg)
        return noise_cost(self._fixed, self._variances, self._precision)

    @cached_property
    def _variances(self) -> Floats:
        return noise_variances(self._c2, self._sum())

    def physical(self, x: Vector) -> Floats:
        """Return all physical parameters, also those that are fixed; shape (3,) or (7,)."""
        out = self._base.copy()
        out[list(self.free)] = x[: len(self.free)]
        return out

    def scaling_at(self, x: Vector) -> tuple[Floats, Floats]:
        """Return contrast and offset of each angle, each of shape (n_phi,)."""
        contrast, offset = self.scaling.at(np.asarray(x[len(self.free) :], float)).T
        return contrast, offset

    def evaluate(self, x: Vector, *, order: Order = 2, single: bool = False, scores: bool = False) -> Quadratic:  # noqa: ARG002
        """Pass over the data once (for the sandwich covariance twice).

        Parameters
        ----------
        x
            As `names`. By least squares contrast and offset do not matter, and those returned are optimal.
        order, single
            All is computed in float64 in any case.
        scores
            Whether to add the middle of the sandwich covariance.
        """
        if self.loss == "linear":
            q = assemble(self._sums(x), x, self._shape(x))
        else:
            q = assemble_at(self._sums(x, self._weights_at(x)), x, self._shape(x), self._loss_scale)
        if not scores:
            return q
        middle = scores_at(self._sums(q.x, self._weights_at(q.x, scores=True)), q.x, self._shape(q.x))
        return dataclasses.replace(q, scores=middle)

    def _shape(self, x: Vector) -> Shape:
        flow = self.model == "laminar_flow"
        turning = shear(self.grid, self.physical(x)).turning if flow else None
        return Shape(self.scaling, np.array(self.free), self._precision, turning)

    def _weights_at(self, x: Vector, *, scores: bool = False) -> native.Kept:
        """Return what weights that depend on the residuals are made with."""
        if self._fixed is None:
            self._sums(x)  # whether the halves of C₂ are two measurements is known once they were read
        assert self._fixed is not None  # noqa: S101 - for the type checker
        contrast, offset = self.scaling_at(x)
        scaling = (scale_of(self._fixed, self._precision), contrast, offset - 1.0)
        return native.robust(self.loss, self._loss_scale, scaling, scores=scores)

    def _sums(self, x: Vector, weights: native.Kept | None = None) -> dict[str, Floats]:
        at = _Pass(self, self.physical(x), weights)

        def contributions(mine: range) -> Iterator[Mapping[str, NDArray[Any]]]:
            if self._threads == 1 or len(mine) < 2:
                yield from map(at.chunk, mine)
                return
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(self._threads) as pool:
                yield from pool.map(at.chunk, mine)

        sums = self._sum()(n_chunks(self._c2.n_t), contributions)
        self._fixed = sums["fixed"]
        functions = native.FLOW_FUNCTIONS if self.model == "laminar_flow" else native.STATIC_FUNCTIONS
        return {**combined(sums["sums"], functions), "fixed": sums["fixed"]}

    def _sum(self) -> Sum:
        if self._add is None:
            from tessera.lsq.reduce import serial

            self._add = serial()
        return self._add

    def strip(self, k: int) -> Strip:
        """Return the data of a strip, read or, of the stand-in, compressed when they are first needed."""
        if k in self._strips:
            return self._strips[k]
        if self.nodes is None:
            strip = read_strip(self._c2, self._weights, k, self._room.empty if self._hold else native.aligned)
        else:
            strip = coarse.compress(self._whole.strip(k), self.nodes)
        if self._hold:
            self._strips[k] = strip
        return strip


class _Pass:
    """The kernels at given parameters."""

    def __init__(self, objective: XpcsObjective, physical: Floats, weights: native.Kept | None = None) -> None:
        self._objective = objective
        grid, nodes = objective.grid, objective.nodes
        decay = diffusion(grid, physical)
        self._nodes: FlowPass | None = None
        self._times: FlowPass | StaticPass
        if objective.model != "laminar_flow":
            self._times = StaticPass(decay, grid.phi.size, weights)
            return
        phase = shear(grid, physical)
        self._times = FlowPass(decay, phase, weights=weights)
        if nodes is not None:
            self._nodes = FlowPass(*coarse.at_nodes(decay, phase, nodes), nodes.share)

    def chunk(self, number: int) -> dict[str, Floats]:
        """Return the sums over a chunk."""
        objective = self._objective
        numbers = strips_of(number, objective.grid.times.size)
        strips = [objective.strip(k) for k in numbers]
        fixed = np.sum([strip.fixed for strip in strips], axis=0)
        if isinstance(self._times, StaticPass):
            return {"sums": self._times.sums(list(zip(numbers, strips, strict=True))), "fixed": fixed}
        rest = [strip.rest for strip in strips if strip.rest.place.width]
        sums = self._times.sums([strip.square for strip in strips])
        sums += (self._nodes or self._times).sums(rest)
        return {"sums": sums, "fixed": fixed}
