"""Read a photometry run's results back for its report; parts that are not there yet are None or empty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import h5py
    from astropy.table import Table

Floats = NDArray[np.float64]
Float32 = NDArray[np.float32]
Bounds = tuple[int, int, int, int]

_FORMATS: Final[Mapping[str, str]] = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits"}
_ANGLES: Final = 72
_STEP: Final = 0.1


@dataclass(frozen=True)
class Overlay:
    """The white stack, thinned out for display.

    Attributes
    ----------
    white
        Shape (h, w), reference counts; every ``step``-th pixel of the frame.
    step
        Frame pixels from one to the next.
    box
        ``(x0, y0, x1, y1)`` of the cropped frame.
    """

    white: Float32
    step: int
    box: Bounds


@dataclass(frozen=True)
class Frames:
    """What was measured on the frames, one entry per band; counts at zero point ``zp_ref``, but ``sky_level``."""

    bands: tuple[str, ...]
    files: tuple[str, ...]
    sky_sigma: Floats
    sky_level: Floats
    n_bad: Floats
    n_saturated: Floats
    gain: Floats
    zp_ref: float
    shape: tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """One cell of a band's PSF grid.

    Attributes
    ----------
    band, row, column
        Which one.
    stamp
        Shape (m, m), zeros if none was built.
    oversampling
        Samples per pixel.
    nstars, ok, reason, ee_radii
        As in `tessera.photometry.epsf.CellPsf`.
    fwhm, ellipticity
        Of the stamp at half of its maximum: pixels; 1 - b/a. NaN where there is no stamp.
    """

    band: str
    row: int
    column: int
    stamp: Floats
    oversampling: int
    nstars: int
    ok: bool
    reason: str
    ee_radii: tuple[float, ...]
    fwhm: float
    ellipticity: float


@dataclass(frozen=True)
class PatchRecord:
    """How the fit of a patch went.

    Attributes
    ----------
    key
        Name of the patch.
    base
        ``(x0, y0, x1, y1)`` of the pixels it owns.
    n_own, n_halo
        Sources measured here; sources of its halo.
    chi2
        Shape (n_own, B), of each source.
    unconverged
        How many of its own sources did not converge.
    sky_pull
        Shape (B,): fitted sky over its error.
    pictured
        Data and model were kept.
    """

    key: str
    base: Bounds
    n_own: int
    n_halo: int
    chi2: Floats
    unconverged: int
    sky_pull: Floats
    pictured: bool

    @property
    def typical_chi2(self) -> float:
        """Median over its sources and bands; NaN if nothing was measured."""
        values = self.chi2[np.isfinite(self.chi2)]
        return float(np.median(values)) if values.size else np.nan


@dataclass(frozen=True)
class Picture:
    """Data and model of some pixels.

    Attributes
    ----------
    key
        What is shown.
    image, model, sigma
        Shape (B, h, w), reference counts; image is NaN and sigma inf on bad pixels. Sigma holds the noise of the sky
        and of the model's light.
    """

    key: str
    image: Float32
    model: Float32
    sigma: Float32

    @property
    def pulls(self) -> Float32:
        """``(image - model) / sigma``, shape (B, h, w), NaN on bad pixels."""
        return np.asarray((self.image - self.model) / self.sigma, np.float32)


def read_overlay(results: Path) -> Overlay | None:
    """Return the thinned white stack."""
    with _opened(results / "overlay.h5") as file:
        if file is None:
            return None
        step = int(json.loads(file.attrs["downsample"]))
        return Overlay(file["overlay/white"][()], step, _bounds(file["overlay/box"][()]))


def read_catalog(results: Path) -> Table | None:
    """Return the catalog."""
    return _table(results / "catalog.fits")


def read_truth(path: Path, ids: NDArray[Any]) -> dict[str, Floats] | None:
    """Return a simulation's true fluxes.

    Parameters
    ----------
    path
        Table (CSV, ECSV or FITS) with the columns ID and ``FLUX_<band>``, in capitals or not.
    ids
        Names of the sources, shape (n,).

    Returns
    -------
    dict or None
        By band, shape (n,), NaN for sources that the table does not have; None if there is no such file.
    """
    table = _table(path)
    if table is None:
        return None
    rows = {str(name): row for row, name in enumerate(table["ID"])}
    found = np.array([rows.get(str(name), -1) for name in ids])
    names = [name for name in table.colnames if name.lower().startswith("flux_")]
    columns = {name[5:]: np.asarray(table[name], float) for name in names}
    return {band: np.where(found >= 0, flux[found], np.nan) for band, flux in columns.items()}


def read_frames(results: Path) -> Frames | None:
    """Return what was measured on the frames."""
    with _opened(results / "photometry.h5") as file:
        if file is None:
            return None
        group = file["frames"]
        shape = json.loads(file.attrs["shape"])
        return Frames(
            bands=_texts(group["band"]),
            files=_texts(group["file"]),
            **{k: group[k][()] for k in ("sky_sigma", "sky_level", "n_bad", "n_saturated", "gain")},
            zp_ref=float(json.loads(file.attrs["zp_ref"])),
            shape=(int(shape[0]), int(shape[1])),
        )


def read_cells(results: Path) -> list[Cell]:
    """Return the cells of the PSF grids, in the order of the bands; empty if no PSF was built."""
    with _opened(results / "epsf.h5") as file:
        if file is None:
            return []
        bands = json.loads(file.attrs["bands"])
        return [_cell(band, name, group) for band in bands if band in file for name, group in file[band].items()]


def _cell(band: str, name: str, group: h5py.Group) -> Cell:
    row, column = (int(part[1:]) for part in name.split("_"))
    stamp, oversampling = group["stamp"][()], int(group["oversampling"][()])
    fwhm, ellipticity = half_maximum_shape(stamp, oversampling)
    reason = group["reason"][()]
    return Cell(
        band=band,
        row=row,
        column=column,
        stamp=stamp,
        oversampling=oversampling,
        nstars=int(group["nstars"][()]),
        ok=bool(group["ok"][()]),
        reason=reason.decode() if isinstance(reason, bytes) else str(reason),
        ee_radii=tuple(float(r) for r in group["ee_radii"][()]),
        fwhm=fwhm,
        ellipticity=ellipticity,
    )


def half_maximum_shape(stamp: Floats, oversampling: int = 1) -> tuple[float, float]:
    """Measure a PSF where it falls to half of its central value.

    Parameters
    ----------
    stamp
        Shape (m, m), centred on its middle sample.
    oversampling
        Samples per pixel.

    Returns
    -------
    fwhm, ellipticity
        Twice the mean radius of that contour, pixels, and ``1 - b/a`` from its second harmonic; NaN if the stamp
        does not fall to half.
    """
    from scipy.ndimage import map_coordinates

    half = stamp.shape[0] // 2
    radius = np.arange(0, half, _STEP)
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    rows, columns = half + np.outer(np.sin(angle), radius), half + np.outer(np.cos(angle), radius)
    light = map_coordinates(stamp, [rows, columns], order=3, mode="nearest")
    level = stamp[half, half] / 2
    below = light < level
    if level <= 0 or not below.any(axis=1).all():
        return np.nan, np.nan
    first = below.argmax(axis=1)
    inner, outer = (light[np.arange(_ANGLES), k] for k in (first - 1, first))
    contour = (radius[first] - _STEP * (level - outer) / (inner - outer)) / oversampling
    harmonic = 2 * abs(np.mean(contour * np.exp(-2j * angle)))
    mean = float(contour.mean())
    return 2 * mean, float(2 * harmonic / (mean + harmonic))


def read_patches(results: Path) -> list[PatchRecord]:
    """Return how the patches went, in the order of their keys."""
    with _opened(results / "photometry.h5") as file:
        if file is None or "patches" not in file:
            return []
        return [_patch(key, group) for key, group in file["patches"].items()]


def _patch(key: str, group: h5py.Group) -> PatchRecord:
    sky, error = group["sky"][()], group["sky_err"][()]
    return PatchRecord(
        key=key,
        base=_bounds(group["base"][()]),
        n_own=len(group["rows"]),
        n_halo=int(group["n_halo"][()]),
        chi2=group["chi2"][()],
        unconverged=int(np.count_nonzero(~group["converged"][()])),
        sky_pull=np.divide(sky, error, out=np.full(len(sky), np.nan), where=error > 0),
        pictured="model" in group,
    )


def read_pictures(results: Path, keys: list[str], gain: Floats) -> Iterator[Picture]:
    """Yield data and model of patches that were kept, one by one.

    Parameters
    ----------
    results
        The run's results.
    keys
        Of the patches.
    gain
        Electrons per reference count, shape (B,), for the noise of the model's light.
    """
    with _opened(results / "photometry.h5") as file:
        if file is None:
            return
        for key in keys:
            group = file["patches"][key]
            model, sky = group["model"][()], group["sigma"][()]
            light = np.maximum(model, 0) / gain[:, None, None]
            yield Picture(key, group["image"][()], model, np.sqrt(sky**2 + light).astype(np.float32))


def join_pictures(pictures: list[tuple[Bounds, Picture]], key: str) -> Picture:
    """Put pictures where they belong on the frame.

    Parameters
    ----------
    pictures
        With their ``(x0, y0, x1, y1)``.
    key
        Name of the result.

    Returns
    -------
    Picture
        Over the smallest box that holds all; bad pixels where there is none.
    """
    x0, y0 = (min(bounds[k] for bounds, _ in pictures) for k in (0, 1))
    x1, y1 = (max(bounds[k] for bounds, _ in pictures) for k in (2, 3))
    shape = (len(pictures[0][1].image), y1 - y0, x1 - x0)
    image, model, sigma = (np.full(shape, fill, np.float32) for fill in (np.nan, np.nan, np.inf))
    for (left, low, right, high), picture in pictures:
        window = (slice(None), slice(low - y0, high - y0), slice(left - x0, right - x0))
        image[window], model[window], sigma[window] = picture.image, picture.model, picture.sigma
    return Picture(key, image, model, sigma)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File | None]:
    from hpc import existing_hdf5

    if not path.is_file():
        yield None
        return
    with existing_hdf5(path) as file:
        yield file


def _table(path: Path) -> Table | None:
    from astropy.table import Table

    if not path.is_file():
        return None
    kind = _FORMATS.get(path.suffix, "ascii.csv")
    if kind == "ascii.csv":
        return Table.read(path, format=kind, converters={"ID": str})  # names like 000017 are text
    return Table.read(path, format=kind)


def _texts(dataset: h5py.Dataset) -> tuple[str, ...]:
    return tuple(text.decode() for text in dataset[()])


def _bounds(values: NDArray[np.int64]) -> Bounds:
    x0, y0, x1, y1 = (int(v) for v in values)
    return x0, y0, x1, y1
