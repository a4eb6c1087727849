import numpy as np
import pytest
from astropy.table import Table
from photometry.made_frames import tan_wcs, write_catalog

from tessera.photometry.catalog import CatalogReading, read_catalog, take
from tessera.photometry.sources import Kind

PLAIN = CatalogReading({})
TEXT = """id,ra,Dec,TYPE,ELL,THETA,Re,FLUX_r,POS_ERR
000017,150.0,2.0,STAR,,,,120.5,
000018,150.001,2.001,EXP,0.4,-35,2.5,,0.2
x-1,150.002,1.999,SERSIC,,,,-3,
,150.002,1.998,dev,2.0,,-1,5,0
"""


@pytest.fixture
def text_catalog(tmp_path):
    return write_catalog(tmp_path / "c.csv", TEXT.replace("\n,150", "\n4,150"))


def test_columns_of_a_tract7dt_catalog(text_catalog):
    catalog = read_catalog(text_catalog, ["g", "r"], tan_wcs(), PLAIN)
    sources = catalog.sources
    assert catalog.ids.tolist() == ["000017", "000018", "x-1", "4"]
    assert sources.kind.tolist() == [Kind.STAR, Kind.EXP, Kind.EXP, Kind.DEV]
    np.testing.assert_array_equal(sources.flux, [[np.nan, 120.5], [np.nan, np.nan], [np.nan, np.nan], [np.nan, 5]])
    np.testing.assert_array_equal(sources.re, [np.nan, 2.5, 3.0, 3.0])
    np.testing.assert_allclose(sources.ab, [np.nan, 0.6, 0.8, 0.8])
    np.testing.assert_array_equal(sources.theta, [np.nan, -35, 0, 0])
    np.testing.assert_array_equal(sources.position_sigma, [np.inf, 0.2, np.inf, np.inf])
    x, y = tan_wcs().all_world2pix([150.0, 150.001], [2.0, 2.001], 0)
    np.testing.assert_allclose(sources.x[:2], x, atol=1e-9)
    np.testing.assert_allclose(sources.y[:2], y, atol=1e-9)


def test_unknown_types_take_the_chosen_model(text_catalog):
    how = CatalogReading({}, gal_model=Kind.DEV, re_fallback_pix=7.0)
    sources = read_catalog(text_catalog, ["r"], tan_wcs(), how).sources
    assert sources.kind[2] == Kind.DEV
    assert sources.re[2] == 7.0


@pytest.mark.parametrize("kind", ["ascii.ecsv", "fits"])
def test_other_formats_give_the_same_sources(tmp_path, text_catalog, kind):
    path = tmp_path / "c.dat"
    reference = read_catalog(text_catalog, ["r"], tan_wcs(), PLAIN)
    table = reference.table.copy()
    table["id"] = reference.ids
    table.write(path, format=kind)
    catalog = read_catalog(path, ["r"], tan_wcs(), PLAIN)
    assert catalog.ids.tolist() == reference.ids.tolist()
    np.testing.assert_array_equal(catalog.sources.kind, reference.sources.kind)
    for name in ("x", "flux", "re", "position_sigma"):
        np.testing.assert_allclose(getattr(catalog.sources, name), getattr(reference.sources, name))


@pytest.mark.parametrize("origin", [0, 1])
def test_pixel_positions_and_their_origin(tmp_path, origin):
    path = write_catalog(tmp_path / "c.csv", "x_pix,y_pix\n10.5,20\n0,1\n")
    catalog = read_catalog(path, ["r"], None, CatalogReading({}, pixel_origin=origin))
    np.testing.assert_array_equal(catalog.sources.x, [10.5 - origin, -origin])
    assert catalog.ids.tolist() == ["1", "2"]
    assert (catalog.sources.kind == Kind.STAR).all()


def test_sextractor_pixels_are_one_based_whatever_the_option(tmp_path):
    text = "#   1 NUMBER  Running object number\n#   2 X_IMAGE  x [pixel]\n#   3 Y_IMAGE  y [pixel]\n 7 11.0 21.0\n 9 2.5 3.5\n"
    path = write_catalog(tmp_path / "c.cat", text)
    for origin in (0, 1):
        catalog = read_catalog(path, ["r"], None, CatalogReading({}, pixel_origin=origin))
        np.testing.assert_array_equal(catalog.sources.x, [10.0, 1.5])
        np.testing.assert_array_equal(catalog.sources.y, [20.0, 2.5])
        assert catalog.ids.tolist() == ["7", "9"]


def test_column_mapping(tmp_path):
    path = write_catalog(tmp_path / "c.csv", "name,alpha,delta,class\nA,150.0,2.0,EXP\n")
    columns = {"ID": "name", "RA": "alpha", "DEC": "delta", "TYPE": "class"}
    catalog = read_catalog(path, ["r"], tan_wcs(), CatalogReading(columns))
    assert catalog.ids.tolist() == ["A"]
    assert catalog.sources.kind.tolist() == [Kind.EXP]


def test_the_other_side_of_the_sky_is_off_the_image_not_an_error(tmp_path):
    path = write_catalog(tmp_path / "c.csv", "ID,RA,DEC\na,150.0,2.0\nb,330.0,-2.0\n")
    sources = read_catalog(path, ["r"], tan_wcs(), PLAIN).sources
    assert not np.isnan(sources.x).any()
    assert not 0 <= sources.x[1] <= 90


@pytest.mark.shared
def test_real_sextractor_catalog(shared):
    catalog = read_catalog(shared / "data" / "emmi_R" / "image.cat", ["R"], None, PLAIN)
    assert len(catalog) == 65
    assert catalog.sources.x[0] == pytest.approx(164.1449)
    assert "FLUX_AUTO" in catalog.table.colnames


def test_take_keeps_rows_together(text_catalog):
    sources = read_catalog(text_catalog, ["r"], tan_wcs(), PLAIN).sources
    some = take(sources, np.array([3, 1]))
    assert some.x.tolist() == sources.x[[3, 1]].tolist()
    assert some.flux.tolist()[0] == [5.0]
    assert some.kind.tolist() == [Kind.DEV, Kind.EXP]


def test_input_table_is_kept(text_catalog):
    table = read_catalog(text_catalog, ["r"], tan_wcs(), PLAIN).table
    assert isinstance(table, Table)
    assert table.colnames[:3] == ["id", "ra", "Dec"]
