"""Streaming nonlinear least squares over chunks of data, in one process or over MPI ranks."""

from tessera.lsq.curve_fit import curve_fit
from tessera.lsq.fit import fit
from tessera.lsq.model import Groups
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.result import Result, Status

__all__ = ["Groups", "HybridStreamingConfig", "Result", "Status", "curve_fit", "fit"]
