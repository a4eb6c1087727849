"""One image read as the original reads it, with everything unusual about it said.

The original opens every file with ``Image.open(path).convert("RGB")``: pixels as stored (no EXIF rotation),
transparency dropped, the first frame of an animation, CMYK by Pillow's simple formula. The same is done here, and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import ExifTags, Image

from tessera.input_files import cause, require_file
from tessera.mcdropout.errors import ImageError

OddPolicy: TypeAlias = Literal["convert", "skip", "refuse"]
"""What to do with an odd image: as the original does, leave it out, or stop."""

UnreadablePolicy: TypeAlias = Literal["skip", "refuse"]
"""What to do with a file that cannot be read as an image."""

_UPRIGHT = 1


@dataclass(frozen=True)
class Picture:
    """An image as RGB, and what is unusual about the file: an empty text if nothing."""

    image: Image.Image
    oddity: str


def read_image(path: Path) -> Picture:
    """Read one image as RGB.

    Raises
    ------
    ImageError
        If the file is missing, damaged or cut short, or of more than 8 bits, which Pillow would clip.
    """
    require_file(path, "", "replace the file or leave it out", ImageError)
    try:
        with Image.open(path) as image:
            image.load()
            oddity = _oddity(image)
            _require_8_bits(path, image.mode)
            # Its bytes form would make Pillow warn; it does not change the colours.
            image.info.pop("transparency", None)
            return Picture(image.convert("RGB"), oddity)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        msg = f"{path} is too large ({error}); make it smaller"
        raise ImageError(msg) from error
    except Exception as error:  # Pillow's readers parse bytes with whatever may fail on damaged ones
        msg = f"{path} {cause(error)}; replace the file or leave it out"
        raise ImageError(msg) from error


def _require_8_bits(path: Path, mode: str) -> None:
    if mode.startswith(("I", "F")):
        msg = f"{path} has {mode} pixels of more than 8 bits, which would be clipped; convert it to 8 bits"
        raise ImageError(msg)


def _oddity(image: Image.Image) -> str:
    found = []
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        found.append(f"{image.mode} colours without their profile")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        found.append("transparency dropped")
    if image.mode in ("P", "PA"):
        found.append("palette")
    if getattr(image, "n_frames", 1) > 1:
        found.append("first frame of an animation")
    if image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) != _UPRIGHT:
        found.append("EXIF rotation ignored")
    return ", ".join(found)
