"""What can be wrong with the inputs of Monte-Carlo dropout; each message names the file, the cause and the remedy."""

from __future__ import annotations


class McDropoutError(ValueError):
    """Base of all errors about models, images, sites and trials."""


class WeightsError(McDropoutError):
    """Weights are missing, damaged, of a kind that is not read, or do not fit the model."""


class ImageError(McDropoutError):
    """An image, or the list of images, cannot be used."""


class TextError(McDropoutError):
    """A tokenizer or a text cannot be used."""
