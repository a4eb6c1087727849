#!/usr/bin/env python3
"""Measure one simulated field with Tessera and with photutils' PSFPhotometry: CPU time and accuracy side by side.

Usage: photometry_peers.py [--generator phot_scene.py] [--scene "generator options"]

Both get the same stars-only frames, catalog positions and PSFs (the true ones; then those that Tessera built), and run
on one core. photutils fits band by band with grouping, a local background and the noise of the sky (with that of the
data added its faint stars come out 7 % low); its iterative mode is off. Times are of whole processes: reading,
fitting, writing. The Tractor, which tract7dt needs, is in no package index and is not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from astropy.io import fits
from astropy.nddata import NDData
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from numpy.typing import NDArray
from photometry_truth import GENERATOR, Measured, make_scene, measure, write_true_psfs

Floats = NDArray[np.float64]

SCENE: Final = "--size 1024 --nsrc 300 --bands 5 --seed 1 --bad-frac 0 --bad-cols 0 --gal-frac 0"
FIT_SHAPE: Final = (15, 15)
GROUP_PIX: Final = 12.0
ANNULUS: Final = (14, 22)
CLASSES: Final = (
    ("isolated, S/N 5-20", 20.0, np.inf, 5.0, 20.0),
    ("isolated, S/N 20-100", 20.0, np.inf, 20.0, 100.0),
    ("isolated, S/N > 100", 20.0, np.inf, 100.0, np.inf),
    ("neighbour within 8 pix", 0.0, 8.0, 5.0, np.inf),
)


def with_photutils(folder: Path, psfs: dict[str, Path]) -> Table:
    """Measure all bands with photutils; returns ID and ``FLUX_<band>_fit``, ``FLUXERR_<band>_fit``."""
    from photutils.background import LocalBackground
    from photutils.psf import PSFPhotometry, SourceGrouper

    given = Table.read(folder / "input_catalog.csv", format="ascii.csv", converters={"ID": str})
    out = Table({"ID": given["ID"]})
    for band, path in psfs.items():
        with fits.open(folder / "images" / f"SIM_{band}.fits") as hdus:
            header, image = hdus[0].header, hdus[0].data.astype(float)
        error = np.full(image.shape, float(header["SKYSIG"]))
        x, y = WCS(header).all_world2pix(given["RA"], given["DEC"], 0)
        fit = PSFPhotometry(
            _gridded(path),
            FIT_SHAPE,
            grouper=SourceGrouper(GROUP_PIX),
            aperture_radius=4.0,
            xy_bounds=5.0,
            local_bkg_estimator=LocalBackground(*ANNULUS),
        )
        start = Table({"x": x, "y": y, "id": np.arange(1, len(x) + 1)})
        found = fit(image, error=error, mask=image >= header["SATURATE"] / 1.3, init_params=start)
        found.sort("id")
        scale = 10 ** (-0.4 * (header["ZP_AUTO"] - 25))
        out[f"FLUX_{band}_fit"] = np.asarray(found["flux_fit"], float) * scale
        out[f"FLUXERR_{band}_fit"] = np.asarray(found["flux_err"], float) * scale
    return out


def _gridded(path: Path) -> object:
    from photutils.psf import GriddedPSFModel

    with fits.open(path) as hdus:
        nodes = [(float(x), float(y)) for x, y in zip(hdus["GRID"].data["x"], hdus["GRID"].data["y"], strict=True)]
        meta = {"grid_xypos": nodes, "oversampling": hdus[0].header["OVERSAMP"]}
        return GriddedPSFModel(NDData(np.asarray(hdus[0].data, float), meta=meta))


def rows(catalog: Table, truth: Table, bands: Sequence[str], usable: set[str]) -> list[tuple[float, ...]]:
    """Return bias (%), scatter over its least possible value, and mean and spread of pulls for each class."""
    truth = truth[[str(name) in usable for name in truth["ID"]]]
    at = {str(name): row for row, name in enumerate(catalog["ID"])}
    catalog = catalog[[at[str(name)] for name in truth["ID"]]]
    result = []
    for _, nearest, farthest, low, high in CLASSES:
        chosen = (truth["nn_pix"] > nearest) & (truth["nn_pix"] <= farthest)
        parts = []
        for band in bands:
            columns = (catalog[f"FLUX_{band}_fit"], truth[f"flux_{band}"], catalog[f"FLUXERR_{band}_fit"])
            values = np.array([np.asarray(column, float) for column in (*columns, truth[f"crlb_{band}"])])
            parts.append(values[:, chosen & np.isfinite(values).all(axis=0)])
        stars = Measured(*np.concatenate(parts, axis=1)).within(low, high)
        excess = (stars.flux - stars.true) / stars.bound
        scatter = 1.4826 * np.median(np.abs(excess - np.median(excess)))
        bias = 100 * np.median(stars.flux / stars.true - 1)
        result.append((len(stars.flux), bias, scatter, stars.pull.mean(), stars.pull.std()))
    return result


def cpu_seconds(command: Sequence[str]) -> float:
    """Run a command on one thread and return its CPU time."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env={**os.environ, **threads})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(folder: Path, bands: Sequence[str], source: str, psfs: dict[str, Path]) -> None:
    """Print the table of one kind of PSF."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    catalog = measure(folder, source, psfs, 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    psfs = psfs or {band: catalog.parent / f"epsf_{band}.fits" for band in bands}
    job = folder / f"peer_{source}.json"
    job.write_text(json.dumps({band: str(path) for band, path in psfs.items()}))
    theirs_s = cpu_seconds([sys.executable, __file__, "--peer", str(job)])
    truth = Table.read(folder / "truth.csv", format="ascii.csv", converters={"ID": str})
    ours = Table.read(catalog, format="ascii.ecsv")
    usable = {str(row["ID"]) for row in ours if not row["excluded_any"]}
    theirs = Table.read(job.with_suffix(".ecsv"), format="ascii.ecsv")
    print(f"\nPSF: {'the true one' if source == 'file' else 'made by Tessera from the stars'}\n")
    print("| | N | bias %, Tessera | photutils | scatter / bound, Tessera | photutils | pulls, Tessera | photutils |")
    print("|---|---|---|---|---|---|---|---|")
    pairs = zip(CLASSES, rows(ours, truth, bands, usable), rows(theirs, truth, bands, usable), strict=True)
    for (name, *_), (n, bias, scatter, mean, spread), (_, bias2, scatter2, mean2, spread2) in pairs:
        print(
            f"| {name} | {n} | {bias:+.2f} | {bias2:+.2f} | {scatter:.2f} | {scatter2:.2f} "
            f"| {mean:+.2f} ± {spread:.2f} | {mean2:+.2f} ± {spread2:.2f} |"
        )
    note = "" if source == "file" else "; photutils was given the finished PSFs, Tessera had to build them"
    print(f"\nCPU seconds: Tessera {ours_s:.1f}, photutils {theirs_s:.1f}, {theirs_s / ours_s:.1f} times that{note}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the scene and print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", type=Path, default=GENERATOR, help="the scene generator, phot_scene.py")
    parser.add_argument("--scene", default=SCENE, help="its options")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peer:
        psfs = {band: Path(path) for band, path in json.loads(given.peer.read_text()).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            with_photutils(given.peer.parent, psfs).write(given.peer.with_suffix(".ecsv"), overwrite=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scene = make_scene(given.generator, folder, given.scene.split())
        compare(folder, scene["bands"], "file", write_true_psfs(folder, scene))
        compare(folder, scene["bands"], "build", {})


if __name__ == "__main__":
    main()
