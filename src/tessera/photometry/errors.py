"""What can be wrong with the inputs of the photometry; each message names the file, the cause and the remedy."""

from __future__ import annotations


class PhotometryInputError(ValueError):
    """Base of all errors about frames, catalogs and PSF files."""


class ImageListError(PhotometryInputError):
    """The list of frames cannot be read, or two of its lines contradict each other."""


class FrameError(PhotometryInputError):
    """A frame or one of its planes is missing, damaged, or lacks something that is needed."""


class GridError(PhotometryInputError):
    """The frames do not lie on one pixel grid."""


class CatalogError(PhotometryInputError):
    """The input catalog is missing, lacks columns, or holds values that cannot be used."""


class PsfFileError(PhotometryInputError):
    """A PSF file is missing or of no known kind."""
