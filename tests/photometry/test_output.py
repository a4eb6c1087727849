import json

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from photometry.made_frames import tan_wcs, write_catalog

from tessera.photometry import output
from tessera.photometry.catalog import CatalogReading, read_catalog
from tessera.photometry.select import Selection

BANDS = ["g", "r"]


@pytest.fixture
def parts(tmp_path):
    """Four sources: fitted, fitted badly, excluded, lost."""
    text = "ID,RA,DEC,TYPE,note,MAG_r_fit\n01,150.0,2.0,STAR,a,9\n02,150.001,2.0,EXP,,9\n03,150.9,2.0,STAR,c,9\n04,150.0,2.001,DEV,d,9\n"
    catalog = read_catalog(write_catalog(tmp_path / "c.csv", text), BANDS, tan_wcs(), CatalogReading({}))
    no = np.zeros(4, bool)
    selection = Selection(np.array([False, False, True, False]), no)
    one = {name: np.array([1.5]) for name in output.PER_SOURCE}
    one |= {name: np.array([[100.0, 200.0]]) for name in output.PER_BAND}
    one |= {name: np.array([name == "converged"]) for name in output.FLAGS}
    one |= {"niters": np.array([4]), "npix": np.array([[30, 40]]), "x": np.array([44.5]), "y": np.array([39.5])}
    two = one | {"converged": np.array([False]), "hit_max_iters": np.array([True]), "flux": np.array([[-5.0, np.nan]])}
    results = [("r00_c00", one | {"rows": np.array([0])}), ("r00_c01", two | {"rows": np.array([1])})]
    return catalog, selection, output.collect(results, 4, 2, 7)


@pytest.fixture
def table(parts):
    fallback = {"g": np.zeros(4, bool), "r": np.ones(4, bool)}
    return output.build_catalog(*parts, BANDS, tan_wcs(), 25.0, fallback)


def test_columns_are_tract7dts_and_more(table):
    wanted = [
        "ID", "RA", "DEC", "TYPE", "excluded_crop", "excluded_saturation", "excluded_any", "x_pix_white", "x_pix_white_fit",
        "y_pix_white_fit", "RA_fit", "DEC_fit", "FLUX_g_fit", "FLUXERR_r_fit", "MAG_g_fit", "MAGERR_r_fit", "Re_fit", "ELL_fit",
        "THETA_fit", "stype_fit", "patch_tag", "opt_converged", "opt_hit_max_iters", "opt_niters", "flag_bound_stalled",
        "fit_is_reliable", "fit_quality_issues", "x_pix_white_fit_err", "RA_fit_err", "CHI2_g_fit", "FRACFLUX_r_fit",
    ]  # fmt: skip
    assert not set(wanted) - set(table.colnames)
    described = [c for c in table.colnames if c not in {"RA", "DEC", "TYPE", "note"}]
    assert all(table[c].description for c in described)
    assert str(table["FLUX_g_fit"].unit) == "ct"
    assert str(table["RA_fit_err"].unit) == "arcsec"


def test_rows_keep_their_order_and_say_what_is_wrong(table):
    assert table["ID"].tolist() == ["01", "02", "03", "04"]
    assert table["fit_quality_issues"].tolist() == ["", "not_converged,hit_max_iters", "excluded", "no_fit_result"]
    assert table["fit_is_reliable"].tolist() == [True, False, False, False]
    assert table["patch_tag"].tolist() == ["r00_c00", "r00_c01", "", ""]
    assert table["stype_fit"].tolist() == ["STAR", "EXP", "", ""]
    assert np.isnan(table["FLUX_g_fit"][2:]).all()


def test_magnitudes_and_sky_positions(table):
    assert table["MAG_r_fit"][0] == pytest.approx(25 - 2.5 * np.log10(200.0))
    assert table["MAGERR_r_fit"][0] == pytest.approx(2.5 / np.log(10))
    assert np.isnan(table["MAG_g_fit"][1])  # a negative flux has no magnitude
    assert np.isnan(table["MAG_r_fit"][1])
    assert (table["RA_fit"][0], table["DEC_fit"][0]) == pytest.approx((150.0, 2.0))
    # 1.5 pixels of 0.5 arcsec.
    assert table["RA_fit_err"][0] == pytest.approx(0.75, rel=1e-4)
    assert table["DEC_fit_err"][0] == pytest.approx(0.75, rel=1e-4)


def test_without_wcs_there_are_no_sky_positions(parts):
    fallback = dict.fromkeys(BANDS, np.zeros(4, bool))
    assert "RA_fit" not in output.build_catalog(*parts, BANDS, None, 25.0, fallback).colnames


def test_both_formats_read_back_equal_with_units_and_descriptions(tmp_path, table):
    output.write_table(tmp_path / "c.ecsv", table, "ascii.ecsv")
    output.write_table(tmp_path / "c.fits", table, "fits")
    ecsv, fit = Table.read(tmp_path / "c.ecsv"), Table.read(tmp_path / "c.fits")
    assert ecsv.colnames == fit.colnames == table.colnames
    for name in ("FLUX_g_fit", "RA_fit", "opt_niters"):
        np.testing.assert_array_equal(np.ma.filled(ecsv[name], -1), np.ma.filled(table[name], -1))
        np.testing.assert_allclose(np.ma.filled(fit[name], np.nan), np.asarray(table[name], float))
    assert ecsv["ID"].tolist() == [str(i) for i in fit["ID"]] == ["01", "02", "03", "04"]
    assert str(fit["x_pix_white_fit"].unit) == "pix"
    with fits.open(tmp_path / "c.fits") as hdus:
        number = table.colnames.index("RA_fit") + 1
        assert hdus[1].header[f"TCOMM{number}"].startswith("fitted right ascension")
    assert ecsv.meta["zp_ref"] == 25.0


def test_white_has_the_wcs(tmp_path):
    white = np.arange(20, dtype=np.float32).reshape(4, 5)
    output.write_white(tmp_path / "w.fits", white, white + 1, tan_wcs((4, 5)))
    with fits.open(tmp_path / "w.fits") as hdus:
        np.testing.assert_array_equal(hdus[0].data, white)
        np.testing.assert_array_equal(hdus["SIGMA"].data, white + 1)
        wcs = WCS(hdus[0].header)
        np.testing.assert_allclose(wcs.all_pix2world(1, 2, 0), tan_wcs((4, 5)).all_pix2world(1, 2, 0))


def test_diagnostics(tmp_path):
    groups = [
        ("frames", {"band": np.array(["g", "ré"])}),
        ("patches/r00_c00", {"sky": np.array([1.0]), "n": np.array(3)}),
    ]
    output.write_diagnostics(tmp_path / "p.h5", {"bands": BANDS}, groups)
    with h5py.File(tmp_path / "p.h5") as file:
        assert json.loads(file.attrs["bands"]) == BANDS
        assert file["frames/band"][1].decode() == "ré"
        assert file["patches/r00_c00/n"][()] == 3
