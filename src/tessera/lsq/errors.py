"""What can be wrong with a fit's inputs; messages name the parameter, chunk or argument, the cause and the remedy."""

from __future__ import annotations


class FitInputError(ValueError):
    """Base of all errors about what a fit was given."""


class ModelError(FitInputError):
    """The model cannot be traced, returns another shape, depends on its neighbours, or is not finite at the start."""


class StartError(FitInputError):
    """Start values or bounds are missing, not finite, in the wrong order or number, or contradict each other."""


class DataError(FitInputError):
    """Data, errors or weights are missing, too few, of unequal length, or hold values that cannot be used."""
