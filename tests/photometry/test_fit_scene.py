"""A crowded multi-band scene of the shared generator, fitted with its true, varying PSF."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from photometry.fit_scenes import HALF, Moffat

from tessera.photometry.fit import fit_patch
from tessera.photometry.psf import PsfField
from tessera.photometry.psf_grids import Bilinear
from tessera.photometry.sources import EXP, STAR, PatchPixels, Sources

pytestmark = [pytest.mark.shared, pytest.mark.slow]

OPTIONS = "--size 600 --nsrc 130 --bands 4 --seed 8 --nsat 1 --cluster 0.2 --workers 1 --bad-frac 1e-3"


def true_psf(psf, shape):
    """Sample the scene's PSF on 9 x 9 nodes, 4 samples a pixel."""
    ny, nx = shape
    axis = np.arange(-HALF * 4, HALF * 4 + 1) / 4
    xs, ys = np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)
    stamps = []
    for y in ys:
        for x in xs:
            u, v = 2 * x / (nx - 1) - 1, 2 * y / (ny - 1) - 1
            fwhm = psf["fwhm"] * (1 + psf["gx"] * u + psf["gy"] * v + psf["q"] * (u * u + v * v))
            e = psf["e"]
            at = Moffat(fwhm, psf["beta"], e[0] + e[1] * u, e[2] + e[3] * v)
            stamps.append(at(axis[None, :], axis[:, None]))
    return PsfField(np.array(stamps), 4, Bilinear(xs, ys))


def read_frames(folder, bands):
    images, variances, gains = [], [], []
    for band in bands:
        with fits.open(folder / "images" / f"SIM_{band}.fits") as hdus:
            header, data = hdus[0].header, hdus[0].data.astype(float)
        scale = 10 ** (-0.4 * (header["ZP_AUTO"] - 25))
        variance = np.full(data.shape, (header["SKYSIG"] * scale) ** 2)
        variance[~(data < 0.999 * header["SATURATE"])] = np.inf
        images.append(data * scale)
        variances.append(variance)
        gains.append(header["EGAIN"] / scale)
    return PatchPixels(0, 0, np.array(images), np.array(variances), np.array(gains)), WCS(header)


def read_sources(path, wcs, bands):
    with path.open() as file:
        rows = list(csv.DictReader(file))

    def column(name):
        return np.array([float(row[name] or "nan") for row in rows])

    x, y = wcs.all_world2pix(column("RA"), column("DEC"), 0)
    kind = np.array([EXP if row["TYPE"] == "EXP" else STAR for row in rows], dtype=np.int64)
    guess, prior = np.full((len(x), bands), np.nan), np.full(len(x), np.inf)
    return Sources(x, y, kind, guess, column("Re"), 1 - column("ELL"), column("THETA"), prior)


@pytest.fixture(scope="module")
def measured(shared, tmp_path_factory):
    """The fit of the whole frame as one patch, the truth (n, B), and the truth's other columns."""
    folder = tmp_path_factory.mktemp("scene")
    command = [sys.executable, str(shared / "scenes" / "phot_scene.py"), "--out", str(folder), *OPTIONS.split()]
    subprocess.run(command, check=True, capture_output=True)
    meta = json.loads((folder / "scene.json").read_text())
    pixels, wcs = read_frames(folder, meta["bands"])
    sources = read_sources(folder / "input_catalog.csv", wcs, len(meta["bands"]))
    psfs = [true_psf(band["psf"], meta["shape"]) for band in meta["per_band"]]
    with (folder / "truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if key not in ("ID", "TYPE")}
    flux = np.column_stack([truth[f"flux_{band}"] for band in meta["bands"]])
    crlb = np.column_stack([truth[f"crlb_{band}"] for band in meta["bands"]])
    near = np.hypot(sources.x - truth["x"][-1], sources.y - truth["y"][-1]) < 25
    return fit_patch(pixels, sources, psfs), flux, flux / crlb, truth, sources.kind, ~near


@pytest.mark.parametrize(("low", "high"), [(5, 20), (20, 100), (100, 1e9)])
def test_pulls_of_isolated_stars(measured, low, high):
    fit, flux, snr, truth, kind, clear = measured
    chosen = (snr >= low) & (snr < high) & ((kind == STAR) & clear & (truth["nn_pix"] > 15))[:, None]
    pulls = ((fit.flux - flux) / fit.flux_err)[chosen]
    assert pulls.size > 10
    assert abs(pulls.mean()) < 3 / np.sqrt(pulls.size)
    assert abs(pulls.std() - 1) < 3 / np.sqrt(2 * pulls.size)


def test_blends_and_galaxies_are_not_biased(measured):
    fit, flux, snr, _, kind, clear = measured
    seen = (snr > 10) & clear[:, None]
    for name, chosen in (("galaxies", seen & (kind == EXP)[:, None]), ("stars", seen & (kind == STAR)[:, None])):
        assert abs(np.median((fit.flux / flux - 1)[chosen])) < 0.03, name
        pulls = ((fit.flux - flux) / fit.flux_err)[chosen]
        assert 0.85 < 1.4826 * np.median(np.abs(pulls)) < 1.2, name


def test_all_listed_sources_are_measured(measured):
    fit, *_ = measured
    assert np.isfinite(fit.flux).all()
    assert fit.converged.mean() > 0.97
