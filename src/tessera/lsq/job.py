"""The lsq job: a user's model and data files in, one fit as a loop of the engine, results out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hpc.job import Job, Stage
from hpc.store.atomic import write_atomically, write_json
from tessera.lsq.accumulate import ModelObjective, Settings
from tessera.lsq.chunk_costs import chunk_costs
from tessera.lsq.errors import DataError, FitInputError, StartError
from tessera.lsq.files import Columns, open_source
from tessera.lsq.fit_model import checked_bounds, checked_start, describe, indices
from tessera.lsq.guard import Guarded
from tessera.lsq.hybrid import Plan
from tessera.lsq.job_options import LsqOptions
from tessera.lsq.model import Groups, Model
from tessera.lsq.model_file import code_of_function, load_function
from tessera.lsq.objective import Objective, Sum
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.output import complaint, parameters_record, result_arrays, summary_record, write_fit
from tessera.lsq.quadratic import Vector
from tessera.lsq.reduce import serial
from tessera.lsq.result import Result
from tessera.lsq.stage import FitStage, Problem, explained

if TYPE_CHECKING:
    from hpc.context import Context
    from hpc.report.view import RunView, Section


class LsqJob(Job):
    """Streaming nonlinear least squares of a user's model."""

    Options: ClassVar[type] = LsqOptions

    def __init__(self, options: LsqOptions) -> None:
        self.options = options
        self._source: Guarded | None = None
        self._model: Model | None = None

    def check(self) -> None:
        """See that model, parameters, bounds and options fit together, and that the data are there."""
        with explained():
            config, model = self._config(), self._described()
            self._start(model)
            source = self._open(config)
            if source.n_points < len(model.names):
                msg = (
                    f"{self.options.data.path} has {source.n_points} points, which cannot determine "
                    f"{len(model.names)} parameters ({', '.join(model.names)}); fix some or bring more data"
                )
                raise DataError(msg)

    def inputs(self) -> Iterator[Path]:
        """Name the data: an HDF5 file, a table, or the arrays of a folder that are fitted."""
        data = self.options.data
        if data.path.is_dir():
            columns = Columns(data.x, data.y, data.sigma, data.mask)
            yield from (data.path / f"{name}.npy" for name in columns.names)
        else:
            yield data.path

    def code(self) -> Iterator[Path]:
        """Name where the functions of the model lie."""
        for function in (self.options.model, self.options.jacobian):
            if function is not None:
                yield from code_of_function(function)

    def setup(self, ctx: Context) -> None:
        """Open the data on every rank and try the model on the first chunk."""
        with explained():
            self._model = self._described()
            self._source = self._open(self._config())
            x0, _, _ = self._start(self._model)
            _objective(self._model, self._source, self._settings(ctx), serial()).check(x0)

    def stages(self) -> Sequence[Stage]:
        """One fit."""
        return [FitStage(self._problem, self._write, profile=self.options.profile)]

    def complaint(self, ctx: Context) -> str | None:
        """Say why the fit did not succeed."""
        return complaint(ctx.results_dir / "parameters.json")

    def report(self, run: RunView) -> Sequence[Section]:
        """Return the pictures of `tessera.lsq.report`."""
        from tessera.lsq.report import sections

        return sections(run)

    def _config(self) -> HybridStreamingConfig:
        try:
            return HybridStreamingConfig.preset(self.options.preset, **self.options.config)
        except ValueError as error:
            msg = f"job.preset or job.config: {error}"
            raise FitInputError(msg) from error

    def _described(self) -> Model:
        o = self.options
        groups = None if o.groups is None else Groups(o.groups.names, o.groups.row, o.groups.count)
        jacobian = None if o.jacobian is None else load_function(o.jacobian)
        return describe(load_function(o.model), o.p0, names=o.names, groups=groups, jacobian=jacobian)

    def _start(self, model: Model) -> tuple[Vector, Vector, Vector]:
        strange = [name for name in self.options.bounds if name not in model.arguments]
        if strange:
            msg = f"job.bounds names {', '.join(strange)}; the parameters are {', '.join(model.arguments)}"
            raise StartError(msg)
        sides = [self.options.bounds.get(name, (None, None)) for name in model.arguments]
        lower = [-np.inf if low is None else low for low, _ in sides]
        upper = [np.inf if high is None else high for _, high in sides]
        low, high = checked_bounds((lower, upper), model)
        return checked_start(self.options.p0, model, low, high), low, high

    def _open(self, config: HybridStreamingConfig) -> Guarded:
        data = self.options.data
        columns = Columns(data.x, data.y, data.sigma, data.mask)
        return Guarded(open_source(data.path, columns, chunk_size=config.chunk_size), data.nan_policy)

    def _problem(self, ctx: Context) -> Problem:
        assert self._model is not None and self._source is not None  # noqa: S101, PT018 - setup came first
        o = self.options
        x0, lower, upper = self._start(self._model)
        plan = Plan(self._config(), indices(self._model, o.linear))
        build = partial(_objective, self._model, self._source, self._settings(ctx))
        sandwich = o.errors == "sandwich"
        return Problem(build, x0, lower, upper, plan, o.absolute_sigma, sandwich, last=_chunks)

    def _settings(self, ctx: Context) -> Settings:
        o, config = self.options, self._config()
        return Settings(o.loss, o.loss_scale, ctx.threads, config.loop_strategy != "loop", config.precision)

    def _write(self, result: Result, extra: Mapping[str, NDArray[Any]], ctx: Context) -> None:
        """Write ``parameters.json``, ``fit.h5`` and the row of a sweep's table."""
        folder = ctx.results_dir
        write_json(folder / "parameters.json", parameters_record(result))
        write_json(folder / "summary.json", summary_record(result))
        facts = {"status": result.status.name, "message": result.message, "model": str(self.options.model)}
        write_atomically(folder / "fit.h5", lambda path: write_fit(path, result_arrays(result, extra), facts))
        assert self._source is not None  # noqa: S101 - setup came first
        for chunk, (points, where) in sorted(self._source.left_out.items()):
            ctx.log.warning("chunk %d: %d points left out, %s is not finite", chunk, points, where)


def _objective(model: Model, source: Guarded, settings: Settings, add: Sum) -> ModelObjective:
    return ModelObjective(model, source, add, settings)


def _chunks(objective: Objective, x: Vector) -> Mapping[str, NDArray[Any]]:
    assert isinstance(objective, ModelObjective)  # noqa: S101 - made above
    return chunk_costs(objective, x)
