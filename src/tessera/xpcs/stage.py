"""What the XPCS job hands to the engine's fit stage: the problem that is minimised, and the files it ends in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hpc.store.atomic import write_atomically, write_bytes
from tessera.lsq.hybrid import Plan
from tessera.lsq.objective import Objective, Sum
from tessera.lsq.quadratic import Vector
from tessera.lsq.result import Result
from tessera.lsq.stage import Problem, cosine
from tessera.xpcs import first_fit, outputs
from tessera.xpcs.dataset import Dataset
from tessera.xpcs.fit import limits, start_vector
from tessera.xpcs.fit_file import write_fit
from tessera.xpcs.fitted import AngleFit, Fitted, compare, joined, parted
from tessera.xpcs.fitted_npz import npz_bytes, write_npz
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.options import XpcsOptions
from tessera.xpcs.physics import parameters_of
from tessera.xpcs.quality import AngleQuality, table

if TYPE_CHECKING:
    from hpc.context import Context

_GIB: Final = 2**30


@dataclass(frozen=True)
class Loaded:
    """The data, and what is known of them before the fit.

    Attributes
    ----------
    dataset
        The correlations.
    quality
        One record per angle.
    sigma
        Noise of a value: measured, or as given.
    notes
        What the reader of the results should know.
    """

    dataset: Dataset
    quality: tuple[AngleQuality, ...]
    sigma: float
    notes: tuple[str, ...]


def gap_of(options: XpcsOptions) -> float | None:
    """Return the gap in Å, None where nothing flows."""
    return options.analyzer_parameters.geometry.stator_rotor_gap if options.analysis_mode == "laminar_flow" else None


def fixed_of(options: XpcsOptions) -> dict[str, float]:
    """Return the parameters of this model that are not fitted, and their values."""
    names = {p.name for p in parameters_of(options.analysis_mode)}
    return {k: v for k, v in options.initial_parameters.fixed_parameters.items() if k in names}


def objective_of(
    options: XpcsOptions, dataset: Dataset, sigma: float, add: Sum | None = None, *, threads: int = 1, ranks: int = 1
) -> XpcsObjective:
    """Return what is minimised.

    Raises
    ------
    XpcsInputError
        If options and data do not fit together.
    """
    kept = options.experimental_data.in_memory
    return XpcsObjective(
        dataset.rows,
        dataset.phi,
        q=dataset.q,
        times=dataset.times,
        gap=gap_of(options),
        model=options.analysis_mode,
        scaling=options.optimization.per_angle_mode,
        sigma=sigma,
        fixed=fixed_of(options),
        add=add,
        threads=threads,
        hold=8 * dataset.n_points <= ranks * _GIB if kept == "auto" else kept,
        loss=options.optimization.loss,
        loss_scale=options.optimization.loss_scale,
    )


def vectors(options: XpcsOptions, objective: XpcsObjective) -> tuple[Vector, Vector, Vector]:
    """Return start, lower and upper bounds; values for parameters that this fit does not have do not matter.

    Raises
    ------
    ParameterError
        If a start lies outside of its bounds.
    """
    bounds = {k: v for k, v in options.parameter_space.bounds.items() if k in objective.names}
    values = {k: v for k, v in options.initial_parameters.values.items() if k in objective.names}
    lower, upper = limits(objective, bounds)
    return start_vector(objective, values, lower, upper), lower, upper


def problem_of(options: XpcsOptions, loaded: Loaded, ctx: Context) -> Problem:
    """Return the fit stage's problem."""

    def build(add: Sum) -> XpcsObjective:
        return objective_of(options, loaded.dataset, loaded.sigma, add, threads=ctx.threads, ranks=ctx.size)

    def last(objective: Objective, x: Vector) -> Mapping[str, NDArray[Any]]:
        assert isinstance(objective, XpcsObjective)  # noqa: S101 - `build` made it
        physical = objective.physical(x)
        contrast, offset = objective.scaling_at(x)
        fitted = Fitted(loaded.dataset, physical, gap_of(options), contrast, offset, loaded.sigma)
        return {"physical": physical, "contrast": contrast, "offset": offset, **_compared(fitted, ctx)}

    objective = objective_of(options, loaded.dataset, loaded.sigma)
    x0, lower, upper = vectors(options, objective)
    plan = Plan(options.optimization.config(), objective.linear)
    absolute, sandwich = options.optimization.sigma != "auto", options.optimization.errors == "sandwich"
    return Problem(
        build,
        x0,
        lower,
        upper,
        plan,
        absolute_sigma=absolute,
        sandwich=sandwich,
        first=_First(x0, lower, upper),
        last=last,
    )


class _First:
    """The first fit, as steps of the stage."""

    def __init__(self, x0: Vector, lower: Vector, upper: Vector) -> None:
        self._x0, self._fits = x0, first_fit.FirstFits(lower, upper)

    def begin(self, objective: Objective, x: Vector) -> dict[str, NDArray[Any]]:
        """Return the state before the first pass.

        The winner of a tournament may lie where no data can lead further; the configured start is tried as well.
        """
        assert isinstance(objective, XpcsObjective)  # noqa: S101 - `build` made it
        starts = [x] if np.array_equal(x, self._x0) else [x, self._x0]
        return first_fit.to_arrays(self._fits.begin(objective, starts))

    def step(self, objective: Objective, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Make one pass."""
        assert isinstance(objective, XpcsObjective)  # noqa: S101 - `build` made it
        return first_fit.to_arrays(self._fits.step(first_fit.from_arrays(state), objective))

    def found(self, state: Mapping[str, NDArray[Any]]) -> Vector | None:
        """Return where the first fit ended."""
        return np.array(state["x"]) if state["done"] else None

    def figures(self, state: Mapping[str, NDArray[Any]]) -> dict[str, float | str]:
        """Return which start is tried, cost, length of the step, gradient and radius."""
        first = first_fit.from_arrays(state)
        told: dict[str, float | str] = {"start": first.starts}
        if first.looking:
            return {"phase": "first fit: constant rates", "cost": first.cost}
        if first.lm.at is not None:
            told |= {"cost": first.lm.at.cost, "step": first.lm.length, "gradient": cosine(first.lm.at)}
            told |= {"radius": first.lm.radius, "decrement": first.lm.decrement}
        return told


def _compared(fitted: Fitted, ctx: Context) -> dict[str, NDArray[Any]]:
    """Compare all angles with the fit, each on one rank. Collective."""
    mine = [compare(fitted, angle) for angle in ctx.my_chunks(fitted.dataset.rows.n_phi)]
    parts: list[list[AngleFit]] | None = ctx.ranks.gather(mine)
    whole = None if parts is None else joined([angle for part in parts for angle in part])
    return ctx.ranks.bcast_arrays(whole)


def write_results(
    options: XpcsOptions, loaded: Loaded, result: Result, extra: Mapping[str, NDArray[Any]], ctx: Context
) -> None:
    """Write ``parameters.json``, ``analysis_results_nlsq.json``, ``convergence_metrics.json``, ``fit.h5`` and maps."""
    contrast, offset = np.asarray(extra["contrast"]), np.asarray(extra["offset"])
    fitted = Fitted(loaded.dataset, np.asarray(extra["physical"]), gap_of(options), contrast, offset, loaded.sigma)
    _, lower, upper = vectors(options, objective_of(options, loaded.dataset, loaded.sigma))
    finding = outputs.Finding(
        model=options.analysis_mode,
        scaling=options.optimization.per_angle_mode,
        loss=(options.optimization.loss, options.optimization.loss_scale),
        errors=options.optimization.errors,
        result=result,
        lower=lower,
        upper=upper,
        fixed=fixed_of(options),
        fitted=fitted,
        angles=parted(extra),
        quality=table(loaded.quality),
        notes=loaded.notes,
    )
    folder = ctx.results_dir
    write_atomically(folder / "fit.h5", lambda path: write_fit(path, *outputs.fit_arrays(finding)))
    for name, content in (
        ("parameters", outputs.parameters_json(finding)),
        ("analysis_results_nlsq", outputs.analysis_json(finding)),
        ("convergence_metrics", outputs.convergence_json(finding)),
    ):
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_bytes(folder / f"{name}.json", f"{text}\n".encode())
    wanted = options.output.fitted_data
    if npz_bytes(fitted) <= _GIB if wanted == "auto" else wanted:
        method = options.output.diagonal_correction
        write_atomically(folder / "fitted_data.npz", lambda path: write_npz(path, fitted, finding.angles, method))
    else:
        ctx.log.info(
            "fitted_data.npz is not written (job.output.fitted_data): it would take %d bytes", npz_bytes(fitted)
        )
