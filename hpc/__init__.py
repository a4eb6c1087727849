"""The batch engine: it runs jobs made of maps and loops on MPI ranks, and brings them back after a stop.

The whole public surface is listed here. Names are imported on first use, so that ``import hpc`` costs nothing
and the thread budget can be set before numpy is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc.context import Context
    from hpc.job import Arrays, Job, Loop, Map, Results, Stage, Unit
    from hpc.options import Range
    from hpc.report.view import Figure, RunView, Section, Table
    from hpc.store.guarded import changed_hdf5, existing_hdf5, input_hdf5, new_hdf5

__version__ = "0.1.0"

_HOME = {
    "Arrays": "hpc.job",
    "Context": "hpc.context",
    "Figure": "hpc.report.view",
    "Job": "hpc.job",
    "Loop": "hpc.job",
    "Map": "hpc.job",
    "Range": "hpc.options",
    "Results": "hpc.job",
    "RunView": "hpc.report.view",
    "Section": "hpc.report.view",
    "Stage": "hpc.job",
    "Table": "hpc.report.view",
    "Unit": "hpc.job",
    "changed_hdf5": "hpc.store.guarded",
    "existing_hdf5": "hpc.store.guarded",
    "input_hdf5": "hpc.store.guarded",
    "new_hdf5": "hpc.store.guarded",
}

__all__ = [
    "Arrays",
    "Context",
    "Figure",
    "Job",
    "Loop",
    "Map",
    "Range",
    "Results",
    "RunView",
    "Section",
    "Stage",
    "Table",
    "Unit",
    "changed_hdf5",
    "existing_hdf5",
    "input_hdf5",
    "new_hdf5",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'hpc' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME[name]), name)
