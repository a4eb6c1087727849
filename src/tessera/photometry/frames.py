"""From files to planes: read a frame and the planes beside it, scale it, and say for each pixel what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.input_files import explained
from tessera.photometry.errors import FrameError
from tessera.photometry.headers import FrameHeader, image_hdu, open_fits

if TYPE_CHECKING:
    from astropy.io import fits

    from tessera.photometry.options import BackgroundOptions, PlaneOptions

Float32 = NDArray[np.float32]
Flags = NDArray[np.uint8]

BAD: Final = 1
"""The pixel is NaN, masked, or has no weight."""
SATURATED: Final = 2
"""The pixel is saturated."""

_MEASURES: Final = 4
_SOURCE_SIGMA: Final = 2.0
"""Pixels above the first background by so many sigma are left out of the second."""


@dataclass(frozen=True)
class FrameSet:
    """The planes of all bands on one grid, in counts on the common zero point.

    Attributes
    ----------
    image
        Shape (B, H, W), reference counts; bad pixels hold 0.
    sky_variance
        Shape (B, H, W), squared reference counts without source noise; inf on bad and saturated pixels.
    flags
        Shape (B, H, W): 0, or a sum of `BAD` and `SATURATED`.
    measures
        Shape (B, 4): sky sigma (reference counts), subtracted sky level (counts), number of bad and of saturated
        pixels.
    """

    image: Float32
    sky_variance: Float32
    flags: Flags
    measures: NDArray[np.float64]

    @property
    def sky_sigma(self) -> NDArray[np.float64]:
        """Typical noise of the sky per band, reference counts."""
        return self.measures[:, 0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(H, W)``."""
        return self.image.shape[1], self.image.shape[2]

    @staticmethod
    def nbytes(bands: int, shape: tuple[int, int]) -> int:
        """Return the bytes `over` needs."""
        return bands * (_MEASURES * 8 + shape[0] * shape[1] * 9)

    @staticmethod
    def over(memory: NDArray[np.uint8], bands: int, shape: tuple[int, int]) -> FrameSet:
        """Lay the planes over a block of bytes, such as one that the ranks of a node share."""
        n = bands * shape[0] * shape[1]
        planes = (bands, *shape)
        head = bands * _MEASURES * 8
        return FrameSet(
            image=memory[head : head + 4 * n].view(np.float32).reshape(planes),
            sky_variance=memory[head + 4 * n : head + 8 * n].view(np.float32).reshape(planes),
            flags=memory[head + 8 * n : head + 9 * n].reshape(planes),
            measures=memory[:head].view(np.float64).reshape(bands, _MEASURES),
        )


@dataclass(frozen=True)
class Preparation:
    """How frames are prepared; see the options of the same names."""

    planes: PlaneOptions
    background: BackgroundOptions
    zp_ref: float
    saturation_divisor: float


def flux_scale(header: FrameHeader, zp_ref: float) -> float:
    """Return reference counts per count of a frame: ``10^(-0.4 (zero_point - zp_ref))``."""
    if header.zero_point is None:
        return 1.0
    return float(10 ** (-0.4 * (header.zero_point - zp_ref)))


def reference_gains(headers: Sequence[FrameHeader], zp_ref: float) -> NDArray[np.float64]:
    """Return electrons per reference count of each band."""
    return np.array([header.gain / flux_scale(header, zp_ref) for header in headers])


def prepare_frame(header: FrameHeader, band: int, frames: FrameSet, how: Preparation) -> None:
    """Read one frame and fill its planes of ``frames``.

    Parameters
    ----------
    header
        Of the frame.
    band
        Its number.
    frames
        Filled in place.
    how
        Options.

    Raises
    ------
    FrameError
        If a plane is missing, damaged or of another shape, or if no pixel is usable.
    """
    image = read_plane(header.entry.image, header.hdu, header.shape, "frame")
    saturated = image >= header.saturation / how.saturation_divisor
    bad = ~np.isfinite(image)
    if header.entry.mask is not None:
        bad |= _read_mask(header, how.planes)
    weight_variance = None if header.entry.weight is None else _read_variance(header, how.planes)
    if weight_variance is not None:
        bad |= ~np.isfinite(weight_variance)
    _require_pixels(header, image, bad | saturated)
    image[bad] = 0.0
    level, sigma = _subtract_sky(header, image, bad | saturated, how.background)
    scale = flux_scale(header, how.zp_ref)
    variance = np.full(header.shape, sigma * sigma, np.float32) if weight_variance is None else weight_variance
    if weight_variance is not None:
        sigma = float(np.sqrt(np.median(variance[~(bad | saturated)])))
    image[bad] = 0.0
    frames.image[band] = image * np.float32(scale)
    frames.sky_variance[band] = np.where(bad | saturated, np.float32(np.inf), variance * np.float32(scale**2))
    frames.flags[band] = BAD * bad + SATURATED * saturated
    frames.measures[band] = sigma * scale, level, np.count_nonzero(bad), np.count_nonzero(saturated)


def read_plane(path: Path, extension: int | str | None, shape: tuple[int, int], what: str) -> Float32:
    """Read a two-dimensional plane as native float32, whatever its compression, byte order and scaling.

    Raises
    ------
    FrameError
        If it is missing, damaged, or not of the expected shape.
    """
    with open_fits(path, what) as hdus:
        hdu = hdus[image_hdu(hdus, path, extension)]
        if tuple(hdu.shape) != shape:
            msg = (
                f"{what} {path} has {hdu.shape[1]}x{hdu.shape[0]} pixels but its frame has {shape[1]}x{shape[0]}; "
                "give the plane that belongs to the frame"
            )
            raise FrameError(msg)
        return np.array(hdu.data, dtype=np.float32)


def _read_mask(header: FrameHeader, planes: PlaneOptions) -> NDArray[np.bool_]:
    path = header.entry.mask
    assert path is not None  # noqa: S101 - asked before
    with open_fits(path, "mask") as hdus:
        hdu = hdus[_plane_hdu(hdus, path, header)]
        data = np.asarray(hdu.data)
    if data.shape != header.shape:
        msg = f"mask {path} has shape {data.shape} but frame {header.entry.image} has {header.shape}; give its own mask"
        raise FrameError(msg)
    if planes.mask_bits is None:
        return np.asarray(data != 0)
    if data.dtype.kind not in "iu":
        msg = f"mask {path} holds {data.dtype} values, which have no bits; set job.planes.mask_bits to null"
        raise FrameError(msg)
    return np.asarray((data.astype(np.int64) & planes.mask_bits) != 0)


def _read_variance(header: FrameHeader, planes: PlaneOptions) -> Float32:
    """Return the variance a weight plane stands for, inf where it gives no weight."""
    path = header.entry.weight
    assert path is not None  # noqa: S101 - asked before
    with open_fits(path, "weight plane") as hdus:
        number = _plane_hdu(hdus, path, header)
    weight = read_plane(path, number, header.shape, "weight plane")
    weight[~(weight > 0)] = np.nan
    if planes.weight_kind == "inverse_variance":
        variance = 1.0 / weight
    elif planes.weight_kind == "sigma":
        variance = weight * weight
    else:
        variance = weight
    return np.where(np.isfinite(variance), variance, np.float32(np.inf)).astype(np.float32)


def _plane_hdu(hdus: fits.HDUList, path: Path, header: FrameHeader) -> int:
    """Return the extension named as the frame's, else the first image: planes often lie in files of their own."""
    try:
        return image_hdu(hdus, path, header.entry.extension)
    except FrameError:
        return image_hdu(hdus, path, None)


def _require_pixels(header: FrameHeader, image: Float32, unusable: NDArray[np.bool_]) -> None:
    if not unusable.all():
        return
    path = header.entry.image
    if not np.isfinite(image).any():
        msg = f"frame {path} holds nothing but NaN; take it off the image list or write it again"
    else:
        msg = (
            f"frame {path} has no usable pixel: all are masked, without weight, or above saturation "
            f"({header.saturation:g}); check job.planes and job.headers.saturation"
        )
    raise FrameError(msg)


def _subtract_sky(
    header: FrameHeader, image: Float32, unusable: NDArray[np.bool_], options: BackgroundOptions
) -> tuple[float, float]:
    """Subtract the sky if asked, and return its mean level and its noise (counts, measured if not known)."""
    measure = header.sky_sigma is None and header.entry.weight is None
    if not options.subtract and not measure:
        return 0.0, header.sky_sigma or 0.0
    remedy = "look at its pixels, or give job.headers.sky_sigma and set job.background.subtract=false"
    with explained(f"the sky of frame {header.entry.image}", remedy, FrameError):
        level, sky, sigma = sky_of(image, unusable, options.boxsize, options.filtersize)
    if options.subtract:
        image -= sky
    if header.sky_sigma is not None:
        sigma = header.sky_sigma
    if not (np.isfinite(sigma) and sigma > 0):
        msg = (
            f"the sky noise of frame {header.entry.image} was measured as {sigma:g}; give it as "
            "job.headers.sky_sigma or as a weight plane"
        )
        raise FrameError(msg)
    return (level if options.subtract else 0.0), sigma


def sky_of(image: Float32, unusable: NDArray[np.bool_], boxsize: int, filtersize: int) -> tuple[float, Float32, float]:
    """Estimate the sky with SExtractor's mesh (Bertin & Arnouts 1996), twice: the second time without the sources.

    Parameters
    ----------
    image
        Counts, shape (H, W); finite.
    unusable
        Pixels to leave out.
    boxsize, filtersize
        Mesh size in pixels and median filter in meshes.

    Returns
    -------
    level, sky, sigma
        Mean level, the sky in each pixel (H, W), and the noise of the sky.
    """
    import sep

    first = sep.Background(image, mask=unusable, bw=boxsize, bh=boxsize, fw=filtersize, fh=filtersize)
    sources = image - first.back() > _SOURCE_SIGMA * first.globalrms
    # Wings reach further than what stands out of the noise.
    from scipy.ndimage import binary_dilation, binary_opening

    sources = binary_dilation(binary_opening(sources, iterations=1), iterations=6)
    mask = unusable | sources
    if mask.mean() > 0.8:
        mask = unusable
    second = sep.Background(image, mask=mask, bw=boxsize, bh=boxsize, fw=filtersize, fh=filtersize)
    return float(second.globalback), second.back(), float(second.globalrms)
