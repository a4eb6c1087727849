"""The list of frames: one line per frame, with what belongs to this frame alone behind its path."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tessera.input_files import explained, read_number, require_file
from tessera.photometry.errors import ImageListError

_PATHS: Final = ("weight", "mask", "psf")
_VALUES: Final = ("band", "zero_point", "gain", "sky_sigma", "saturation", "fwhm_pix", "fwhm_arcsec")


@dataclass(frozen=True)
class FrameEntry:
    """One line of the image list.

    Attributes
    ----------
    image
        The frame.
    weight, mask, psf
        Files that belong to it, or None.
    extension
        Of the image within its file: a number, a name, or None for the first two-dimensional one.
    values
        Values given in the list, which win over the header: ``band`` (text) and numbers by their option name.
    """

    image: Path
    weight: Path | None = None
    mask: Path | None = None
    psf: Path | None = None
    extension: int | str | None = None
    values: Mapping[str, str | float] = field(default_factory=dict)


def read_image_list(
    path: Path,
    extension: int | str | None = None,
    weight_replace: tuple[str, str] | None = None,
    mask_replace: tuple[str, str] | None = None,
) -> list[FrameEntry]:
    """Read an image list.

    A line is ``image.fits [name=value …]``; ``#`` starts a comment, paths are relative to the list, and paths
    with blanks stand in quotes. Names: ``weight``, ``mask``, ``psf`` (files), ``ext``, ``band``, ``zero_point``,
    ``gain``, ``sky_sigma``, ``saturation``, ``fwhm_pix``, ``fwhm_arcsec``.

    Parameters
    ----------
    path
        The list.
    extension
        For frames without ``ext=``.
    weight_replace, mask_replace
        Text to replace in the image's file name, and by what, to find its plane where the line names none.

    Raises
    ------
    ImageListError
        If the list is missing, empty, or a line cannot be understood; the message names the line.
    """
    remedy = "set job.inputs.image_list_file to a text file with one FITS path a line"
    require_file(path, "image list", remedy, ImageListError)
    with explained(f"image list {path}", "it must be a text file with one FITS path a line", ImageListError):
        text = path.read_text(encoding="utf-8")
    if "\0" in text:
        msg = f"image list {path} holds bytes that are no text; {remedy}"
        raise ImageListError(msg)
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        words = _words(path, number, line)
        if words:
            entry = _entry(f"image list {path}, line {number}", path.parent, words, extension)
            entries.append(_with_planes(entry, weight_replace, mask_replace))
    if not entries:
        msg = f"image list {path} names no frame; give one FITS path a line"
        raise ImageListError(msg)
    return entries


def _words(path: Path, number: int, line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        msg = f"image list {path}, line {number}: {error}; put paths with blanks between matching quotes"
        raise ImageListError(msg) from error


def _entry(where: str, base: Path, words: list[str], extension: int | str | None) -> FrameEntry:
    files: dict[str, Path] = {}
    values: dict[str, str | float] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or not value or name not in (*_PATHS, *_VALUES, "ext"):
            known = ", ".join((*_PATHS, "ext", *_VALUES))
            msg = f"{where}: {word!r} is not name=value with a name of {known}; quote paths that contain blanks"
            raise ImageListError(msg)
        if name in _PATHS:
            files[name] = base / value
        elif name == "ext":
            extension = int(value) if value.isascii() and value.isdigit() else value
        else:
            values[name] = value if name == "band" else _number(where, name, value)
    return FrameEntry(base / words[0], extension=extension, values=values, **files)


def _number(where: str, name: str, value: str) -> float:
    try:
        return read_number(value)
    except ValueError:
        msg = f"{where}: {name}={value!r} is not a number; header keys are mapped with job.headers, not in the list"
        raise ImageListError(msg) from None


def _with_planes(
    entry: FrameEntry, weight_replace: tuple[str, str] | None, mask_replace: tuple[str, str] | None
) -> FrameEntry:
    weight = entry.weight or _replaced(entry.image, "weight_replace", weight_replace)
    mask = entry.mask or _replaced(entry.image, "mask_replace", mask_replace)
    return FrameEntry(entry.image, weight, mask, entry.psf, entry.extension, entry.values)


def _replaced(image: Path, option: str, replace: tuple[str, str] | None) -> Path | None:
    if replace is None:
        return None
    if replace[0] not in image.name:
        msg = (
            f"job.planes.{option} replaces {replace[0]!r}, which is not in the name of {image}; "
            "correct the option or name the plane in the image list"
        )
        raise ImageListError(msg)
    return image.with_name(image.name.replace(*replace))
