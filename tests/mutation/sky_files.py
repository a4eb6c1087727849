"""Files of the photometry: frames, planes, image lists, catalogs, PSF models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

SHAPE = (48, 52)


def formats():
    from mutation.formats import Format

    made = {
        "image list": Format(_image_list, _read_list),
        "catalog CSV": Format(partial(_catalog, "c.csv"), _read_catalog),
        "catalog ECSV": Format(partial(_catalog, "c.ecsv"), _read_catalog),
        "catalog FITS": Format(partial(_catalog, "c.fits"), _read_catalog),
        "catalog SExtractor": Format(_sextractor, _read_catalog),
        "FITS mask": Format(_mask, _read_mask),
    }
    for kind in ("plain", "scaled", "compressed", "MEF", "gz"):
        made[f"FITS {kind}"] = Format(partial(_frame, kind), _read_frame)
    for kind in ("PSFEx", "grid", "STDPSF"):
        made[f"PSF {kind}"] = Format(partial(_psf, kind), _read_psf)
    return made


def _image_list(folder: Path) -> Path:
    path = folder / "list.txt"
    path.write_text("# band g\n'a b.fits' band=g weight=w.fits gain=1.5\nr.fits ext=2 zero_point=25 # comment\n")
    return path


def _read_list(path: Path) -> None:
    from tessera.photometry.image_list import read_image_list

    read_image_list(path, None, (".fits", ".weight.fits"))


def _catalog(name: str, folder: Path) -> Path:
    from astropy.table import Table

    table = Table({"ID": ["001", "002", "003"], "RA": [150.0, 150.001, 149.999], "DEC": [2.0, 2.001, 1.999]})
    table["TYPE"], table["ELL"], table["FLUX_g"] = ["STAR", "EXP", ""], [0.0, 0.3, 0.1], [10.0, 20.0, 30.5]
    formats_of = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits"}
    table.write(folder / name, format=formats_of[Path(name).suffix])
    return folder / name


def _sextractor(folder: Path) -> Path:
    path = folder / "c.cat"
    head = "#   1 NUMBER  Running object number\n#   2 X_IMAGE  Object position [pixel]\n#   3 Y_IMAGE  y [pixel]\n"
    path.write_text(head + "    1  10.5  20.25\n    2  30.0  12.5\n    3  7.0  9.0\n")
    return path


def _read_catalog(path: Path) -> None:
    from photometry.made_frames import tan_wcs

    from tessera.photometry.catalog import CatalogReading, read_catalog

    read_catalog(path, ["g"], tan_wcs(SHAPE), CatalogReading({}))


def _hdu(kind: str):
    from astropy.io import fits
    from photometry.made_frames import header, noise, tan_wcs

    image, head = noise(SHAPE), header("g", tan_wcs(SHAPE))
    if kind == "scaled":
        hdu = fits.ImageHDU(np.round(image * 8).astype(np.int16), head)
        hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.125, 3.5, -32768
        return hdu
    if kind == "compressed":
        return fits.CompImageHDU(np.round(image * 8).astype(np.int32), head, compression_type="RICE_1")
    return fits.ImageHDU(image, head)


def _frame(kind: str, folder: Path) -> Path:
    from astropy.io import fits

    path = folder / ("f.fits.gz" if kind == "gz" else "f.fits")
    hdu = _hdu(kind)
    if kind in ("plain", "gz"):
        fits.PrimaryHDU(hdu.data, hdu.header).writeto(path)
    else:
        more = [fits.ImageHDU(np.ones(SHAPE, np.uint8), name="MASK")] if kind == "MEF" else []
        fits.HDUList([fits.PrimaryHDU(), hdu, *more]).writeto(path)
    return path


def _prepared(entry) -> None:
    from tessera.photometry.frames import FrameSet, Preparation, prepare_frame
    from tessera.photometry.headers import check_grid, quiet_fits, read_header
    from tessera.photometry.options import BackgroundOptions, HeaderOptions, PlaneOptions

    header = read_header(entry, HeaderOptions())
    check_grid([header], 0.1)
    memory = np.zeros(FrameSet.nbytes(1, header.shape), np.uint8)
    how = Preparation(PlaneOptions(), BackgroundOptions(), 25.0, 1.0)
    with quiet_fits():
        prepare_frame(header, 0, FrameSet.over(memory, 1, header.shape), how)


def _read_frame(path: Path) -> None:
    from tessera.photometry.image_list import FrameEntry

    _prepared(FrameEntry(path))


def _mask(folder: Path) -> Path:
    from astropy.io import fits

    _frame("plain", folder).rename(folder / "frame.fits")
    path = folder / "mask.fits"
    fits.PrimaryHDU((np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) % 97 == 0).astype(np.uint8)).writeto(path)
    return path


def _read_mask(path: Path) -> None:
    from tessera.photometry.image_list import FrameEntry

    _prepared(FrameEntry(path.with_name("frame.fits"), mask=path))


def _psf(kind: str, folder: Path) -> Path:
    from astropy.io import fits
    from photometry.test_psf_files import psfex_file

    from tessera.photometry.psf import PsfField
    from tessera.photometry.psf_files import write_grid
    from tessera.photometry.psf_grids import Bilinear

    path, rng = folder / "p.fits", np.random.default_rng(1)
    if kind == "PSFEx":
        psfex_file(path, 0.7, 1, 9)
    elif kind == "grid":
        write_grid(path, PsfField(rng.normal(size=(6, 5, 5)), 3, Bilinear(np.array([1.5, 9, 77]), np.array([-2, 4.0]))))
    else:
        hdu = fits.PrimaryHDU(rng.uniform(0, 1, (2, 7, 7)))
        hdu.header["NXPSFS"], hdu.header["NYPSFS"] = 2, 1
        hdu.header["IPSFX01"], hdu.header["IPSFX02"], hdu.header["JPSFY01"] = 1, 101, 51
        hdu.writeto(path)
    return path


def _read_psf(path: Path) -> None:
    from tessera.photometry.headers import quiet_fits
    from tessera.photometry.psf_files import read_psf

    with quiet_fits():
        read_psf(path).at(20, 10)
