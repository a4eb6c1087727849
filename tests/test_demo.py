"""The demo's promise: the photometry finds the fluxes that were drawn, with errors that are right."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

pytestmark = [pytest.mark.slow, pytest.mark.mpi]

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SOURCES = 120


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """Draw the scene and measure it on two ranks, with the options of scripts/demo."""
    path = tmp_path_factory.mktemp("demo")
    scene = path / "scene"
    subprocess.run([sys.executable, SCRIPTS / "demo_scene.py", scene], check=True, timeout=120)
    command = [
        *(sys.executable, "-m", "hpc", "job=photometry"),
        f"job.inputs.image_list_file={scene / 'frames.txt'}",
        f"job.inputs.input_catalog={scene / 'catalog.csv'}",
        f"job.inputs.truth={scene / 'truth.csv'}",
        *(f"run.dir={path / 'run'}", "cluster.ranks=2", "cluster.threads_per_process=1"),
    ]
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def catalog(demo) -> Table:
    return Table.read(demo / "run" / "results" / "catalog.ecsv", format="ascii.ecsv")


def test_every_source_is_measured_but_the_saturated_one(catalog):
    assert len(catalog) == SOURCES
    assert list(catalog["ID"][catalog["excluded_saturation"]]) == [f"S{SOURCES - 1}"]
    assert not catalog["excluded_crop"].any()
    fitted = ~np.asarray(catalog["excluded_any"])
    assert all(np.isfinite(catalog[f"FLUX_{band}_fit"][fitted]).all() for band in "gri")
    assert np.count_nonzero(catalog["opt_converged"][fitted]) >= 0.95 * fitted.sum()


def test_fluxes_agree_with_the_truth_within_their_errors(demo, catalog, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    truth = Table.read(demo / "scene" / "truth.csv", format="ascii.csv")
    rows = importlib.import_module("compare_truth").compare(catalog, truth)
    assert [(row.band, row.kind) for row in rows if row.kind == "isolated stars"] == [
        (b, "isolated stars") for b in "gri"
    ]
    assert sum(row.number for row in rows) == 3 * (SOURCES - 1)
    for row in rows:
        # Four standard errors: of a median (1.25 sigma / sqrt N), of a mean, of a standard deviation.
        few = 4 / np.sqrt(row.number)
        assert abs(row.bias) < 1.25 * row.scatter * few, row
        assert abs(row.pull_mean) < few, row
        assert 1 - few / np.sqrt(2) < row.pull_std < 1 + few / np.sqrt(2), row


def test_positions_and_shapes_agree_with_the_truth(demo, catalog):
    truth = Table.read(demo / "scene" / "truth.csv", format="ascii.csv")
    assert list(truth["ID"]) == list(catalog["ID"])
    fitted = ~np.asarray(catalog["excluded_any"])
    for axis in "xy":
        pulls = ((catalog[f"{axis}_pix_white_fit"] - truth[axis]) / catalog[f"{axis}_pix_white_fit_err"])[fitted]
        # The median absolute deviation, because a faint source between bright ones may wander.
        assert abs(np.median(pulls)) < 4 * 1.25 / np.sqrt(fitted.sum())
        assert 0.75 < 1.4826 * np.median(np.abs(pulls)) < 1.3
    galaxy = np.asarray(truth["TYPE"]) == "EXP"
    ratio = np.asarray(catalog["Re_fit"][galaxy] / truth["Re"][galaxy])
    assert np.median(ratio) == pytest.approx(1, abs=0.06)


def test_the_report_shows_the_comparison(demo):
    page = (demo / "run" / "report" / "index.html").read_text()
    assert "Against the truth" in page
    assert page.count("data:image/png;base64,") == 10
    assert "the report could not be written" not in (demo / "run" / "events.jsonl").read_text()
