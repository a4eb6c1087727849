"""Fit a model to data in chunks, in one process or over an MPI communicator."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hpc.quota import quota
from hpc.threads import paid_cpus, usable_cpus
from tessera.lsq import hybrid, multistart
from tessera.lsq.errors import DataError, FitInputError, ModelError, StartError
from tessera.lsq.guard import Guarded, NanPolicy
from tessera.lsq.hybrid import Plan
from tessera.lsq.losses import LOSSES, Loss
from tessera.lsq.model import Groups, Model, argument_names, checked_groups, takes_any_number
from tessera.lsq.objective import Objective
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.quadratic import Vector
from tessera.lsq.reduce import over
from tessera.lsq.result import Result
from tessera.lsq.sources import as_source
from tessera.lsq.threads import one_blas_thread

if TYPE_CHECKING:
    from mpi4py import MPI

BoundsLike = Any
"""``(lower, upper)``, each a number or one per parameter, or anything with ``lb`` and ``ub`` like scipy's Bounds."""


@one_blas_thread()
def fit(
    model: Callable[..., Any],
    data: Any,
    p0: ArrayLike | Mapping[str, float] | None = None,
    *,
    sigma: Any = None,
    mask: Any = None,
    bounds: BoundsLike = None,
    config: HybridStreamingConfig | str = "default",
    comm: MPI.Intracomm | None = None,
    names: Sequence[str] | None = None,
    loss: Loss = "linear",
    loss_scale: float = 1.0,
    groups: Groups | None = None,
    linear: Sequence[str] = (),
    jacobian: Callable[..., Any] | None = None,
    absolute_sigma: bool = False,
    sandwich: bool = False,
    nan_policy: NanPolicy = "raise",
    threads: int | None = None,
) -> Result:
    """Fit ``y = model(x, *parameters)`` by weighted nonlinear least squares, streaming over the data.

    Parameters
    ----------
    model
        Written with `jax.numpy`: x of shape (m,) or (k, m), m points at a time, returns shape (m,). Its value at a
        point must depend on that point alone.
    data
        ``(x, y)`` of arrays, memory maps or HDF5 datasets, a chunk source, or a function that yields ``(x, y)`` pieces
        anew at every call (see `tessera.lsq.sources`).
    p0
        Start values, in the order of the model's parameters or by name; None: inside the bounds, else 1. With groups
        one value per parameter of the model stands for all groups.
    sigma, mask
        Standard errors of y, and which points take part (with ``data`` as ``(x, y)``).
    bounds
        ``(lower, upper)``; None: unbounded.
    config
        Options, or the name of a preset.
    comm
        MPI communicator over which the chunks are shared out; collective. None: this process alone.
    names
        One name per parameter of the model; None: those of its signature.
    loss, loss_scale
        ``linear``, ``soft_l1``, ``huber``, ``cauchy`` or ``arctan``, and the residual, in units of sigma, from which on
        it matters.
    groups
        Parameters that each group of points has for itself.
    linear
        Names of parameters in which the model is linear: they need no good start and do not restrict the steps of
        the others (variable projection).
    jacobian
        ``jacobian(x, *parameters)`` of shape (m, p), in place of automatic differentiation.
    absolute_sigma, sandwich
        As in `tessera.lsq.covariance.covariance`.
    nan_policy
        What to do with data that are not finite: ``raise``, ``mask`` the points, ``skip`` their chunks.
    threads
        Chunks computed at once; None: $OMP_NUM_THREADS, else one per CPU. The result does not depend on it.

    Returns
    -------
    Result
        Its ``status`` says how the fit ended; only start values, data and models that cannot be fitted at all raise.

    Raises
    ------
    FitInputError
        `StartError`, `ModelError` or `DataError`; the message names the parameter, chunk or argument.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> x = np.linspace(0, 4, 100_000)
    >>> result = fit(lambda x, a, b, c: a * jnp.exp(-b * x) + c, (x, 2.5 * np.exp(-1.3 * x) + 0.5), [1.0, 0.5, 0.0])
    >>> [round(float(v), 6) for v in result.x]
    [2.5, 1.3, 0.5]
    """
    # Only here: fits of other objectives compile no model, and their start is mostly imports.
    from tessera.lsq.accumulate import ModelObjective, Settings

    options = HybridStreamingConfig.preset(config) if isinstance(config, str) else config
    source = Guarded(as_source(data, sigma=sigma, mask=mask, chunk_size=options.chunk_size), nan_policy)
    described = describe(model, p0, names=names, groups=groups, jacobian=jacobian)
    lower, upper = checked_bounds(bounds, described)
    x0 = checked_start(p0, described, lower, upper)
    if loss not in LOSSES or not loss_scale > 0:
        msg = f"no loss {loss!r} with scale {loss_scale!r}; losses are {', '.join(LOSSES)}, and the scale is positive"
        raise FitInputError(msg)
    if source.n_points < x0.size:
        msg = (
            f"{source.n_points} points cannot determine {x0.size} parameters ({', '.join(described.names)}); "
            "fix some or bring more data"
        )
        raise DataError(msg)
    settings = Settings(
        loss, loss_scale, threads or default_threads(), options.loop_strategy != "loop", options.precision
    )
    objective = ModelObjective(described, source, over(comm), settings)
    objective.check(x0)
    plan = Plan(options, indices(described, linear))
    if options.enable_multistart:
        small = hybrid.sample_of(objective) or objective
        advance = (
            multistart.in_turn(small, plan.lm)
            if comm is None or comm.size == 1
            else multistart.in_groups(comm, lambda add: dataclasses.replace(objective, add=add), plan.lm)
        )
        points = multistart.starts(x0, lower, upper, options)
        x0 = multistart.choose(points, lower, upper, advance, options)
    return run(objective, x0, lower, upper, plan, absolute_sigma=absolute_sigma, sandwich=sandwich)


@one_blas_thread()
def run(
    objective: Objective,
    x0: Vector,
    lower: Vector,
    upper: Vector,
    plan: Plan,
    *,
    absolute_sigma: bool = False,
    sandwich: bool = False,
) -> Result:
    """Minimise any objective from a start within the bounds; the engine's loop does the same step by step."""
    state = hybrid.start(x0, lower, upper)
    while not hybrid.done(state):
        state = hybrid.step(state, objective, plan)
    return hybrid.finish(state, objective, plan, absolute_sigma=absolute_sigma, sandwich=sandwich)


def describe(
    model: Callable[..., Any],
    p0: ArrayLike | Mapping[str, float] | None,
    *,
    names: Sequence[str] | None = None,
    groups: Groups | None = None,
    jacobian: Callable[..., Any] | None = None,
) -> Model:
    """Return the model with the names of its parameters.

    Raises
    ------
    FitInputError
        If names, start values and signature contradict each other, or groups cannot be had.
    """
    # By name the signature says how many there are, and so it must with groups: p0 may hold all groups' values.
    plain = p0 is not None and not isinstance(p0, Mapping) and groups is None
    count = np.atleast_1d(np.asarray(p0)).size if plain else None
    if names is None and isinstance(p0, Mapping) and groups is None and takes_any_number(model):
        names = tuple(p0)
    arguments = tuple(names) if names is not None else argument_names(model, count)
    if len(set(arguments)) != len(arguments):
        msg = f"names: two parameters have the same name: {', '.join(arguments)}"
        raise StartError(msg)
    if groups is not None and jacobian is not None:
        msg = "a model with groups is differentiated automatically; leave jacobian out"
        raise ModelError(msg)
    return Model(model, arguments, checked_groups(groups, arguments), jacobian)


def checked_bounds(bounds: BoundsLike, model: Model) -> tuple[Vector, Vector]:
    """Return lower and upper bounds, one per fitted parameter.

    Raises
    ------
    StartError
        If their number is wrong, one is NaN, or a lower one is not below the upper one.
    """
    if bounds is None:
        bounds = (-np.inf, np.inf)
    pair = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else tuple(bounds)
    if len(pair) != 2:
        msg = f"bounds has {len(pair)} parts; give (lower, upper)"
        raise StartError(msg)
    lower, upper = (
        _expanded(side, model, f"{which} bounds") for side, which in zip(pair, ("lower", "upper"), strict=True)
    )
    for name, low, high in zip(model.names, lower, upper, strict=True):
        if not low < high:
            msg = (
                f"{name}: the lower bound {low:g} is not below the upper bound {high:g}; give lower < upper, or "
                "write the value into the model to fix the parameter"
            )
            raise StartError(msg)
    return lower, upper


def checked_start(p0: ArrayLike | Mapping[str, float] | None, model: Model, lower: Vector, upper: Vector) -> Vector:
    """Return start values, one per fitted parameter.

    Raises
    ------
    StartError
        If their number is wrong, one is not finite, or lies outside the bounds.
    """
    if p0 is None:
        boxed = np.isfinite(lower) & np.isfinite(upper)
        low, high = np.where(np.isfinite(lower), lower, 0.0), np.where(np.isfinite(upper), upper, 0.0)
        return np.where(
            boxed,
            0.5 * (low + high),
            np.where(np.isfinite(lower), low + 1, np.where(np.isfinite(upper), high - 1, 1.0)),
        )
    x0 = _expanded(p0, model, "p0")
    for name, value, low, high in zip(model.names, x0, lower, upper, strict=True):
        if not np.isfinite(value):
            msg = f"p0: {name} = {value} is not a finite number"
            raise StartError(msg)
        if not low <= value <= high:
            msg = f"p0: {name} = {value:g} lies outside its bounds {low:g} to {high:g}; move the start or the bounds"
            raise StartError(msg)
    return x0


def _expanded(values: ArrayLike | Mapping[str, float], model: Model, what: str) -> Vector:
    """Return one value per fitted parameter from one for all, one per argument, one per parameter, or by name."""
    if isinstance(values, Mapping):
        strange = [n for n in values if n not in model.arguments]
        missing = [n for n in model.arguments if n not in values]
        if strange or missing:
            msg = f"{what}: unknown {strange}, missing {missing}; the parameters are {', '.join(model.arguments)}"
            raise StartError(msg)
        values = [values[n] for n in model.arguments]
    array = np.asarray(values, np.float64)
    names, arguments = model.names, model.arguments
    if array.ndim == 0:
        return np.full(len(names), float(array)) if what != "p0" or len(names) == 1 else _wrong(what, array, names)
    if array.shape == (len(names),):
        return array.copy()
    if array.shape == (len(arguments),):
        expanded = np.empty(len(names))
        expanded[model.layout()] = array
        return expanded
    return _wrong(what, array, names)


def _wrong(what: str, array: np.ndarray[Any, Any], names: Sequence[str]) -> Vector:
    msg = f"{what}: shape {array.shape} for {len(names)} parameters ({', '.join(names)}); give one value for each"
    raise StartError(msg)


def indices(model: Model, linear: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the fitted parameters in which the model is linear.

    Raises
    ------
    StartError
        If there is no such parameter, or none is left.
    """
    unknown = [n for n in linear if n not in model.arguments]
    if unknown:
        msg = f"linear: no parameter {unknown[0]!r}; there are {', '.join(model.arguments)}"
        raise StartError(msg)
    layout = model.layout()
    return tuple(sorted({int(i) for n in linear for i in layout[:, model.arguments.index(n)]}))


def default_threads() -> int:
    """Return how many threads a fit uses unless told: what the environment gives numeric libraries, else all CPUs."""
    set_by_user = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(set_by_user) if set_by_user.isdigit() and int(set_by_user) > 0 else paid_cpus(len(usable_cpus()), quota())
    )
