"""What can be wrong with the inputs of an XPCS fit; each message names the file or key, the cause and the remedy."""

from __future__ import annotations


class XpcsInputError(ValueError):
    """Base of all errors about two-time correlations, their files, and the options of a fit."""


class XpcsFileError(XpcsInputError):
    """A file is missing, damaged, of no known layout, or lacks a dataset."""


class SelectionError(XpcsInputError):
    """What is asked for is not in the data: a wavevector, frames, or angles."""


class DataQualityError(XpcsInputError):
    """The data cannot be fitted: not finite, not a correlation, constant."""


class ParameterError(XpcsInputError):
    """Start values, bounds or names of parameters contradict each other or the model."""


class KernelError(RuntimeError):
    """The compiled part of the fit is missing or does not run on this machine."""
