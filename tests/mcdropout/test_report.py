"""The report's sections say what the results hold, for every experiment, finished or not."""

import pytest
from mcdropout.serial_run import options_of, picture_folder, serial, tiny_model

from hpc.report.view import RunView
from tessera.mcdropout.report import sections


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return picture_folder(folder / "images"), tiny_model(folder / "model", words=True)


def page(results, timings=None):
    events = [{"event": "stage_end", "stage": "trials", "ranks": [{"busy": 2.0}, {"busy": 3.0}]}]
    found = sections(RunView(results.parent, {}, events, timings or {"setup": 1.0, "trials": 3.0}))
    return {section.title: section for section in found}


def test_a_run_with_nested_passes(inputs, tmp_path):
    found = page(serial(options_of(*inputs, trials=3, passes=[4, 8, 16]), tmp_path))
    first = found["Monte-Carlo dropout"]
    assert "RANDOM WEIGHTS" in first.text
    assert "exp0" in first.text
    rows = first.tables[0].rows
    assert [row[1] for row in rows] == ["pre", "post"]
    assert rows[0][3:6] == (16, 3, 12)
    assert set(found) == {
        "Monte-Carlo dropout",
        "How far the trials agree",
        "Traces, image by image",
        "Convergence",
        "Timing",
    }
    timing = dict(zip(found["Timing"].tables[0].columns, found["Timing"].tables[0].rows[0], strict=True))
    assert timing["image passes"] == str(3 * 12 * 16)
    assert timing["rate, 1/s"] == "115.2"
    pictures = [figure for section in found.values() for figure in section.figures]
    assert len(pictures) == 4
    assert all(figure.image.startswith(b"\x89PNG") and figure.caption for figure in pictures)


@pytest.mark.parametrize(
    ("experiment", "values", "title"),
    [
        ("exp1", {"exp1": {"p_values": [0.02, 0.2]}}, "The same order under every perturbation?"),
        ("exp5", {"outputs": {"geometry": True, "thumbnails": 0}}, "Ambiguous images"),
    ],
)
def test_what_other_experiments_add(inputs, tmp_path, experiment, values, title):
    found = page(serial(options_of(*inputs, experiment=experiment, trials=2, passes=4, **values), tmp_path))
    assert found[title].figures
    assert ("Directions" in found) == (experiment == "exp5")


def test_one_trial_and_an_unreadable_image(inputs, tmp_path):
    images = picture_folder(tmp_path / "images", 6)
    victim = min(images.rglob("*.png"))
    victim.write_bytes(b"")
    found = page(serial(options_of(images, inputs[1], trials=1, passes=4), tmp_path / "run"))
    assert "How far the trials agree" not in found
    assert "cannot be said" in str(found["Monte-Carlo dropout"].tables[0].rows[0])
    assert found["Images that cannot be read"].tables[0].rows[0][0] == victim.name


def test_an_unfinished_run_says_so(tmp_path):
    found = page(tmp_path / "results")
    assert "not finished" in found["Monte-Carlo dropout"].text
