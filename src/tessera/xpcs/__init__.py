"""XPCS two-time correlation: models, files and fits."""

from tessera.xpcs.fit import fit

__all__ = ["fit"]
