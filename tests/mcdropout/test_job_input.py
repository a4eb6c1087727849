"""What the job says to bad input, and its options."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from mcdropout.serial_run import changed, options_of, picture_folder, serial, tiny_model, traces

from hpc.errors import ConfigError, InputError
from hpc.load import job_options
from hpc.options import build
from tessera.mcdropout import pixel_stage
from tessera.mcdropout.errors import DeviceError
from tessera.mcdropout.job import McDropoutJob
from tessera.mcdropout.options import McDropoutOptions


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), words=True)


def test_one_trial_is_reported_as_insufficient(images, model, tmp_path):
    results = serial(options_of(images, model, trials=1, passes=4), tmp_path)
    summary = json.loads((results / "summary.json").read_text())
    assert summary["tiny.status"] == "insufficient_trials"
    assert summary["tiny.icc"] is None


def test_unreadable_images_are_left_out_and_listed(images, model, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    victims = sorted(folder.rglob("*.png"))[2:4]
    victims[0].write_bytes(b"not an image")
    victims[1].write_bytes(victims[1].read_bytes()[:60])
    options = options_of(folder, model, trials=2, passes=4)
    results = serial(options, tmp_path / "run")
    assert set(json.loads((results / "bad_images.json").read_text())) == {str(v) for v in victims}
    whole = serial(options_of(images, model, trials=2, passes=4), tmp_path / "whole")
    kept = np.delete(traces(whole, passes=4)["trace_pre"], [2, 3], axis=1)
    np.testing.assert_allclose(traces(results, passes=4)["trace_pre"], kept, rtol=1e-6)
    with pytest.raises(InputError, match=victims[0].name):
        serial(changed(options, "pixels", on_bad="refuse"), tmp_path / "refused")


def test_models_that_cannot_be_used_are_skipped_on_request(images, model, tmp_path):
    weights = {"init": "random", "weights": {"tiny": str(model), "gone": str(tmp_path / "nowhere")}}
    given = {"data_dir": str(images), "models": ["gone", "tiny"], "passes": 4, "trials": 2, "device": "cpu"}
    refused = build(McDropoutOptions, {**given, "model": weights})
    with pytest.raises(InputError, match="nowhere"):
        McDropoutJob(refused).check()
    results = serial(build(McDropoutOptions, {**given, "model": {**weights, "on_bad": "skip"}}), tmp_path / "run")
    overall = json.loads((results / "exp0_overall_summary.json").read_text())
    assert list(overall["results"]) == ["tiny"]
    assert "nowhere" in overall["skipped"]["gone"]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"data_dir": "/nowhere/at/all"}, "not a folder"),
        ({"models": ["clip_b33"]}, "clip_b32"),
        ({"models": []}, "name at least one model"),
        ({"passes": [16, 4]}, "rise"),
        ({"num_images": 1}, "at least two"),
        ({"manifest": "/nowhere.json"}, "nowhere.json"),
        ({"model": None}, "no key and has no folder"),
        ({"perturbation": {"select": "sites", "sites": ["blocks.07.mlp.fc2"]}}, r"blocks\.0\d\.mlp\.fc2"),
        ({"experiment": "text", "text": {"prompt_file": "/nowhere.txt"}}, "nowhere.txt"),
        ({"experiment": "exp5", "ambiguity": {"class_map": "/nowhere.json"}}, "nowhere.json"),
    ],
)
def test_bad_input_is_named_before_anything_starts(images, model, values, word):
    with pytest.raises(InputError, match=word):
        McDropoutJob(options_of(images, **{"model": model, **values})).check()


@pytest.mark.parametrize(
    ("file", "word"),
    [("model.safetensors", "model.safetensors"), ("pytorch_model.bin", "safetensors"), (None, "safetensors")],
)
def test_damaged_pickled_and_missing_weights_are_refused_before_anything_starts(images, tmp_path, file, word):
    folder = tiny_model(tmp_path / "model")
    if file is not None:
        (folder / file).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    options = options_of(images, folder)
    with pytest.raises(InputError, match=word):
        McDropoutJob(changed(options, "model", init="weights")).check()


def test_a_gpu_that_is_not_there_is_said(images, model, tmp_path):
    with pytest.raises(InputError, match="cuda"):
        serial(options_of(images, model, device="cuda"), tmp_path)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"passes": 1}, "passes"),
        ({"passes": [1, 4]}, "passes"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"trials": 0}, "trials"),
        ({"exp1": {"p_values": [0.1, 1.5]}}, "p_values"),
        ({"experiment": "exp9"}, "experiment"),
        ({"perturbation": {"select": "sites"}}, "sites"),
        ({"ambiguity": {"templates": "a photo"}}, "templates"),
        ({"adaptive": {"enabled": True}, "perturbation": {"rng": "torch"}}, "philox"),
        ({"groupwise": {"min_p": 0.2, "max_p": 0.1}}, "min_p"),
    ],
)
def test_options_out_of_range_are_named(values, word):
    with pytest.raises(ConfigError, match=word):
        build(McDropoutOptions, {"data_dir": "images", **values})


def test_the_documented_defaults_are_the_options(request):
    path = request.config.rootpath / "conf" / "job" / "mcdropout.yaml"
    section = yaml.safe_load(path.read_text())
    named = {**job_options(section), "data_dir": "images"}
    named["model"] = {**named["model"], "weights": {k: v for k, v in named["model"]["weights"].items() if v}}
    assert build(McDropoutOptions, named) == build(McDropoutOptions, {"data_dir": "images"})


def test_pixels_that_do_not_fit_on_the_gpu_stay_on_the_host_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr(pixel_stage.devices, "free_bytes", lambda device: 3_000_000_000)
    book = pixel_stage.PixelBook({}, torch.device("cuda"), "auto")
    assert book._fits(1_000_000_000)
    assert not caplog.records
    assert not book._fits(2_000_000_000)
    assert "2.00 GB" in caplog.text
    assert "host memory" in caplog.text
    with pytest.raises(DeviceError, match=r"store=auto"):
        pixel_stage.PixelBook({}, torch.device("cuda"), "device")._fits(2_000_000_000)
