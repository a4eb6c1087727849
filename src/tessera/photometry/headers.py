"""What a frame's header says, under the names the configuration maps: band, scale, noise, saturation, grid."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tessera.input_files import explained, read_number, require_file
from tessera.photometry.errors import FrameError, GridError
from tessera.photometry.image_list import FrameEntry

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

    from tessera.photometry.options import HeaderOptions

_PACKED: Final = frozenset({".gz", ".bz2", ".xz", ".zip", ".Z"})
_RATIO: Final = 20_000
"""How much smaller than its content a compressed file may be: gzip reaches 1,000, bzip2 and xz more on zeros."""

_WCS_REMEDY: Final = "correct its CTYPE, CRVAL, CRPIX and CD keys"

_BAND: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class FrameHeader:
    """What is known of a frame before its pixels are read.

    Attributes
    ----------
    entry
        Its line of the image list.
    hdu
        Number of the extension that holds the image.
    band
        First word of the filter's name.
    shape
        ``(ny, nx)``.
    zero_point
        AB magnitude of one count per image; None: counts are kept as they are.
    gain
        Electrons per count; infinite where there is none, and then sources add no Poisson noise.
    sky_sigma
        Noise of the sky, counts; None: to be measured.
    saturation
        Counts at which pixels saturate; infinite where unknown.
    fwhm_pix
        Width of the PSF, pixels; None where unknown.
    wcs
        Celestial coordinates of the pixels, or None.
    """

    entry: FrameEntry
    hdu: int
    band: str
    shape: tuple[int, int]
    zero_point: float | None
    gain: float
    sky_sigma: float | None
    saturation: float
    fwhm_pix: float | None
    wcs: WCS | None


@contextmanager
def open_fits(path: Path, what: str = "frame") -> Iterator[fits.HDUList]:
    """Open a FITS file; whatever is wrong with it becomes a `FrameError` that names it."""
    from astropy.io import fits

    require_file(path, what, "correct its line in the image list", FrameError)
    remedy = "it is damaged or no FITS file, so fetch or write it again"
    with explained(f"{what} {path}", remedy, FrameError), fits.open(path, memmap=False) as hdus:
        _require_whole(path, hdus)
        yield hdus


@contextmanager
def quiet_fits() -> Iterator[None]:
    """Silence astropy's remarks on headers that break the standard in harmless ways.

    Warning filters belong to the process: use it around threads, not within.
    """
    from astropy.utils.exceptions import AstropyUserWarning
    from astropy.wcs import FITSFixedWarning

    with warnings.catch_warnings():
        for category in (AstropyUserWarning, FITSFixedWarning):
            warnings.simplefilter("ignore", category)
        yield


def _require_whole(path: Path, hdus: fits.HDUList) -> None:
    """Raise OSError if the file ends before its last extension does; astropy only warns, and only sometimes."""
    if path.suffix in _PACKED:
        _require_possible(path, hdus)
        return  # the decompressor notices
    where = hdus[len(hdus) - 1].fileinfo()
    missing = where["datLoc"] + where["datSpan"] - path.stat().st_size if where else 0
    if missing > 0:
        msg = f"the file is truncated: {missing} bytes are missing at its end"
        raise OSError(msg)


def _require_possible(path: Path, hdus: fits.HDUList) -> None:
    """Raise OSError if a header promises more than a compressed file of this size can hold."""
    most = _RATIO * path.stat().st_size
    promised = sum(where["datSpan"] for hdu in hdus if (where := hdu.fileinfo()))
    if promised > most:
        msg = f"its headers promise {promised} bytes, more than a compressed file of its size can hold"
        raise OSError(msg)


def image_hdu(hdus: fits.HDUList, path: Path, extension: int | str | None) -> int:
    """Return the number of the extension that holds the image.

    Raises
    ------
    FrameError
        If the extension does not exist or is no two-dimensional image; the message lists those there are.
    """
    images = [i for i, hdu in enumerate(hdus) if hdu.is_image and len(getattr(hdu, "shape", ())) == 2]
    if extension is None and images:
        return images[0]
    if extension is not None:
        wanted = [i for i, hdu in enumerate(hdus) if extension == i or str(extension).upper() == hdu.name.upper()]
        if wanted and wanted[0] in images:
            return wanted[0]
    asked = "no two-dimensional image" if extension is None else f"no two-dimensional image in extension {extension!r}"
    found = ", ".join(f"{i} ({hdus[i].name or 'unnamed'})" for i in images) or "none"
    msg = f"{path} has {asked}; images found: {found}. Set job.inputs.extension or ext= in the image list"
    raise FrameError(msg)


def read_header(entry: FrameEntry, options: HeaderOptions) -> FrameHeader:
    """Read what a frame's header says, without its pixels.

    Raises
    ------
    FrameError
        If the file or a value is missing or impossible; the message names the file, the key and the remedy.
    """
    path = entry.image
    with quiet_fits(), open_fits(path) as hdus:
        number = image_hdu(hdus, path, entry.extension)
        look = _Lookup(path, entry, (hdus[number].header, hdus[0].header))
        wcs = _celestial(path, hdus[number].header)
        shape = hdus[number].shape
        _require_tiles(path, hdus[number])
        gain = look.positive("gain", options.gain, needed=True)
        saturation = look.positive("saturation", options.saturation)
        return FrameHeader(
            entry=entry,
            hdu=number,
            band=look.band(options.filter),
            shape=(int(shape[0]), int(shape[1])),
            zero_point=look.number("zero_point", options.zero_point, needed=True),
            gain=np.inf if gain is None else gain,
            sky_sigma=look.positive("sky_sigma", options.sky_sigma),
            saturation=np.inf if saturation is None else saturation,
            fwhm_pix=_fwhm(look, options, wcs),
            wcs=wcs,
        )


def _require_tiles(path: Path, hdu: Any) -> None:
    """Raise if a compressed image has another number of tiles than its size asks for; its pixels are not read yet."""
    tiles = getattr(hdu, "tile_shape", None)
    if tiles is None:
        return
    wanted = math.prod(-(-side // tile) for side, tile in zip(hdu.shape, tiles, strict=True))
    stored = len(hdu.compressed_data)
    if wanted != stored:
        msg = (
            f"frame {path} is a compressed image of {hdu.shape[1]}x{hdu.shape[0]} pixels, which are {wanted} tiles, "
            f"but holds {stored}; it is damaged, so fetch or write it again"
        )
        raise FrameError(msg)


@dataclass(frozen=True)
class _Lookup:
    """Finds a value in the image list, else as a constant of the options, else in the headers."""

    path: Path
    entry: FrameEntry
    headers: tuple[Any, ...]

    def raw(self, name: str, option: float | str | None) -> Any:
        if name in self.entry.values:
            return self.entry.values[name]
        if isinstance(option, str):
            return next((h[option] for h in self.headers if h.get(option) not in {None, ""}), None)
        return option

    def number(self, name: str, option: float | str | None, *, needed: bool = False) -> float | None:
        value = self.raw(name, option)
        if value is None:
            if needed and option is not None:
                msg = (
                    f"the header of frame {self.path} has no {option} for the {name}; set job.headers.{name} to "
                    f"its key, to a number, or to null, or give {name}= in the image list"
                )
                raise FrameError(msg)
            return None
        try:
            found = read_number(value) if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            found = np.nan
        if not np.isfinite(found):
            msg = f"{self.origin(name, option)} of frame {self.path} is {value!r}, not a number; {self.remedy(name)}"
            raise FrameError(msg)
        return found

    def positive(self, name: str, option: float | str | None, *, needed: bool = False) -> float | None:
        number = self.number(name, option, needed=needed)
        if number is not None and number <= 0:
            origin = self.origin(name, option)
            msg = f"{origin} of frame {self.path} is {number:g} but must be above zero; {self.remedy(name)}"
            raise FrameError(msg)
        return number

    def band(self, option: str | None) -> str:
        value = str(self.raw("band", option) or "").strip()
        if not value:
            msg = (
                f"the header of frame {self.path} has no {option} that names its band; set job.headers.filter to the "
                "right key or give band= in the image list"
            )
            raise FrameError(msg)
        word = value.split()[0]
        if not _BAND.fullmatch(word):
            msg = (
                f"band {word!r} of frame {self.path} holds more than letters, digits and ._+-; "
                "give band= in the image list"
            )
            raise FrameError(msg)
        return word

    def origin(self, name: str, option: float | str | None) -> str:
        key = f" (key {option})" if isinstance(option, str) and name not in self.entry.values else ""
        return f"the {name}{key}"

    @staticmethod
    def remedy(name: str) -> str:
        return f"correct it, or set job.headers.{name} to another key or a number, or give {name}= in the image list"


def _fwhm(look: _Lookup, options: HeaderOptions, wcs: WCS | None) -> float | None:
    pixels = look.positive("fwhm_pix", options.fwhm_pix)
    if pixels is not None:
        return pixels
    arcsec = look.positive("fwhm_arcsec", options.fwhm_arcsec)
    if arcsec is None or wcs is None:
        return None
    from astropy.wcs.utils import proj_plane_pixel_scales

    return float(arcsec / (3600 * np.mean(proj_plane_pixel_scales(wcs))))


def _celestial(path: Path, header: fits.Header) -> WCS | None:
    from astropy.wcs import WCS

    with explained(f"the WCS of frame {path}", _WCS_REMEDY, FrameError):
        wcs = WCS(header)
        return wcs.celestial if wcs.has_celestial else None


def check_grid(headers: list[FrameHeader], tolerance: float | None) -> None:
    """Check that all frames lie on the grid of the first and that no band comes twice.

    Parameters
    ----------
    headers
        Of all frames.
    tolerance
        Pixels by which the same sky position may differ at corners and centre; None compares shapes only.

    Raises
    ------
    GridError
        Naming the frame, how far it is off, and the remedy.
    """
    first = headers[0]
    bands: dict[str, Path] = {}
    for header in headers:
        path = header.entry.image
        if header.band in bands:
            msg = (
                f"frames {bands[header.band]} and {path} both have band {header.band}; a band has one frame, "
                "so stack them first, or name them apart with band= in the image list"
            )
            raise GridError(msg)
        bands[header.band] = path
        if header.shape != first.shape:
            msg = (
                f"frame {path} has {_size(header)} pixels but {first.entry.image} has {_size(first)}; all frames must "
                "share one pixel grid, so resample them first (SWarp, reproject) or run the bands one by one"
            )
            raise GridError(msg)
        if tolerance is not None:
            _check_wcs(first, header, tolerance)


def _size(header: FrameHeader) -> str:
    return f"{header.shape[1]}x{header.shape[0]}"


def _check_wcs(first: FrameHeader, header: FrameHeader, tolerance: float) -> None:
    if (first.wcs is None) != (header.wcs is None):
        with_wcs, without = (first, header) if header.wcs is None else (header, first)
        msg = (
            f"frame {without.entry.image} has no WCS but {with_wcs.entry.image} has one; give it the same WCS, or set "
            "job.checks.require_wcs_alignment=false if the pixels are known to be aligned"
        )
        raise GridError(msg)
    if first.wcs is None or header.wcs is None:
        return
    ny, nx = first.shape
    x = np.array([0, nx - 1, 0, nx - 1, (nx - 1) / 2])
    y = np.array([0, 0, ny - 1, ny - 1, (ny - 1) / 2])
    with explained(f"the WCS of frame {header.entry.image} or {first.entry.image}", _WCS_REMEDY, GridError):
        ra, dec = header.wcs.all_pix2world(x, y, 0)
        x1, y1 = _world_to_pixel(first.wcs, ra, dec)
    off = float(np.max(np.hypot(x1 - x, y1 - y)))
    if not off <= tolerance:
        msg = (
            f"the pixels of frame {header.entry.image} are {off:.3g} pixels off those of {first.entry.image} "
            f"on the sky, more than job.checks.wcs_tolerance_pix={tolerance:g}; "
            "resample the frames onto one grid (SWarp, reproject)"
        )
        raise GridError(msg)


def _world_to_pixel(wcs: WCS, ra: Any, dec: Any) -> tuple[Any, Any]:
    x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
    return x, y
