"""The XPCS job: check the inputs, load them, fit, write the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hpc.errors import InputError
from hpc.job import Job, Stage
from hpc.terminal import complain
from tessera.lsq.errors import FitInputError
from tessera.lsq.stage import FitStage
from tessera.xpcs import native, outputs
from tessera.xpcs.dataset import Dataset
from tessera.xpcs.errors import KernelError, XpcsInputError
from tessera.xpcs.load import Fill, Hold, Selection, load
from tessera.xpcs.options import XpcsOptions
from tessera.xpcs.quality import AngleQuality, assess_angle, judge
from tessera.xpcs.stage import Loaded, gap_of, objective_of, problem_of, vectors, write_results
from tessera.xpcs.units import check_units

if TYPE_CHECKING:
    from hpc.context import Context
    from hpc.report.view import RunView, Section


class XpcsJob(Job):
    """A fit of static or flow dynamics to two-time correlations."""

    Options: ClassVar[type] = XpcsOptions

    def __init__(self, options: XpcsOptions) -> None:
        self.options = options
        self._loaded: Loaded | None = None

    @property
    def loaded(self) -> Loaded:
        """What `setup` loaded."""
        if self._loaded is None:
            msg = "the inputs are not loaded; call setup(ctx) first"
            raise RuntimeError(msg)
        return self._loaded

    def check(self) -> None:
        """Open the file, select, and see that units, start values and bounds make sense; correlations are not read."""
        with explained():
            dataset, _ = self._load(_unread)
            vectors(self.options, objective_of(self.options, dataset, 1.0))
            # On a cluster's login node as on the others, better said now than there.
            if slow := native.complaint():
                complain(f"tessera: {slow}")
            else:
                native.functions(native.level())

    def inputs(self) -> Sequence[Path]:
        """Name the file of correlations; one that takes data from others is refused."""
        return [self.options.experimental_data.file_path]

    def setup(self, ctx: Context) -> None:
        """Load the data and look at every value once; the ranks share the angles."""
        options = self.options
        with explained(), ctx.timed("load"):
            dataset, notes = self._load(ctx.shared)
            quality = _assessed(dataset, ctx)
            notes += [text for text in (native.complaint(),) if text]
            notes += judge(dataset, quality, omit=options.experimental_data.nan == "omit")
        sigma = options.optimization.sigma
        noise = float(np.nanmedian([q.noise for q in quality])) if sigma == "auto" else sigma
        if not noise > 0:
            msg = (
                f"{dataset.source}: no noise can be measured (few frames, or none in them); give job.optimization.sigma"
            )
            raise InputError(msg)
        self._loaded = Loaded(dataset, quality, noise, tuple(notes))
        if ctx.rank == 0:
            _log(self._loaded, ctx)

    def kernels(self) -> dict[str, str]:
        """Return which of the compiled sums are used."""
        return {"xpcs sums": native.level()}

    def stages(self) -> Sequence[Stage]:
        """Return the fit."""
        return [
            FitStage(
                lambda ctx: problem_of(self.options, self.loaded, ctx),
                lambda result, extra, ctx: write_results(self.options, self.loaded, result, extra, ctx),
                profile=self.options.profile,
            )
        ]

    def complaint(self, ctx: Context) -> str | None:
        """Say why the fit did not succeed."""
        return outputs.complaint(ctx.results_dir / "convergence_metrics.json")

    def report(self, run: RunView) -> Sequence[Section]:
        """Return the pictures of `tessera.xpcs.report`."""
        from tessera.xpcs.report import sections

        return sections(run)

    def _load(self, hold: Hold) -> tuple[Dataset, list[str]]:
        """Return the selected data, and what is to be said about the selection and the units."""
        data, analyzer = self.options.experimental_data, self.options.analyzer_parameters
        selection = Selection(
            q=analyzer.scattering.wavevector_q,
            dt=analyzer.dt,
            start_frame=analyzer.start_frame,
            end_frame=analyzer.end_frame,
            ranges=self.options.ranges,
            fallback=self.options.phi_filtering.fallback_to_all_angles,
            q_tolerance=data.q_tolerance,
        )
        dataset = load(data.file_path, selection, exchange_key=data.exchange_key, hold=hold)
        return dataset, [*dataset.notes, *check_units(dataset.q, dataset.dt, gap_of(self.options))]


def _unread(shape: tuple[int, ...], dtype: np.dtype[Any], fill: Fill) -> NDArray[Any]:
    """Stand in for correlations that are not needed yet."""
    del fill
    return np.broadcast_to(np.zeros((), dtype), shape)


def _assessed(dataset: Dataset, ctx: Context) -> tuple[AngleQuality, ...]:
    """Look at all angles, each on one rank. Collective."""
    mine = [assess_angle(dataset.rows, angle) for angle in ctx.my_chunks(dataset.rows.n_phi)]
    parts = ctx.ranks.gather(mine)
    return tuple(ctx.ranks.bcast(None if parts is None else [angle for part in parts for angle in part]))


def _log(loaded: Loaded, ctx: Context) -> None:
    data = loaded.dataset
    ctx.log.info(
        "%s (%s): q = %g 1/Å, %d angles, %d frames, %d independent points, noise %.3g",
        data.source,
        data.layout,
        data.q,
        data.rows.n_phi,
        data.rows.n_t,
        data.n_points,
        loaded.sigma,
    )
    for note in loaded.notes:
        ctx.log.warning("%s", note)


@contextmanager
def explained() -> Iterator[None]:
    """Hand errors about the inputs to the engine as what they are, without a traceback for the user."""
    try:
        yield
    except (XpcsInputError, FitInputError, KernelError) as error:
        raise InputError(str(error)) from error
