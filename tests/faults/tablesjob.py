"""The toy workload with results like those of the real ones: HDF5 files, written by their own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import toyjob

from hpc import Context, Results, Stage
from hpc.store.atomic import write_atomically


@dataclass(frozen=True)
class TablesOptions(toyjob.ToyOptions):
    writer: Literal["engine", "lsq", "photometry", "xpcs"] = "engine"


class Tables(toyjob.Squares):
    """Writes its units' squares, and a large array of them, as one of the workloads would."""

    options: TablesOptions

    def merge(self, results: Results, ctx: Context) -> None:
        if self.options.writer == "engine":
            results.save(ctx.results_dir / "table.h5")
            return
        squares = np.array([float(arrays["square"]) for _, arrays in results.items()])
        arrays = {"squares": squares, "many": np.outer(squares, np.arange(3000.0)), "names": np.arange(700)}
        write_atomically(ctx.results_dir / "table.h5", lambda path: self._write(path, arrays))

    def _write(self, path, arrays) -> None:
        if self.options.writer == "photometry":
            from tessera.photometry.output import write_diagnostics

            write_diagnostics(path, {"what": "test"}, [("g", arrays)])
        elif self.options.writer == "lsq":
            from tessera.lsq.output import write_fit

            write_fit(path, arrays, {"what": "test"})
        else:
            from tessera.xpcs.fit_file import write_fit

            write_fit(path, arrays, {"what": "test"})


class TablesJob(toyjob.ToyJob):
    Options = TablesOptions

    def stages(self) -> Sequence[Stage]:
        return [Tables(self.options, lambda: self.factor), *super().stages()[1:]]
