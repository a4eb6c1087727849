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


class SiteError(McDropoutError):
    """A site is unknown, never fires, or cannot be perturbed as asked."""


class DrawError(McDropoutError):
    """The draws of a trial cannot be made as asked: a probability, a key, or a cut of the trial is out of range."""


class DeviceError(McDropoutError):
    """The device asked for is not there, lacks something that is asked of it, or has too little memory."""
