"""Streaming nonlinear least squares over chunks of data, in one process or over MPI ranks.

Names are imported on first use: an XPCS fit uses the optimizer and nothing of what fits a user's model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.lsq.fit_curve import curve_fit
    from tessera.lsq.fit_model import fit
    from tessera.lsq.model import Groups
    from tessera.lsq.options import HybridStreamingConfig
    from tessera.lsq.result import Result, Status

_HOME = {
    "Groups": "model",
    "HybridStreamingConfig": "options",
    "Result": "result",
    "Status": "result",
    "curve_fit": "fit_curve",
    "fit": "fit_model",
}

__all__ = ["Groups", "HybridStreamingConfig", "Result", "Status", "curve_fit", "fit"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'tessera.lsq' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"tessera.lsq.{_HOME[name]}"), name)
