"""What the scientist came for: the catalog as ECSV and FITS, the white stack, and the diagnostics as HDF5."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.photometry.catalog import Catalog
from tessera.photometry.select import Selection
from tessera.photometry.sources import Kind

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

Arrays = Mapping[str, NDArray[Any]]

MAG_OF_LN: Final = 2.5 / np.log(10)

PER_SOURCE: Final = {
    "x": ("x_pix_white_fit", "pix", "fitted column, 0-based pixels of the uncropped frame"),
    "y": ("y_pix_white_fit", "pix", "fitted row, 0-based pixels of the uncropped frame"),
    "x_err": ("x_pix_white_fit_err", "pix", "marginal standard error of x_pix_white_fit"),
    "y_err": ("y_pix_white_fit_err", "pix", "marginal standard error of y_pix_white_fit"),
    "re": ("Re_fit", "pix", "half-light radius along the major axis; NaN for stars"),
    "re_err": ("Re_fit_err", "pix", "marginal standard error of Re_fit"),
    "ab": ("ab_fit", "", "axis ratio b/a; NaN for stars"),
    "ab_err": ("ab_fit_err", "", "marginal standard error of ab_fit"),
    "theta": ("THETA_fit", "deg", "position angle of the major axis, counter-clockwise from +x; NaN for stars"),
    "theta_err": ("THETA_fit_err", "deg", "marginal standard error of THETA_fit"),
    "last_dlnp": ("opt_last_dlnp", "", "gain in ln P that the last step promised"),
}
PER_BAND: Final = {
    "flux": ("FLUX_{}_fit", "ct", "flux in {}, counts at zero point zp_ref"),
    "flux_err": ("FLUXERR_{}_fit", "ct", "marginal standard error of the flux in {}"),
    "chi2": ("CHI2_{}_fit", "", "profile-weighted mean squared normalised residual in {}; 1 is a good fit"),
    "fracflux": ("FRACFLUX_{}_fit", "", "profile-weighted light of other sources over the own in {}; 0 is alone"),
}
FLAGS: Final = {
    "converged": ("opt_converged", "the fit converged"),
    "hit_max_iters": ("opt_hit_max_iters", "the fit was cut off at n_opt_iters steps"),
    "bound_stalled": ("flag_bound_stalled", "position or radius rests on its bound"),
    "degenerate": ("flag_degenerate", "cannot be told apart from a neighbour"),
}


@dataclass(frozen=True)
class Measurements:
    """Results of all patches, one row per source of the catalog.

    Attributes
    ----------
    values
        By the names of `PER_SOURCE` (n,), `PER_BAND` and ``npix`` (n, B), `FLAGS` and ``niters`` (n,).
    patch
        Key of the patch that measured the source, shape (n,); empty where none did.
    """

    values: dict[str, NDArray[Any]]
    patch: NDArray[np.str_]


def empty_measurements(n: int, bands: int, key_width: int) -> Measurements:
    """Return rows in which nothing is measured."""
    values: dict[str, NDArray[Any]] = {name: np.full(n, np.nan) for name in PER_SOURCE}
    values |= {name: np.full((n, bands), np.nan) for name in PER_BAND}
    values |= {name: np.zeros(n, bool) for name in FLAGS}
    values |= {"niters": np.zeros(n, np.int32), "npix": np.zeros((n, bands), np.int32)}
    return Measurements(values, np.full(n, "", f"<U{max(1, key_width)}"))


def collect(results: Iterable[tuple[str, Arrays]], n: int, bands: int, key_width: int) -> Measurements:
    """Put the results of the patches into the order of the catalog; each holds ``rows`` and the values."""
    collected = empty_measurements(n, bands, key_width)
    for key, arrays in results:
        rows = arrays["rows"]
        collected.patch[rows] = key
        for name, column in collected.values.items():
            column[rows] = arrays[name]
    return collected


def build_catalog(
    catalog: Catalog,
    selection: Selection,
    measured: Measurements,
    bands: Sequence[str],
    wcs: WCS | None,
    zp_ref: float,
    psf_fallback: Mapping[str, NDArray[np.bool_]],
) -> Table:
    """Make the output catalog: all columns of the input, then flags and measurements with units and descriptions.

    Parameters
    ----------
    catalog, selection, measured
        Same rows.
    bands
        Names of the bands.
    wcs
        Of the frames; without it there is no RA_fit, DEC_fit.
    zp_ref
        AB magnitude of one reference count.
    psf_fallback
        By band, shape (n,): the PSF at the source is not an empirical one.

    Returns
    -------
    astropy.table.Table
        One row per source of the input, in its order; NaN where nothing was measured.
    """
    table = _input_columns(catalog)

    def put(name: str, values: NDArray[Any], unit: str, description: str) -> None:
        table[name] = values
        table[name].unit = unit or None
        table[name].description = description

    put("excluded_crop", selection.excluded_crop, "", "off the frame or on its cropped edge; not measured")
    put("excluded_saturation", selection.excluded_saturation, "", "too near to saturated pixels; not measured")
    put("excluded_any", selection.excluded_any, "", "not measured for any of the reasons")
    put("x_pix_white", catalog.sources.x, "pix", "catalog column, 0-based pixels of the uncropped frame")
    put("y_pix_white", catalog.sources.y, "pix", "catalog row, 0-based pixels of the uncropped frame")
    put("patch_tag", measured.patch, "", "patch that measured the source; empty if none did")
    values = measured.values
    kinds = np.array([Kind(k).name for k in catalog.sources.kind])
    put("stype_fit", np.where(measured.patch == "", "", kinds), "", "profile that was fitted")
    for name, (column, unit, description) in PER_SOURCE.items():
        put(column, values[name], unit, description)
    put("ELL_fit", 1 - values["ab"], "", "1 - b/a; NaN for stars")
    for angles, column, unit, description in _sky_positions(values, wcs):
        put(column, angles, unit, description)
    for b, band in enumerate(bands):
        for name, (column, unit, description) in PER_BAND.items():
            put(column.format(band), values[name][:, b], unit, description.format(band))
        put(f"NPIX_{band}_fit", values["npix"][:, b], "", f"good pixels under the source in {band}")
        mag, mag_err = magnitudes(values["flux"][:, b], values["flux_err"][:, b], zp_ref)
        put(f"MAG_{band}_fit", mag, "mag", f"AB magnitude in {band}; NaN for fluxes not above zero")
        put(f"MAGERR_{band}_fit", mag_err, "mag", f"standard error of MAG_{band}_fit")
        put(f"psf_fallback_{band}", psf_fallback[band], "", f"the PSF in {band} at the source is not an empirical one")
    put("opt_niters", values["niters"], "", "steps of the fit")
    for name, (column, description) in FLAGS.items():
        put(column, values[name], "", description)
    issues = quality_issues(selection, measured)
    put("fit_is_reliable", issues == "", "", "no entry in fit_quality_issues")
    put("fit_quality_issues", issues, "", "what speaks against the fit, comma-separated")
    table.meta = {"bands": list(bands), "zp_ref": zp_ref, "input_catalog": catalog.path.name}
    return table


def _input_columns(catalog: Catalog) -> Table:
    from astropy.table import Table

    table = Table({"ID": catalog.ids})
    table["ID"].description = "name of the source"
    for name in catalog.table.colnames:
        column = catalog.table[name]
        if name in table.colnames or (column.dtype.hasobject and column.dtype.kind != "U"):
            continue
        if getattr(column, "mask", None) is not None:
            column = column.astype(np.float64).filled(np.nan) if column.dtype.kind in "fiu" else column.filled("")
        table[name] = column
    return table


def _sky_positions(values: Arrays, wcs: WCS | None) -> list[tuple[NDArray[Any], str, str, str]]:
    if wcs is None:
        return []
    fitted = np.isfinite(values["x"]) & np.isfinite(values["y"])
    x, y = values["x"][fitted], values["y"][fitted]
    ra, dec, ra_err, dec_err = (np.full(fitted.shape, np.nan) for _ in range(4))
    if fitted.any():
        ra[fitted], dec[fitted] = wcs.all_pix2world(x, y, 0)
        errors = _sky_errors(wcs, x, y, values["x_err"][fitted], values["y_err"][fitted])
        ra_err[fitted], dec_err[fitted] = errors
    return [
        (ra, "RA_fit", "deg", "fitted right ascension, in the frames' system"),
        (dec, "DEC_fit", "deg", "fitted declination, in the frames' system"),
        (ra_err, "RA_fit_err", "arcsec", "marginal standard error along right ascension (times cos DEC)"),
        (dec_err, "DEC_fit_err", "arcsec", "marginal standard error along declination"),
    ]


def _sky_errors(
    wcs: WCS, x: NDArray[Any], y: NDArray[Any], x_err: NDArray[Any], y_err: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    ra, dec = wcs.all_pix2world(x, y, 0)
    squares = [np.zeros(x.shape), np.zeros(x.shape)]
    for dx, dy, err in ((1, 0, x_err), (0, 1, y_err)):
        ra1, dec1 = wcs.all_pix2world(x + dx, y + dy, 0)
        east = ((ra1 - ra + 180) % 360 - 180) * np.cos(np.radians(dec)) * 3600
        squares[0] += (east * err) ** 2
        squares[1] += ((dec1 - dec) * 3600 * err) ** 2
    return np.sqrt(squares[0]), np.sqrt(squares[1])


def magnitudes(
    flux: NDArray[np.float64], flux_err: NDArray[np.float64], zp_ref: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AB magnitudes ``zp_ref - 2.5 log10 F`` and ``2.5 / ln 10 * dF / F``, NaN where F is not above zero."""
    positive = flux > 0
    safe = np.where(positive, flux, 1.0)
    mag = np.where(positive, zp_ref - 2.5 * np.log10(safe), np.nan)
    return mag, np.where(positive, MAG_OF_LN * flux_err / safe, np.nan)


def quality_issues(selection: Selection, measured: Measurements) -> NDArray[np.str_]:
    """Return per source what speaks against its fit, comma-separated, empty if nothing does."""
    fitted = measured.patch != ""
    checks = (
        ("excluded", selection.excluded_any),
        ("no_fit_result", ~fitted & ~selection.excluded_any),
        ("not_converged", fitted & ~measured.values["converged"]),
        ("hit_max_iters", fitted & measured.values["hit_max_iters"]),
        ("bound_stalled", fitted & measured.values["bound_stalled"]),
        ("degenerate", fitted & measured.values["degenerate"]),
    )
    return np.array([",".join(name for name, bad in checks if bad[i]) for i in range(fitted.size)], dtype=np.str_)


def write_table(path: Path, table: Table, kind: str) -> None:
    """Write a table with units and descriptions as ``ascii.ecsv`` or ``fits``."""
    if kind != "fits":
        table.write(path, format=kind)
        return
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    plain = table.copy(copy_data=False)
    plain.meta = {"ZP_REF": table.meta["zp_ref"], "BANDS": ",".join(table.meta["bands"])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # long keywords become HIERARCH cards
        hdu = fits.table_to_hdu(plain)
    for i, name in enumerate(plain.colnames, 1):
        if plain[name].description:
            hdu.header[f"TCOMM{i}"] = plain[name].description
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def write_white(path: Path, white: NDArray[np.float32], sigma: NDArray[np.float32], wcs: WCS | None) -> None:
    """Write the white stack and its noise (extension ``SIGMA``) as FITS with the frames' WCS."""
    from astropy.io import fits

    header = wcs.to_header(relax=True) if wcs is not None else fits.Header()
    header["BUNIT"] = ("ct", "counts at zero point zp_ref")
    hdus = [fits.PrimaryHDU(white, header), fits.ImageHDU(sigma, header, name="SIGMA")]
    fits.HDUList(hdus).writeto(path)


def write_diagnostics(path: Path, attributes: Mapping[str, object], groups: Iterable[tuple[str, Arrays]]) -> None:
    """Write named groups of arrays to one HDF5 file, one group at a time.

    Parameters
    ----------
    path
        New file.
    attributes
        Of the root, stored as JSON.
    groups
        ``(group name, arrays)``; names may hold ``/``.
    """
    from hpc import new_hdf5

    with new_hdf5(path) as file:
        for name, value in attributes.items():
            file.attrs[name] = json.dumps(value)
        for name, arrays in groups:
            group = file.create_group(name)
            for key, array in arrays.items():
                data = np.asarray(array)
                if data.dtype.kind == "U":
                    data = np.char.encode(data, "utf-8")
                compress = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if data.ndim > 1 else {}
                group.create_dataset(key, data=data, fletcher32=data.ndim > 0, **compress)
