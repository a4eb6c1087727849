"""The input catalog: which sources there are, where, and what is drawn for each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.input_files import explained, require_file
from tessera.photometry.errors import CatalogError
from tessera.photometry.sources import Kind, Sources

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

Floats = NDArray[np.float64]

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "ID": ("ID", "NUMBER"),
    "RA": ("RA", "ALPHA_J2000", "RA_ICRS"),
    "DEC": ("DEC", "DELTA_J2000", "DE_ICRS"),
    "x_pix": ("x_pix",),
    "y_pix": ("y_pix",),
    "TYPE": ("TYPE",),
    "ELL": ("ELL",),
    "THETA": ("THETA",),
    "Re": ("Re",),
    "POS_ERR": ("POS_ERR",),
}
_SEXTRACTOR_PIXELS: Final = ("X_IMAGE", "Y_IMAGE")
_AB_FALLBACK: Final = 0.8
"""Axis ratio of a galaxy whose catalog gives none: near the middle, so that the fit may go either way."""
_SHOWN: Final = 5


@dataclass(frozen=True)
class Catalog:
    """The sources, in the order of the file.

    Attributes
    ----------
    ids
        Unique names.
    sources
        Positions in 0-based frame pixels, kinds, first guesses; off-image sources included.
    table
        The columns of the file as they were read.
    path
        The file.
    """

    ids: NDArray[np.str_]
    sources: Sources
    table: Table
    path: Path

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class CatalogReading:
    """How a catalog is read.

    Attributes
    ----------
    columns
        Own name of a column by the name it has here (``ID``, ``RA``, ``DEC``, ``x_pix``, ``y_pix``, ``TYPE``,
        ``ELL``, ``THETA``, ``Re``, ``POS_ERR``, ``FLUX_<band>``).
    pixel_origin
        Coordinate of the centre of the first pixel in ``x_pix`` and ``y_pix``; SExtractor's are 1-based.
    gal_model
        Kind of sources whose TYPE is empty or unknown. A catalog without TYPE holds stars.
    re_fallback_pix
        Half-light radius of galaxies without one.
    """

    columns: Mapping[str, str]
    pixel_origin: int = 0
    gal_model: Kind = Kind.EXP
    re_fallback_pix: float = 3.0


def read_catalog(path: Path, bands: Sequence[str], wcs: WCS | None, how: CatalogReading) -> Catalog:
    """Read the catalog and place its sources on the frame.

    Parameters
    ----------
    path
        CSV, ECSV, FITS, or SExtractor's ASCII_HEAD.
    bands
        Names of the bands, for the ``FLUX_<band>`` columns (first guesses, reference counts).
    wcs
        Of the frames; None where only pixel positions can be used.
    how
        Column names and defaults.

    Raises
    ------
    CatalogError
        If the file is missing or no table, holds no source, lacks columns, or has positions that are not
        numbers or names that come twice; the message names the rows.
    """
    table = _read_table(path, how.columns.get("ID", "ID"))
    if len(table) == 0:
        msg = f"catalog {path} holds no source; give at least one row below the column names"
        raise CatalogError(msg)
    columns = _Columns(path, table, how.columns)
    x, y = _positions(columns, wcs, how.pixel_origin)
    return Catalog(_ids(columns), _sources(columns, x, y, bands, how), table, path)


def _read_table(path: Path, id_column: str) -> Table:
    from astropy.io.ascii import convert_numpy
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    require_file(path, "catalog", "set job.inputs.input_catalog", CatalogError)
    remedy = "give a table: CSV, ECSV, FITS or SExtractor's ASCII_HEAD"
    with explained(f"catalog {path}", remedy, CatalogError), warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        kind = _format(path)
        if kind == "ascii.csv":
            # Names such as 000017 must keep their zeros.
            names = (id_column, id_column.lower(), id_column.title())
            return Table.read(path, format=kind, converters={name: [convert_numpy(str)] for name in names})
        return Table.read(path, format=kind)


def _format(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(80)
    if head.startswith(b"SIMPLE  ="):
        return "fits"
    if head.startswith(b"# %ECSV"):
        return "ascii.ecsv"
    return "ascii.sextractor" if head.lstrip().startswith(b"#") else "ascii.csv"


@dataclass(frozen=True)
class _Columns:
    """The columns of the file under the names they have here."""

    path: Path
    table: Table
    mapping: Mapping[str, str]

    def find(self, name: str) -> str | None:
        """Return the file's own name of a column, or None; an explicit mapping must be right."""
        if name in self.mapping:
            if self.mapping[name] not in self.table.colnames:
                msg = (
                    f"catalog {self.path} has no column {self.mapping[name]!r}, which job.inputs.columns.{name} names; "
                    f"it has {', '.join(self.table.colnames)}"
                )
                raise CatalogError(msg)
            return self.mapping[name]
        own = {c.lower(): c for c in self.table.colnames}
        return next((own[a.lower()] for a in _ALIASES.get(name, (name,)) if a.lower() in own), None)

    def numbers(self, name: str, default: float = np.nan) -> Floats:
        """Return a column as float64, ``default`` where it is absent or empty."""
        own = self.find(name)
        if own is None:
            return np.full(len(self.table), default)
        column = np.ma.MaskedArray(self._plain(own))
        if column.dtype.kind not in "fiub":
            if column.mask is not np.ma.nomask and np.all(column.mask):
                return np.full(len(self.table), default)
            msg = f"column {own} of catalog {self.path} holds text ({column.compressed()[:1]}); it must hold numbers"
            raise CatalogError(msg)
        return np.asarray(np.ma.filled(column.astype(np.float64), default))

    def _plain(self, own: str) -> Any:
        """Return a column that has one value in each row."""
        column = self.table[own]
        if not hasattr(column, "dtype") or getattr(column, "shape", None) != (len(self.table),):
            msg = f"column {own} of catalog {self.path} has no single value in each row; give it as numbers or text"
            raise CatalogError(msg)
        return column

    def texts(self, name: str) -> NDArray[np.str_] | None:
        own = self.find(name)
        if own is None:
            return None
        filled = np.ma.filled(np.ma.MaskedArray(self._plain(own)).astype(str), "")
        return np.char.strip(np.asarray(filled, np.str_))


def _positions(columns: _Columns, wcs: WCS | None, origin: int) -> tuple[Floats, Floats]:
    own = [columns.find(name) for name in ("RA", "DEC")]
    if wcs is not None and None not in own:
        ra, dec = columns.numbers("RA"), columns.numbers("DEC")
        _require(columns, "RA, DEC", np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90))
        with explained(f"the sources of catalog {columns.path}", "look at the WCS of the frames", CatalogError):
            x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
        # Where the projection has no answer the source is on the other side of the sky: off the image.
        return np.where(np.isfinite(x), x, -np.inf), np.where(np.isfinite(y), y, -np.inf)
    for names, first in ((("x_pix", "y_pix"), origin), (_SEXTRACTOR_PIXELS, 1)):
        if all(columns.find(name) is not None for name in names):
            x, y = (columns.numbers(name) - first for name in names)
            _require(columns, ", ".join(names), np.isfinite(x) & np.isfinite(y))
            return x, y
    has_sky = None not in own
    cause = (
        "the frames have no WCS, and it has no pixel positions (x_pix, y_pix or X_IMAGE, Y_IMAGE)"
        if has_sky
        else "it has neither RA, DEC nor x_pix, y_pix (or X_IMAGE, Y_IMAGE)"
    )
    if wcs is None and not has_sky:
        cause += ", and the frames have no WCS"
    msg = (
        f"the sources of catalog {columns.path} cannot be placed: {cause}; its columns are "
        f"{', '.join(columns.table.colnames)}. Add the columns or name them with job.inputs.columns"
    )
    raise CatalogError(msg)


def _require(columns: _Columns, what: str, good: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(~good)
    if rows.size:
        shown = ", ".join(str(r + 1) for r in rows[:_SHOWN]) + (", …" if rows.size > _SHOWN else "")
        msg = (
            f"catalog {columns.path}: {what} is missing or no valid number in {rows.size} of {len(good)} rows "
            f"(row {shown}); correct or remove them"
        )
        raise CatalogError(msg)


def _ids(columns: _Columns) -> NDArray[np.str_]:
    ids = columns.texts("ID")
    if ids is None:
        width = len(str(len(columns.table)))
        return np.array([f"{i:0{width}d}" for i in range(1, len(columns.table) + 1)])
    _require(columns, "ID", ids != "")
    names, counts = np.unique(ids, return_counts=True)
    if np.any(counts > 1):
        twice = names[counts > 1]
        rows = ", ".join(str(r + 1) for r in np.flatnonzero(ids == twice[0])[:_SHOWN])
        msg = (
            f"catalog {columns.path}: {twice.size} IDs come more than once, e.g. {str(twice[0])!r} in rows {rows}; "
            "every source needs an ID of its own"
        )
        raise CatalogError(msg)
    return ids


def _sources(columns: _Columns, x: Floats, y: Floats, bands: Sequence[str], how: CatalogReading) -> Sources:
    kind = _kinds(columns.texts("TYPE"), len(x), how.gal_model)
    re, ell, theta = columns.numbers("Re"), columns.numbers("ELL"), columns.numbers("THETA", 0.0)
    ab = np.where((ell >= 0) & (ell < 1), 1 - ell, _AB_FALLBACK)
    re = np.where(re > 0, re, how.re_fallback_pix)
    theta = np.where(np.isfinite(theta), theta, 0.0)
    star = kind == Kind.STAR
    sigma = columns.numbers("POS_ERR")
    flux = [columns.numbers(f"FLUX_{band}") for band in bands]
    return Sources(
        x=x,
        y=y,
        kind=kind,
        flux=np.stack([np.where(f > 0, f, np.nan) for f in flux], axis=1),
        re=np.where(star, np.nan, re),
        ab=np.where(star, np.nan, ab),
        theta=np.where(star, np.nan, theta),
        position_sigma=np.where(sigma > 0, sigma, np.inf),
    )


def _kinds(types: NDArray[np.str_] | None, n: int, gal_model: Kind) -> NDArray[np.int64]:
    if types is None:
        return np.full(n, int(Kind.STAR))
    upper: Any = np.char.upper(types)
    codes = np.full(n, int(gal_model))
    for kind in Kind:
        codes[upper == kind.name] = int(kind)
    return codes


def take(sources: Sources, rows: NDArray[np.intp]) -> Sources:
    """Return the sources of these rows."""
    return Sources(
        x=sources.x[rows],
        y=sources.y[rows],
        kind=sources.kind[rows],
        flux=sources.flux[rows],
        re=sources.re[rows],
        ab=sources.ab[rows],
        theta=sources.theta[rows],
        position_sigma=sources.position_sigma[rows],
    )
