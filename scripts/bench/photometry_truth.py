#!/usr/bin/env python3
"""Measure simulated fields whose fluxes are known, and print pulls and biases per band and signal-to-noise ratio.

Usage: photometry_truth.py [--psf file moffat build] [--seeds N] [--generator phot_scene.py] [--work DIRECTORY]

``file`` gives the run the true PSF, which varies over the frame; ``moffat`` the true constant one; with ``build``
the run makes its own from the stars. Isolated stars have no other source within 20 pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from tessera.photometry.psf import PsfField
from tessera.photometry.psf_files import write_grid
from tessera.photometry.psf_grids import Bilinear, moffat, stamp_offsets

Floats = NDArray[np.float64]

GENERATOR: Final = Path(__file__).resolve().parents[3] / "shared" / "scenes" / "phot_scene.py"
ISOLATED_PIX: Final = 20.0
BINS: Final = ((5.0, 20.0), (20.0, 100.0), (100.0, np.inf))
NODES: Final = 9
OVERSAMPLING: Final = 2
STAMP: Final = 55
CONSTANT: Final = ("--psf-grad", "0", "--psf-ell", "0")


@dataclass(frozen=True)
class Measured:
    """Isolated stars of one band: true and measured fluxes, quoted and least possible errors, shape (n,) each."""

    flux: Floats
    true: Floats
    error: Floats
    bound: Floats

    @property
    def pull(self) -> Floats:
        """(measured - true) / quoted error."""
        return (self.flux - self.true) / self.error

    def within(self, low: float, high: float) -> Measured:
        """Return the stars of a range of signal-to-noise ratio, which is the true one."""
        chosen = (self.true >= low * self.bound) & (self.true < high * self.bound)
        return Measured(self.flux[chosen], self.true[chosen], self.error[chosen], self.bound[chosen])


def make_scene(generator: Path, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Draw a scene with the generator and return its description."""
    command = [sys.executable, str(generator), "--out", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    description: dict[str, Any] = json.loads((folder / "scene.json").read_text())
    return description


def write_true_psfs(folder: Path, scene: dict[str, Any]) -> dict[str, Path]:
    """Write the PSF that each band was drawn with as a grid."""
    height, width = scene["shape"]
    xs, ys = np.linspace(0, width - 1, NODES), np.linspace(0, height - 1, NODES)
    offsets = stamp_offsets(STAMP, OVERSAMPLING)
    paths = {}
    for band in scene["per_band"]:
        psf, e = band["psf"], band["psf"]["e"]
        stamps = []
        for v in 2 * ys / (height - 1) - 1:
            for u in 2 * xs / (width - 1) - 1:
                fwhm = psf["fwhm"] * (1 + psf["gx"] * u + psf["gy"] * v + psf["q"] * (u * u + v * v))
                shear = (e[0] + e[1] * u, e[2] + e[3] * v)
                stamps.append(moffat(offsets[None, :], offsets[:, None], fwhm, psf["beta"], *shear))
        path = folder / f"psf_{band['band']}.fits"
        path.unlink(missing_ok=True)
        write_grid(path, PsfField(np.array(stamps), OVERSAMPLING, Bilinear(xs, ys)), band["band"])
        paths[band["band"]] = path
    return paths


def measure(folder: Path, source: str, psfs: dict[str, Path], ranks: int) -> Path:
    """Run the photometry and return its catalog."""
    run = folder / f"run_{source}"
    command = [
        *(sys.executable, "-m", "hpc", "job=photometry"),
        f"job.inputs.image_list_file={folder / 'image_list.txt'}",
        f"job.inputs.input_catalog={folder / 'input_catalog.csv'}",
        f"job.epsf.source={source}",
        *(f"+job.epsf.files.{band}={path}" for band, path in psfs.items()),
        *(f"run.dir={run}", f"cluster.ranks={ranks}", "cluster.threads_per_process=1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return run / "results" / "catalog.ecsv"


def isolated_stars(catalog: Path, truth: Path, bands: Sequence[str]) -> Iterator[tuple[str, Measured]]:
    """Yield the isolated stars of each band that have a flux."""
    found, true = Table.read(catalog, format="ascii.ecsv"), Table.read(truth, format="ascii.csv")
    row_of = {int(name): row for row, name in enumerate(true["ID"])}
    true = true[[row_of[int(name)] for name in found["ID"]]]
    chosen = (true["TYPE"] == "STAR") & (true["nn_pix"] > ISOLATED_PIX)
    for band in bands:
        columns = (found[f"FLUX_{band}_fit"], true[f"flux_{band}"], found[f"FLUXERR_{band}_fit"], true[f"crlb_{band}"])
        values = np.array([np.asarray(column, float) for column in columns])
        yield band, Measured(*values[:, chosen & np.isfinite(values).all(axis=0)])


def table(stars: dict[str, list[Measured]]) -> str:
    """Return the comparison as a markdown table."""
    lines = [
        "| band | S/N | stars | pull mean | ± | pull std | ± | worst | bias % | ± |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for band, parts in stars.items():
        joined = Measured(*(np.concatenate([getattr(p, name) for p in parts]) for name in Measured.__annotations__))
        for low, high in BINS:
            chosen = joined.within(low, high)
            n, pull, ratio = len(chosen.flux), chosen.pull, chosen.flux / chosen.true - 1
            if n < 2:
                continue
            label = f"{low:g}-{high:g}" if np.isfinite(high) else f">{low:g}"
            spread = 1.4826 * np.median(np.abs(ratio - np.median(ratio)))
            lines.append(
                f"| {band} | {label} | {n} | {pull.mean():+.3f} | {pull.std() / n**0.5:.3f} | {pull.std(ddof=1):.3f} "
                f"| {(2 * n) ** -0.5:.3f} | {np.abs(pull).max():.1f} | {100 * np.median(ratio):+.2f} "
                f"| {125 * spread / n**0.5:.2f} |"
            )
    return "\n".join(lines)


def campaign(given: argparse.Namespace, source: str, work: Path) -> str:
    """Measure all seeds with one kind of PSF."""
    stars: dict[str, list[Measured]] = {}
    for seed in range(1, given.seeds + 1):
        constant = CONSTANT if source == "moffat" else ()
        folder = work / f"{'constant' if constant else 'varying'}_{seed}"
        scene = make_scene(given.generator, folder, ["--seed", str(seed), *constant, *given.scene.split()])
        psfs = write_true_psfs(folder, scene) if source == "file" else {}
        catalog = measure(folder, source, psfs, given.ranks)
        for band, found in isolated_stars(catalog, folder / "truth.csv", scene["bands"]):
            stars.setdefault(band, []).append(found)
    return table(stars)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table per kind of PSF."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--psf", nargs="+", choices=["file", "moffat", "build"], default=["file", "moffat", "build"])
    parser.add_argument("--seeds", type=int, default=10, help="scenes, seeds 1 to this")
    parser.add_argument("--generator", type=Path, default=GENERATOR, help="the scene generator, phot_scene.py")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep scenes and runs here")
    parser.add_argument(
        "--scene",
        default="--size 1024 --nsrc 500 --bands 3 --gal-frac 0.1 --mag-slope 0.1 --bad-cols 0 --bad-frac 1e-4",
        help="options of the generator; the default's flat magnitudes put stars into every range",
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        for source in given.psf:
            print(f"\nPSF: {source}\n")
            print(campaign(given, source, given.work or Path(temporary)), flush=True)


if __name__ == "__main__":
    main()
