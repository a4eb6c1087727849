"""The job from the files to the catalog: on a made field, on generated scenes with truth, and on real frames."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from photometry.made_frames import image_list, job_for, small_field, write_catalog

from hpc.context import Context


class Kept(dict):
    """Results of a map in memory, in key order."""

    def items(self):
        return iter(sorted(super().items()))


def run(job, folder, threads=1) -> Table:
    """Run all stages in this process and return the catalog."""
    folder.mkdir(exist_ok=True)
    kept = {}
    ctx = replace(Context(), results_dir=folder, threads=threads, results_of=kept.__getitem__)
    job.setup(ctx)
    for stage in job.stages():
        units = stage.units(ctx)
        kept[stage.name] = Kept((u.key, {k: np.asarray(v) for k, v in stage.run(u, ctx).items()}) for u in units)
        stage.merge(kept[stage.name], ctx)
    return Table.read(folder / "catalog.fits")


def test_a_made_field_gives_its_fluxes(tmp_path):
    small_field(tmp_path)
    job = job_for(tmp_path)
    job.check()
    catalog = run(job, tmp_path / "results")
    for band in "gr":
        pull = (catalog[f"FLUX_{band}_fit"] - [4000, 2500, 3000]) / catalog[f"FLUXERR_{band}_fit"]
        assert np.abs(pull).max() < 4
    assert catalog["fit_is_reliable"].all()
    for name in ("catalog.ecsv", "white.fits", "photometry.h5", "overlay.h5"):
        assert (tmp_path / "results" / name).exists()


def test_threads_change_no_bit(tmp_path):
    small_field(tmp_path)
    one = run(job_for(tmp_path), tmp_path / "one", threads=1)
    two = run(job_for(tmp_path), tmp_path / "two", threads=2)
    for name in one.colnames:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_psf_that_was_built_can_be_given_back(tmp_path):
    rng = np.random.default_rng(3)
    from photometry.made_frames import add_stars, noise, sky_catalog, tan_wcs, write_frame

    x, y = np.meshgrid(np.arange(25, 200, 30.0), np.arange(25, 200, 30.0))
    x, y = (v.ravel() + rng.uniform(-3, 3, v.size) for v in (x, y))
    write_frame(tmp_path / "r.fits", add_stars(noise((220, 220)), x, y, np.full(x.size, 2e4)))
    image_list(tmp_path / "list.txt", "r.fits")
    sky_catalog(tmp_path / "catalog.csv", tan_wcs((220, 220)), x, y)
    built = run(job_for(tmp_path, epsf={"source": "build"}), tmp_path / "built")
    assert not built["psf_fallback_r"].any()
    assert abs(np.median(built["FLUX_r_fit"]) / 2e4 - 1) < 0.01
    files = {"r": str(tmp_path / "built" / "epsf_r.fits")}
    given = run(job_for(tmp_path, epsf={"source": "file", "files": files}), tmp_path / "given")
    np.testing.assert_array_equal(given["FLUX_r_fit"], built["FLUX_r_fit"])


@pytest.fixture(scope="module")
def scene(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    options = "--size 600 --nsrc 110 --bands 2 --seed 11 --nsat 1 --workers 1"
    script = shared / "scenes" / "phot_scene.py"
    subprocess.run([sys.executable, str(script), "--out", str(folder), *shlex.split(options)], check=True)
    return folder


@pytest.mark.shared
@pytest.mark.slow
def test_scene_with_bad_pixels_and_own_psf(scene, tmp_path):
    inputs = {"image_list_file": str(scene / "image_list.txt"), "input_catalog": str(scene / "input_catalog.csv")}
    catalog = run(job_for(tmp_path, inputs=inputs, epsf={"source": "build"}), tmp_path)
    truth = Table.read(scene / "truth.csv", format="ascii.csv")
    assert [int(i) for i in catalog["ID"]] == truth["ID"].tolist()
    bands = json.loads((scene / "scene.json").read_text())["bands"]
    measured = ~np.asarray(catalog["excluded_any"])
    # The saturated star, and what lies within 20 pixels of it, are the only ones left out.
    assert measured.sum() >= len(truth) - 4
    assert np.isfinite(catalog[f"FLUX_{bands[0]}_fit"][measured]).all()
    alone = measured & (truth["TYPE"] == "STAR") & (truth["nn_pix"] > 20) & (truth["is_sat_star"] == 0)
    flux, error, true, best = (
        np.concatenate([np.asarray(t[n.format(b)])[alone] for b in bands])
        for t, n in ((catalog, "FLUX_{}_fit"), (catalog, "FLUXERR_{}_fit"), (truth, "flux_{}"), (truth, "crlb_{}"))
    )
    faint, bright = (true / best > 5) & (true / best < 20), true / best > 20
    pull = (flux - true) / error
    n = faint.sum()
    assert n > 30
    assert abs(pull[faint].mean()) < 0.15 + 3 / np.sqrt(n)
    assert 0.9 - 2 / np.sqrt(2 * n) < pull[faint].std() < 1.15 + 2 / np.sqrt(2 * n)
    assert abs(np.median((flux / true)[bright]) - 1) < 0.03


@pytest.mark.shared
@pytest.mark.slow
def test_real_frame_without_wcs_against_sextractor(shared, tmp_path):
    folder = shared / "data" / "emmi_R"
    image_list(tmp_path / "list.txt", f"'{folder / 'image.fits'}' band=R")
    job = job_for(
        tmp_path,
        inputs={"input_catalog": str(folder / "image.cat")},
        headers={"zero_point": 25.0, "gain": 2.1, "sky_sigma": None, "saturation": None},
        background={"subtract": True},
        epsf={"source": "build", "min_snr": 15.0},
    )
    job.check()
    catalog = run(job, tmp_path)
    assert job.field.frames.measures[0, 0] == pytest.approx(65, rel=0.05)
    assert not catalog["psf_fallback_R"].any()
    # The two isolated stars that SExtractor did not flag, of S/N 130 and 470.
    stars = np.isin(np.asarray(catalog["ID"]).astype(str), ["2", "55"])
    ratio = np.asarray(catalog["FLUX_R_fit"])[stars] / np.asarray(catalog["FLUX_AUTO"])[stars]
    assert len(ratio) == 2
    assert np.abs(ratio - 1).max() < 0.05


@pytest.mark.shared
@pytest.mark.slow
def test_real_survey_frame_with_its_planes_and_psf_model(shared, tmp_path):
    folder = shared / "data" / "decam_r"
    frame = next(p for p in folder.glob("*_ooi_*.fits") if "psfex" not in p.name)
    model = next(folder.glob("*psfex.fits"))
    ccd = Table.read(folder / "ccds.csv")[0]
    zero_point = ccd["ccdzpt"] + 2.5 * np.log10(ccd["exptime"])
    image_list(tmp_path / "list.txt", f"'{frame}' zero_point={zero_point} psf='{model}'")
    gaia = Table.read(folder / "gaia_dr2.csv")
    years = (ccd["mjd_obs"] - 57206) / 365.25
    ra = gaia["ra"] + np.ma.filled(gaia["pmra"], 0) * years / 3.6e6 / np.cos(np.radians(gaia["dec"]))
    dec = gaia["dec"] + np.ma.filled(gaia["pmdec"], 0) * years / 3.6e6
    # The brightest entry is the nucleus of the elliptical galaxy that fills the middle of the field.
    galaxy = np.argmin(gaia["phot_g_mean_mag"])
    rows = [f"{i},{a},{d},{'DEV,35' if i == galaxy else 'STAR,'}" for i, (a, d) in enumerate(zip(ra, dec, strict=True))]
    write_catalog(tmp_path / "catalog.csv", "ID,RA,DEC,TYPE,Re\n" + "\n".join(rows) + "\n")
    job = job_for(
        tmp_path,
        headers={"gain": "GAINA", "saturation": "SATURATA", "fwhm_pix": "FWHM"},
        planes={"weight_replace": ["_ooi_", "_oow_"], "mask_replace": ["_ooi_", "_ood_"]},
        background={"subtract": True},
        epsf={"source": "file"},
        source_saturation_cut={"enabled": False},
    )
    job.check()
    catalog = run(job, tmp_path)
    assert job.field.bands == ["r"]
    assert job.field.frames.measures[0, 1] == pytest.approx(172, abs=4)
    colour = np.ma.filled(gaia["phot_bp_mean_mag"] - gaia["phot_rp_mean_mag"], np.nan)
    g = np.asarray(gaia["phot_g_mean_mag"])
    stars = np.isfinite(colour) & (g > 16) & (g < 20.7) & ~np.asarray(catalog["excluded_any"])
    assert stars.sum() == 4
    # Gaia's published colour transformation of stars (DR2, G - r), to the zero point of the survey.
    c = colour[stars]
    expected = g[stars] + 0.12879 - 0.24662 * c + 0.027464 * c**2 + 0.049465 * c**3
    assert (np.asarray(catalog["MAG_r_fit"])[stars] - expected).std() < 0.06
    assert np.asarray(catalog["CHI2_r_fit"])[stars].max() < 1.5
