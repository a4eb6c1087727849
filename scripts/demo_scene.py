#!/usr/bin/env python3
"""Draw the demo's sky: three 512x512 frames of stars and galaxies whose true fluxes are known.

Usage: demo_scene.py DIRECTORY [--seed N]

Writes ``frame_g.fits``, ``frame_r.fits`` and ``frame_i.fits`` (one pixel grid, another PSF, depth and zero point each),
``frames.txt`` (the image list), ``catalog.csv`` (positions with errors and types: all that the photometry is
told) and ``truth.csv`` (what was drawn). It shares no code with the package, so that the one checks the other.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.signal import fftconvolve

Floats = NDArray[np.float64]

SIZE: Final = 512
STARS, GALAXIES = 90, 30
ZP_REF: Final = 25.0
POSITION_ERROR: Final = 0.15
"""Pixels by which the catalog is off, per axis."""
BAD_PIXELS: Final = 150
FULL_WELL: Final = 8000.0
"""Electrons."""
HALF_LIGHT: Final = 1.6783469900166605
"""Half-light radius of an exponential disk over its scale length."""
OVERSAMPLING: Final = 5


@dataclass(frozen=True)
class Band:
    """How one band was observed.

    Attributes
    ----------
    fwhm, beta, shear
        Of the Moffat PSF in the middle of the frame (pixels; exponent; the two components of its ellipticity).
    gradient
        Relative change of the width from the middle to the right edge.
    sky_sigma
        Noise of the sky, counts at zero point `ZP_REF`.
    gain, zero_point
        Electrons per count; AB magnitude of one count.
    """

    name: str
    fwhm: float
    beta: float
    shear: tuple[float, float]
    gradient: float
    sky_sigma: float
    gain: float
    zero_point: float

    def psf(self, dx: Floats, dy: Floats, x: float) -> Floats:
        """Return the share of a star's light in pixels at offsets from it; ``x`` is where on the frame it is."""
        fwhm = self.fwhm * (1 + self.gradient * (2 * x / SIZE - 1))
        core = fwhm / (2 * np.sqrt(2 ** (1 / self.beta) - 1))
        e1, e2 = self.shear
        radius2 = ((1 - e1) * dx**2 - 2 * e2 * dx * dy + (1 + e1) * dy**2) / np.sqrt(1 - e1**2 - e2**2)
        return (self.beta - 1) / (np.pi * core**2) * (1 + radius2 / core**2) ** -self.beta


BANDS: Final = (
    Band("g", 4.4, 3.2, (0.05, 0.02), 0.04, 0.30, 4.0, 25.3),
    Band("r", 3.6, 3.5, (-0.03, 0.04), 0.03, 0.40, 4.0, 25.0),
    Band("i", 3.1, 3.8, (0.02, -0.05), -0.03, 0.60, 4.0, 24.6),
)


@dataclass(frozen=True)
class Scene:
    """What is in the sky, one entry per source; ``re``, ``ab`` and ``theta`` are NaN for stars."""

    x: Floats
    y: Floats
    mag: Floats
    re: Floats
    ab: Floats
    theta: Floats

    @property
    def galaxy(self) -> NDArray[np.bool_]:
        """Which sources are galaxies."""
        return np.isfinite(self.re)


def make_scene(rng: np.random.Generator) -> Scene:
    """Throw the sources on the frame; the last star is so bright that it saturates."""
    n = STARS + GALAXIES
    slope = 0.3 * np.log(10)
    brightest, faintest = np.exp(slope * 16.5), np.exp(slope * 21.3)
    r = np.log(rng.uniform(brightest, faintest, n)) / slope
    galaxy = np.arange(n) < GALAXIES
    r[-1] = 13.3
    mag = r[:, None] + rng.normal(0.3, 0.3, n)[:, None] * np.array([1.0, 0.0, -0.7])
    return Scene(
        x=rng.uniform(12, SIZE - 13, n),
        y=rng.uniform(12, SIZE - 13, n),
        mag=mag,
        re=np.where(galaxy, rng.uniform(1.5, 4.5, n), np.nan),
        ab=np.where(galaxy, rng.uniform(0.35, 0.95, n), np.nan),
        theta=np.where(galaxy, rng.uniform(-90, 90, n), np.nan),
    )


def stamp(band: Band, scene: Scene, i: int, half: int) -> tuple[Floats, int, int]:
    """Return the light of a source of unit flux in the pixels around it, and the pixel in the stamp's corner."""
    column, row = round(scene.x[i]), round(scene.y[i])
    pixels = np.arange(-half, half + 1, dtype=float)
    sub_x, sub_y = scene.x[i] - column, scene.y[i] - row
    if scene.galaxy[i]:
        light = _galaxy_stamp(band, scene, i, half, sub_x, sub_y)
    else:
        light = band.psf(pixels - sub_x, pixels[:, None] - sub_y, scene.x[i])
    return light, column - half, row - half


def _galaxy_stamp(band: Band, scene: Scene, i: int, half: int, sub_x: float, sub_y: float) -> Floats:
    """Convolve an exponential disk with the PSF on a fine grid and take the samples at the pixel centres."""
    middle = half * OVERSAMPLING
    fine = (np.arange(2 * middle + 1) - middle) / OVERSAMPLING
    dx, dy = fine - sub_x, fine[:, None] - sub_y
    angle = np.radians(scene.theta[i])
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / scene.ab[i]
    disk = np.exp(-HALF_LIGHT / scene.re[i] * np.hypot(along, across))
    disk /= disk.sum()
    psf = band.psf(fine, fine[:, None], scene.x[i])
    return fftconvolve(disk, psf, mode="same")[::OVERSAMPLING, ::OVERSAMPLING]


def observe(band: Band, index: int, scene: Scene, rng: np.random.Generator) -> tuple[Floats, float]:
    """Return the frame in counts of its own zero point, and the level at which it saturates."""
    scale = 10 ** (-0.4 * (band.zero_point - ZP_REF))  # own counts to reference counts
    sky = band.sky_sigma / scale
    image = np.zeros((SIZE, SIZE))
    for i in range(len(scene.x)):
        flux = 10 ** (0.4 * (band.zero_point - scene.mag[i, index]))
        light, x0, y0 = stamp(band, scene, i, 40 if scene.mag[i, index] > 17 else 120)
        rows = slice(max(0, y0), min(SIZE, y0 + len(light)))
        columns = slice(max(0, x0), min(SIZE, x0 + len(light)))
        image[rows, columns] += flux * light[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
    image += np.sqrt(sky**2 + image / band.gain) * rng.standard_normal(image.shape)
    saturation = FULL_WELL / band.gain
    image = np.minimum(image, saturation)
    image.flat[rng.choice(image.size, BAD_PIXELS, replace=False)] = np.nan
    image[: SIZE // 2, rng.integers(SIZE)] = np.nan
    return image, saturation


def sky_grid() -> WCS:
    """Return the coordinates of the pixels: 0.4 arcsec each, north up."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.1, 2.2]
    wcs.wcs.crpix = [(SIZE + 1) / 2, (SIZE + 1) / 2]
    wcs.wcs.cdelt = [-0.4 / 3600, 0.4 / 3600]
    return wcs


def write_frame(path: Path, band: Band, image: Floats, saturation: float) -> None:
    """Write a frame with the header keys that the photometry reads."""
    header = sky_grid().to_header()
    header["FILTER"] = band.name
    header["ZP_AUTO"] = (band.zero_point, "AB magnitude of one count")
    header["SKYSIG"] = (band.sky_sigma / 10 ** (-0.4 * (band.zero_point - ZP_REF)), "noise of the sky, counts")
    header["EGAIN"] = (band.gain, "electrons per count")
    header["SATURATE"] = (saturation, "counts")
    header["PEEING"] = (band.fwhm, "FWHM of the PSF, pixels")
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(path, overwrite=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as text."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_catalogs(directory: Path, scene: Scene, rng: np.random.Generator) -> None:
    """Write what the photometry is told, and what is true."""
    n = len(scene.x)
    kinds = np.where(scene.galaxy, "EXP", "STAR")
    ids = [f"S{i:03d}" for i in range(n)]
    x = scene.x + rng.normal(0, POSITION_ERROR, n)
    y = scene.y + rng.normal(0, POSITION_ERROR, n)
    ra, dec = sky_grid().all_pix2world(x, y, 0)
    told = [(ids[i], f"{ra[i]:.8f}", f"{dec[i]:.8f}", kinds[i]) for i in range(n)]
    write_csv(directory / "catalog.csv", ["ID", "RA", "DEC", "TYPE"], told)
    flux = 10 ** (0.4 * (ZP_REF - scene.mag))
    shapes = np.stack([scene.x, scene.y, scene.re, scene.ab, scene.theta], axis=1)
    true = [(ids[i], kinds[i], *(f"{v:.5f}" for v in shapes[i]), *(f"{f:.5f}" for f in flux[i])) for i in range(n)]
    columns = ["ID", "TYPE", "x", "y", "Re", "ab", "THETA", *(f"FLUX_{band.name}" for band in BANDS)]
    write_csv(directory / "truth.csv", columns, true)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the files go; made if it is not there")
    parser.add_argument("--seed", type=int, default=1, help="of the sources and the noise")
    given = parser.parse_args(arguments)
    given.directory.mkdir(parents=True, exist_ok=True)
    sky, errors, *noise = (np.random.default_rng(s) for s in np.random.SeedSequence(given.seed).spawn(2 + len(BANDS)))
    scene = make_scene(sky)
    for index, band in enumerate(BANDS):
        image, saturation = observe(band, index, scene, noise[index])
        write_frame(given.directory / f"frame_{band.name}.fits", band, image, saturation)
    write_catalogs(given.directory, scene, errors)
    (given.directory / "frames.txt").write_text(
        "".join(f"frame_{band.name}.fits\n" for band in BANDS), encoding="utf-8"
    )
    print(f"{len(BANDS)} frames of {SIZE}x{SIZE} pixels with {STARS} stars and {GALAXIES} galaxies: {given.directory}")


if __name__ == "__main__":
    main()
