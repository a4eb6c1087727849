"""Frames, catalogs and job options for the tests of the photometry's inputs, written by plain astropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from hpc.options import build
from tessera.photometry.job import PhotometryJob
from tessera.photometry.options import PhotometryOptions
from tessera.photometry.psf_grids import moffat

SKY_SIGMA = 2.0
GAIN = 4.0


def tan_wcs(shape=(80, 90), scale=0.5 / 3600, ra=150.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, 2.0]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cd = [[-scale, 0], [0, scale]]
    return wcs


def header(band="r", wcs=None, **keys) -> fits.Header:
    head = wcs.to_header() if wcs is not None else fits.Header()
    values = {"FILTER": band, "ZP_AUTO": 25.0, "SKYSIG": SKY_SIGMA, "EGAIN": GAIN, "PEEING": 3.5, **keys}
    for key, value in values.items():
        if value is not None:
            head[key] = value
    return head


def noise(shape=(80, 90), seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, SKY_SIGMA, shape).astype(np.float32)


def write_frame(path: Path, image=None, band="r", wcs="tan", **keys) -> Path:
    image = noise() if image is None else image
    wcs = tan_wcs(image.shape) if isinstance(wcs, str) else wcs
    fits.PrimaryHDU(image, header(band, wcs, **keys)).writeto(path, overwrite=True)
    return path


def add_stars(image, x, y, flux, fwhm=3.5, beta=3.5):
    """Add Moffat stars, sampled as an effective PSF, to an image."""
    rows, columns = np.indices(image.shape)
    for x0, y0, f in zip(x, y, flux, strict=True):
        image += f * moffat(columns - x0, rows - y0, fwhm, beta)
    return image


def write_catalog(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def sky_catalog(path: Path, wcs: WCS, x, y, extra="") -> Path:
    ra, dec = wcs.all_pix2world(x, y, 0)
    rows = "".join(f"{i:04d},{r:.9f},{d:.9f},STAR\n" for i, (r, d) in enumerate(zip(ra, dec, strict=True)))
    return write_catalog(path, "ID,RA,DEC,TYPE\n" + rows + extra)


def image_list(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def job_for(folder: Path, **sections) -> PhotometryJob:
    """Return the job for ``folder/list.txt`` and ``folder/catalog.csv``."""
    inputs = {"image_list_file": str(folder / "list.txt"), "input_catalog": str(folder / "catalog.csv")}
    values = {"epsf": {"source": "moffat"}, **sections}
    values["inputs"] = {**inputs, **sections.get("inputs", {})}
    return PhotometryJob(build(PhotometryOptions, values))


def small_field(folder: Path) -> None:
    """Write a field of two bands and three stars."""
    x, y, flux = np.array([20.0, 50.3, 70.7]), np.array([30.0, 41.6, 22.2]), np.array([4000.0, 2500.0, 3000.0])
    for k, band in enumerate("gr"):
        write_frame(folder / f"{band}.fits", add_stars(noise(seed=k), x, y, flux), band)
    image_list(folder / "list.txt", "g.fits", "r.fits")
    sky_catalog(folder / "catalog.csv", tan_wcs(), x, y)
