"""PSF models on disk: PSFEx, gridded FITS cubes (our own and STDPSF), and how ours are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.input_files import explained, require_file
from tessera.photometry.errors import PsfFileError
from tessera.photometry.psf import PsfField
from tessera.photometry.psf_grids import Bilinear, Polynomial

if TYPE_CHECKING:
    from astropy.io import fits

Floats = NDArray[np.float64]

STDPSF_OVERSAMPLING: Final = 4
_FINEST: Final = 0.02
_COARSEST: Final = 10.0
"""Pixels between the samples of a model, within reason."""
_STDPSF_CARD: Final = 10  # positions on each card of the older STDPSF layout


def read_psf(path: Path) -> PsfField:
    """Read a PSF model of any known kind.

    Parameters
    ----------
    path
        A PSFEx model (``PSF_MASK`` table), a cube with a ``GRID`` table as `write_grid` makes it, or a STDPSF
        cube (``NXPSFS`` in the header, four samples per pixel).

    Returns
    -------
    PsfField
        Scaled to the flux its file gives it; PSFEx models are normalised to unit flux in their stamp.

    Raises
    ------
    PsfFileError
        If the file is missing, damaged, or of another kind.
    """
    from astropy.io import fits

    require_file(path, "PSF file", "correct job.epsf.files or the psf= entry of the image list", PsfFileError)
    remedy = "it is damaged, truncated or of another format: make it again"
    with explained(f"PSF file {path}", remedy, PsfFileError), fits.open(path, memmap=False) as hdus:
        return _dispatch(path, hdus)


def _dispatch(path: Path, hdus: fits.HDUList) -> PsfField:
    for hdu in hdus[1:]:
        if "PSF_MASK" in [name.upper() for name in getattr(hdu.columns, "names", [])]:
            return _read_psfex(path, hdu)
    cube = next((hdu for hdu in hdus if hdu.header.get("NAXIS") == 3), None)
    if cube is not None and "GRID" in hdus:
        return _read_grid(path, cube, hdus["GRID"])
    if cube is not None and "NXPSFS" in cube.header:
        return _read_stdpsf(path, cube)
    msg = (
        f"{path} is no PSF model that can be read: it has neither a PSF_MASK column (PSFEx), nor an image cube with "
        "a GRID table, nor a cube with NXPSFS in its header (STDPSF)"
    )
    raise PsfFileError(msg)


def write_grid(path: Path, field: PsfField, band: str = "") -> None:
    """Write a PSF on a grid as FITS: a float64 cube with ``OVERSAMP``, and the node positions in table ``GRID``.

    Raises
    ------
    ValueError
        If the field is not on a bilinear grid.
    """
    from astropy.io import fits

    if not isinstance(field.basis, Bilinear):
        msg = f"only PSFs on a grid can be written as a cube, not a {type(field.basis).__name__} one"
        raise ValueError(msg)  # noqa: TRY004 - a wrong value for the file format, of the right type
    x, y = np.meshgrid(field.basis.x, field.basis.y)
    header = fits.Header()
    header["OVERSAMP"] = (field.oversampling, "samples per native pixel")
    header["FILTER"] = band
    header["COMMENT"] = "Fraction of a point source's flux in a native pixel at each offset."
    nodes = fits.BinTableHDU.from_columns(
        [fits.Column(name, "D", unit="pix", array=v.ravel()) for name, v in (("x", x), ("y", y))], name="GRID"
    )
    nodes.header["COMMENT"] = "0-based frame pixels of the planes of the cube, x fastest."
    fits.HDUList([fits.PrimaryHDU(field.stamps, header), nodes]).writeto(path)


def _read_grid(path: Path, cube: Any, grid: Any) -> PsfField:
    x, y = (np.unique(np.asarray(grid.data[name], np.float64)) for name in ("x", "y"))
    expected = np.stack([v.ravel() for v in np.meshgrid(x, y)])
    found = np.stack([np.asarray(grid.data[name], np.float64) for name in ("x", "y")])
    if expected.shape != found.shape or not np.array_equal(expected, found):
        msg = f"the GRID table of PSF file {path} is no rectangular grid with x fastest; write it as such"
        raise PsfFileError(msg)
    oversampling = int(cube.header.get("OVERSAMP", 1))
    return _field(path, np.asarray(cube.data, np.float64), oversampling, Bilinear(x, y))


def _read_stdpsf(path: Path, cube: Any) -> PsfField:
    axes = []
    for axis, prefix in (("X", "IPSFX"), ("Y", "JPSFY")):
        n = int(cube.header[f"N{axis}PSFS"])
        if f"{prefix}01" in cube.header:
            nodes = [float(cube.header[f"{prefix}{i:02d}"]) for i in range(1, n + 1)]
        else:
            keys = [f"{prefix}A{i}" for i in range(1, (n - 1) // _STDPSF_CARD + 2)]
            nodes = [float(v) for key in keys for v in str(cube.header[key]).split()][:n]
        axes.append(np.array(nodes) - 1.0)  # FITS pixels are 1-based
    return _field(path, np.asarray(cube.data, np.float64), STDPSF_OVERSAMPLING, Bilinear(*axes))


def _field(path: Path, stamps: Floats, oversampling: int, basis: Bilinear) -> PsfField:
    if not 1 <= oversampling <= 1 / _FINEST:
        msg = f"PSF file {path} has {oversampling} samples per pixel (OVERSAMP); it is damaged, so make it again"
        raise PsfFileError(msg)
    for axis in (basis.x, basis.y):
        if axis.size == 0 or not np.isfinite(axis).all() or np.any(np.diff(axis) <= 0):
            msg = f"the grid of PSF file {path} does not go up ({', '.join(f'{v:g}' for v in axis[:8])}); make it again"
            raise PsfFileError(msg)
    nodes = basis.x.size * basis.y.size
    if stamps.shape[0] != nodes:
        msg = f"PSF file {path} has {stamps.shape[0]} stamps for {nodes} grid nodes; the file is damaged or incomplete"
        raise PsfFileError(msg)
    return PsfField(_checked(path, stamps), oversampling, basis)


def _checked(path: Path, stamps: Floats) -> Floats:
    if not np.isfinite(stamps).all():
        msg = f"PSF file {path} holds NaN or infinite samples; rebuild the model without its failed cells"
        raise PsfFileError(msg)
    if stamps.shape[1] != stamps.shape[2] or stamps.shape[1] % 2 == 0:
        msg = f"the stamps of PSF file {path} are {stamps.shape[1:]}; they must be square with a central sample (odd)"
        raise PsfFileError(msg)
    return stamps


def _read_psfex(path: Path, hdu: Any) -> PsfField:
    """Read a PSFEx model; its X_IMAGE and Y_IMAGE are the 1-based pixels of the frame it was made for.

    The keys are in the header (PSFEx) or in columns of a one-row table (as merged by survey pipelines).
    """
    table = hdu.data
    columns = {name.upper(): name for name in table.columns.names}
    if len(table) != 1:
        msg = f"PSFEx file {path} holds {len(table)} models; extract the row of this frame into a file of its own"
        raise PsfFileError(msg)

    def value(key: str) -> Any:
        if key in hdu.header:
            return hdu.header[key]
        if key in columns:
            return table[columns[key]][0]
        msg = f"PSFEx file {path} has no {key}; it is incomplete, so make it again with PSFEx"
        raise PsfFileError(msg)

    masks = np.asarray(table[columns["PSF_MASK"]][0], np.float64)
    masks = _checked(path, masks.reshape(-1, *masks.shape[-2:]))
    step = float(value("PSF_SAMP"))
    if not _FINEST <= step <= _COARSEST:
        msg = f"PSFEx file {path} has {step:g} pixels between samples (PSF_SAMP); it is damaged, so make it again"
        raise PsfFileError(msg)
    oversampling = max(1, round(1 / step))
    stamps = np.stack([_resample(mask, step * oversampling) for mask in masks])
    flux = stamps.sum(axis=(1, 2)) / oversampling**2
    return PsfField(stamps, oversampling, _psfex_basis(path, value, flux))


def _psfex_basis(path: Path, value: Any, flux: Floats) -> Polynomial:
    axes = int(value("POLNAXIS"))
    if axes == 0:
        return Polynomial(0, (0.0, 0.0), (1.0, 1.0), flux)
    names = [str(value(f"POLNAME{i}")).strip() for i in range(1, axes + 1)]
    if axes != 2 or int(value("POLNGRP")) != 1 or not (names[0].startswith("X") and names[1].startswith("Y")):
        msg = f"PSFEx file {path} varies with {names}; only one polynomial in X_IMAGE, Y_IMAGE can be read"
        raise PsfFileError(msg)
    degree = int(value("POLDEG1"))
    if flux.size != (degree + 1) * (degree + 2) // 2:
        msg = f"PSFEx file {path} has {flux.size} components for a polynomial of degree {degree}; it is damaged"
        raise PsfFileError(msg)
    zero = (float(value("POLZERO1")) - 1.0, float(value("POLZERO2")) - 1.0)
    scale = (float(value("POLSCAL1")), float(value("POLSCAL2")))
    if not (np.isfinite([*zero, *scale]).all() and all(scale)):
        msg = f"PSFEx file {path} has POLZERO {zero} and POLSCAL {scale}, which no polynomial has; make it again"
        raise PsfFileError(msg)
    return Polynomial(degree, zero, scale, flux)


def _resample(mask: Floats, step: float) -> Floats:
    """Bring samples that are ``step`` new samples apart onto the new grid, keeping the density of flux."""
    if step == 1.0:
        return mask
    from scipy.ndimage import map_coordinates

    centre = (mask.shape[0] - 1) / 2
    half = int(centre * step)
    at = np.arange(-half, half + 1) / step + centre
    resampled: Floats = map_coordinates(mask, np.meshgrid(at, at, indexing="ij"), order=5, mode="constant")
    return resampled
