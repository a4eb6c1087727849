"""XPCS two-time correlation: models, files and fits."""
