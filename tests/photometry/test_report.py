"""The photometry part of the report, drawn from made-up results whose numbers are known."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from PIL import Image

from hpc.report.view import RunView
from tessera.photometry import output
from tessera.photometry.catalog import Catalog
from tessera.photometry.plot_images import white_of
from tessera.photometry.psf_grids import moffat
from tessera.photometry.report import psf_sections, sections
from tessera.photometry.report_data import (
    Picture,
    half_maximum_shape,
    join_pictures,
    read_cells,
    read_frames,
    read_patches,
    read_pictures,
    read_truth,
)
from tessera.photometry.select import Selection
from tessera.photometry.sources import Kind, Sources
from tessera.plot_style import band_colours, shrink

BANDS = ("g", "r")
N = 40
SHAPE = (96, 128)
BOXES = {"r00_c00": (0, 0, 64, 96), "r00_c01": (64, 0, 128, 96)}
SATURATED, OFF, UNCONVERGED = [3, 4, 5], [7], [10, 11]


def make_results(results: Path, *, pictured=tuple(BOXES), nan_band=None, flux_factor=1.0, built=(True, False)) -> Path:
    """Write what a run writes, with 40 sources of known flux in two bands; returns the truth's file."""
    rng = np.random.default_rng(5)
    results.mkdir(parents=True)
    x, y = rng.uniform(2, SHAPE[1] - 3, N), rng.uniform(2, SHAPE[0] - 3, N)
    kind = np.where(np.arange(N) % 4 == 0, Kind.EXP, Kind.STAR)
    nothing = np.full(N, np.nan)
    sources = Sources(x, y, kind, np.full((N, 2), np.nan), nothing, nothing, nothing, np.full(N, np.inf))
    ids = np.array([f"S{i:02d}" for i in range(N)])
    catalog = Catalog(ids, sources, Table({"ID": ids}), Path("catalog.csv"))
    selection = Selection(np.isin(np.arange(N), OFF), np.isin(np.arange(N), SATURATED))
    true = 10 ** rng.uniform(2, 4, (N, 2))
    measured = _measured(sources, selection, true * flux_factor)
    if nan_band is not None:
        measured.values["flux"][:, nan_band] = measured.values["flux_err"][:, nan_band] = np.nan
        measured.values["chi2"][:, nan_band] = np.nan
    fallback = {"g": np.zeros(N, bool), "r": np.ones(N, bool)}
    table = output.build_catalog(catalog, selection, measured, BANDS, None, 25.0, fallback)
    output.write_table(results / "catalog.fits", table, "fits")
    overlay = {"white": rng.normal(0, 1, SHAPE).astype(np.float32), "box": np.array([4, 4, 124, 92])}
    output.write_diagnostics(results / "overlay.h5", {"downsample": 1}, [("overlay", overlay)])
    output.write_diagnostics(results / "epsf.h5", {"bands": BANDS}, _cells(built))
    attributes = {"bands": BANDS, "zp_ref": 25.0, "shape": SHAPE}
    patches = [(f"patches/{key}", _patch(key, sources, measured, rng, key in pictured)) for key in BOXES]
    output.write_diagnostics(results / "photometry.h5", attributes, [("frames", _frames()), *patches])
    truth = results.parent / "truth.csv"
    shuffled = rng.permutation(N)
    rows = {"ID": ids[shuffled], **{f"FLUX_{b}": true[shuffled, i] for i, b in enumerate(BANDS)}}
    Table(rows).write(truth, format="ascii.csv")
    return truth


def _measured(sources, selection, flux):
    measured = output.empty_measurements(N, 2, 7)
    fitted = ~selection.excluded_any
    measured.patch[fitted] = np.where(sources.x[fitted] < 63.5, "r00_c00", "r00_c01")
    values = {"x": sources.x, "y": sources.y, "flux": flux, "flux_err": np.sqrt(25 + flux / 4)}
    values |= {"chi2": np.full((N, 2), 1.1), "fracflux": np.zeros((N, 2))}
    for name, value in values.items():
        measured.values[name][fitted] = value[fitted]
    measured.values["converged"][fitted] = True
    measured.values["converged"][UNCONVERGED] = False
    measured.values["hit_max_iters"][UNCONVERGED] = True
    return measured


def _cells(built):
    offsets = np.arange(-12, 13.0)
    for band, ok in zip(BANDS, built, strict=True):
        stamp = moffat(offsets[None, :], offsets[:, None], 3.4, 3.0, 0.0, 0.0) if ok else np.zeros((25, 25))
        yield (
            f"{band}/r00_c00",
            {
                "stamp": stamp,
                "oversampling": np.array(1),
                "nstars": np.array(9 if ok else 2),
                "ee_radii": np.array([2.0, 3.0, 4.0]) if ok else np.full(3, np.nan),
                "ok": np.array(ok),
                "reason": np.array("" if ok else "2 usable stars, 4 needed"),
            },
        )


def _frames():
    return {
        "band": np.array(BANDS),
        "file": np.array(["g.fits", "r.fits"]),
        "sky_sigma": np.array([2.0, 3.0]),
        "sky_level": np.zeros(2),
        "n_bad": np.array([7.0, 0.0]),
        "n_saturated": np.zeros(2),
        "gain": np.array([4.0, 5.0]),
    }


def _patch(key, sources, measured, rng, pictured):
    x0, y0, x1, y1 = BOXES[key]
    rows = np.flatnonzero(measured.patch == key)
    arrays = {name: measured.values[name][rows] for name in ("chi2", "converged")}
    arrays |= {"rows": rows, "n_halo": np.array(2), "base": np.array(BOXES[key])}
    arrays |= {"sky": np.array([0.1, -0.2]), "sky_err": np.array([0.05, np.nan])}
    if pictured:
        sigma = np.full((2, y1 - y0, x1 - x0), 3.0, np.float32)
        model = np.full(sigma.shape, 16.0, np.float32)
        noise = np.sqrt(sigma**2 + model / np.array([4.0, 5.0])[:, None, None])
        image = (model + noise * rng.standard_normal(sigma.shape)).astype(np.float32)
        image[:, 5, 5], sigma[:, 5, 5] = np.nan, np.inf
        arrays |= {"image": image, "model": model, "sigma": sigma}
    return arrays


def view(path: Path, truth: Path | None = None) -> RunView:
    config = {"job": {"inputs": {"truth": str(truth) if truth else None}, "epsf": {"source": "build"}}}
    return RunView(path, config, [], {"prep": 0.5, "white": 0.25, "crop": 0.01, "patches": 3.0})


def drawn(run: RunView) -> dict:
    """Return the sections by title, with every picture opened."""
    found = {section.title: section for section in sections(run)}
    for section in found.values():
        for figure in section.figures:
            picture = Image.open(BytesIO(figure.image))
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture).reshape(-1, picture.size[0]), axis=0)) > 10
            assert figure.caption
    return found


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> dict:
    """The sections of a complete run whose fluxes are 10 % too high."""
    path = tmp_path_factory.mktemp("complete")
    return drawn(view(path, make_results(path / "results", flux_factor=1.1)))


@pytest.fixture(scope="module")
def poor(tmp_path_factory) -> RunView:
    """A run with nothing measured in one band, no PSF, no model kept and no truth where it should be."""
    path = tmp_path_factory.mktemp("poor")
    make_results(path / "results", nan_band=0, built=(False, False), pictured=())
    return view(path, path / "nowhere.csv")


def test_the_sections_of_a_complete_run_tell_its_numbers(complete):
    assert list(complete) == [
        "Sources",
        "Data against model",
        "Errors",
        "Against the truth",
        "Point-spread functions",
        "Frames",
        "Timing",
    ]
    counts = {row[0]: row[1] for row in complete["Sources"].tables[0].rows}
    assert counts == {
        "in the catalog": N,
        "off the cropped frame": 1,
        "near saturated pixels": 3,
        "fitted": N - 4,
        "converged": N - 6,
        "cut off at n_opt_iters": 2,
        "doubtful in any way": 2,
        "with a fallback PSF in r": N - 4,
    }
    timing = complete["Timing"].tables[0]
    assert dict(zip(timing.columns, timing.rows[0], strict=True))["total"] == "0.76"
    psf = complete["Point-spread functions"].tables[0].rows
    assert [row[-1] for row in psf] == ["", "2 usable stars, 4 needed"]
    assert psf[0][3] == pytest.approx(3.4, abs=0.02)
    assert len(complete["Data against model"].figures) == 3


def test_the_comparison_with_the_truth_finds_a_bias(complete):
    rows = [row for row in complete["Against the truth"].tables[0].rows if row[2]]
    assert {row[3] for row in rows} == {10.0}
    assert all(row[5] > 0.5 for row in rows)


def test_a_poor_run_is_drawn_and_says_what_it_lacks(poor):
    found = drawn(poor)
    counts = {row[0]: row[1] for row in found["Sources"].tables[0].rows}
    assert counts["without a flux in g"] == N - 4
    assert "nowhere.csv" in found["Against the truth"].text
    assert len(found["Data against model"].figures) == 1
    assert len(found["Point-spread functions"].figures) == 1


def test_equal_results_give_equal_pictures(poor):
    first, second = (b"".join(f.image for s in sections(poor) for f in s.figures) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("file", ["", "epsf.h5", "photometry.h5"])
def test_an_unfinished_run_is_drawn_as_far_as_it_went(tmp_path, file):
    make_results(tmp_path / "all")
    (tmp_path / "results").mkdir()
    if file:
        (tmp_path / "all" / file).rename(tmp_path / "results" / file)
    found = drawn(view(tmp_path))
    assert "not measured yet" in found["Photometry"].text
    assert ("Point-spread functions" in found) == (file == "epsf.h5")


def test_an_analytic_psf_is_named():
    assert "Moffat" in psf_sections([], "moffat")[0].text
    assert psf_sections([], "build") == []


def test_read_back_pictures_have_unit_noise_and_lie_where_they_belong(tmp_path):
    make_results(tmp_path / "results")
    frames, patches = read_frames(tmp_path / "results"), read_patches(tmp_path / "results")
    assert frames.shape == SHAPE
    assert [patch.key for patch in patches] == list(BOXES)
    parts = list(read_pictures(tmp_path / "results", list(BOXES), frames.gain))
    field = join_pictures(list(zip(BOXES.values(), parts, strict=True)), "field")
    assert field.image.shape == (2, *SHAPE)
    np.testing.assert_array_equal(field.image[:, :, 64:], parts[1].image)
    pulls = field.pulls[np.isfinite(field.pulls)]
    assert pulls.size == 2 * (SHAPE[0] * SHAPE[1] - 2)
    # 24 000 pixels: the standard deviation is known to 0.5 %.
    assert pulls.std() == pytest.approx(1, abs=0.02)


def test_a_gap_between_pictures_is_bad():
    part = Picture("p", *(np.ones((1, 4, 4), np.float32) for _ in range(3)))
    field = join_pictures([((0, 0, 4, 4), part), ((6, 0, 10, 4), part)], "field")
    assert np.isnan(field.pulls[0, :, 4:6]).all()
    assert np.isfinite(field.pulls[0, :, :4]).all()


def test_bands_are_averaged_with_their_noise():
    sigma = np.array([1.0, 2.0])[:, None, None] * np.ones((2, 3, 3))
    model = np.zeros((2, 3, 3))
    image = model + sigma
    image[:, 0, 0], sigma[:, 0, 0] = np.nan, np.inf
    image[1, 1, 1], sigma[1, 1, 1] = np.nan, np.inf
    data, _, pulls = white_of(Picture("p", image, model, sigma))
    assert np.isnan(data[0, 0])
    assert np.isnan(pulls[0, 0])
    assert data[2, 2] == pytest.approx((1 / 1 + 2 / 4) / (1 + 1 / 4))
    assert pulls[2, 2] == pytest.approx(np.sqrt(2))
    assert pulls[1, 1] == pytest.approx(1)


@pytest.mark.parametrize("oversampling", [1, 2])
def test_the_shape_at_half_maximum_is_that_of_the_profile(oversampling):
    offsets = np.arange(-40, 41) / oversampling
    sigma_x, sigma_y = 2.4, 1.8
    stamp = np.exp(-0.5 * ((offsets / sigma_x) ** 2 + (offsets[:, None] / sigma_y) ** 2))
    fwhm, ellipticity = half_maximum_shape(stamp, oversampling)
    # The mean radius of an ellipse lies between the geometric and the arithmetic mean of its half-axes.
    widths = 2 * np.sqrt(2 * np.log(2)) * np.array([np.sqrt(sigma_x * sigma_y), (sigma_x + sigma_y) / 2])
    assert widths[0] * 0.97 < fwhm < widths[1] * 1.01
    assert ellipticity == pytest.approx(1 - sigma_y / sigma_x, abs=0.02)


def test_a_stamp_without_a_peak_has_no_shape(tmp_path):
    assert np.isnan(half_maximum_shape(np.zeros((9, 9)))).all()
    assert np.isnan(half_maximum_shape(np.ones((9, 9)))).all()
    assert read_cells(tmp_path) == []


def test_the_truth_is_matched_by_name(tmp_path):
    Table({"ID": ["b", "a"], "FLUX_g": [2.0, 1.0]}).write(tmp_path / "t.csv", format="ascii.csv")
    truth = read_truth(tmp_path / "t.csv", np.array(["a", "c", "b"]))
    np.testing.assert_array_equal(truth["g"], [1.0, np.nan, 2.0])
    assert read_truth(tmp_path / "none.csv", np.array(["a"])) is None


def test_shrinking_averages_the_finite_pixels_of_a_block():
    image = np.arange(20.0).reshape(4, 5)
    image[0, 0] = image[2, 2] = image[2, 3] = image[3, 2] = image[3, 3] = np.nan
    small, step = shrink(image, 3)
    assert step == 2
    np.testing.assert_allclose(small, [[(1 + 5 + 6) / 3, 5.0], [(10 + 11 + 15 + 16) / 4, np.nan]])
    assert shrink(image, 5)[1] == 1


@pytest.mark.parametrize("number", [1, 5, 6, 20])
def test_every_band_has_its_own_colour(number):
    assert len(set(band_colours([f"b{k}" for k in range(number)]).values())) == number


def test_the_truth_may_be_in_small_letters_and_ids_are_text(tmp_path):
    (tmp_path / "t.csv").write_text("ID,flux_g,crlb_g\n000001,1.5,0.1\n000002,2.5,0.1\n")
    truth = read_truth(tmp_path / "t.csv", np.array(["000002", "000001"]))
    assert list(truth) == ["g"]
    np.testing.assert_array_equal(truth["g"], [2.5, 1.5])
