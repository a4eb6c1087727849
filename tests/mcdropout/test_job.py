"""Every experiment from images to files on small models; cuts, batches and bad inputs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import output_of, rank_command, rank_environment
from mcdropout.serial_run import changed, options_of, picture_folder, serial, tiny_model, traces

from hpc.errors import InputError
from hpc.options import build
from hpc.rundir import RunDir
from tessera.mcdropout.experiments import EXPERIMENTS
from tessera.mcdropout.experiments.design import Arm, ByRecipe
from tessera.mcdropout.job import McDropoutJob
from tessera.mcdropout.models import load_model
from tessera.mcdropout.options import McDropoutOptions
from tessera.mcdropout.plain import dropout_after, plain_trial
from tessera.mcdropout.reliability import reliability
from tessera.mcdropout.workbench import architecture, pass_flops


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), words=True)


@pytest.fixture(scope="module")
def reference(images, model, tmp_path_factory):
    options = options_of(images, model, trials=2, passes=[4, 8])
    return options, serial(options, tmp_path_factory.mktemp("reference"))


def same(a, b, rtol):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-12, err_msg=name)


SMALL = {
    "exp0": {"passes": [4, 8], "trials": 2},
    "exp0b": {"passes": 6, "trials": 2},
    "exp1": {"passes": 4, "trials": 2, "exp1": {"p_values": [0.01, 0.1]}},
    "exp2": {"passes": 4, "trials": 2, "exp2": {"num_natural": 3, "num_each_synth": 2, "image_size": 40}},
    "exp3": {"passes": 4, "trials": 2},
    "exp4": {"passes": 4, "trials": 2},
    "exp4_full": {"passes": 4, "trials": 2},
    "exp5": {"passes": 4},
    "exp5_full": {"passes": 4},
    "exp6": {"passes": [4, 8, 16], "trials": 2},
    "module_scan": {
        "passes": 4,
        "num_images": 5,
        "trials": 2,
        "module_scan": {
            "ptypes": ["dropout"],
            "magnitudes": [0.05],
            "combo_top_k": 2,
            "combo_max_modules": 2,
            "combo_trials": 2,
            "combo_passes": 4,
            "combo_num_images": 4,
        },
    },
    "groupwise": {"passes": 4, "trials": 2, "groupwise": {"num_candidates": 2, "num_groups": 2}},
    "text": {"passes": 4, "trials": 2, "text": {"num_prompts": 12}},
}
MAIN = {
    "exp0": "tiny/exp0_trials_T8.npz",
    "exp0b": "exp0b_geometry_trials.npz",
    "exp1": "tiny/exp1_rank_p_trials.npz",
    "exp2": "tiny/exp2_uncertainty_by_category.npz",
    "exp3": "tiny/exp3_type_C_trials.npz",
    "exp4": "exp4_subset_tiny_trials.npz",
    "exp4_full": "tiny/exp4_full_trials.npz",
    "exp5": "exp5_subset_tiny.npz",
    "exp5_full": "tiny/exp5_full_outputs.npz",
    "exp6": "tiny/exp6_convergence_T16.npz",
    "module_scan": "tiny/combination_results.json",
    "groupwise": "tiny/exp11_outputs.npz",
    "text": "tiny/exp10_outputs.npz",
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_from_images_to_files(experiment, images, model, tmp_path):
    results = serial(options_of(images, model, experiment=experiment, **SMALL[experiment]), tmp_path)
    assert (results / MAIN[experiment]).is_file()
    assert json.loads((results / "summary.json").read_text())["decision"]
    if MAIN[experiment].endswith(".npz"):
        with np.load(results / MAIN[experiment], allow_pickle=False) as arrays:
            for name, values in arrays.items():
                if values.dtype.kind == "f" and name != "prompt_sensitivity":
                    assert np.isfinite(values).all(), name
                    assert values.any(), name


def test_the_numbers_of_a_run_belong_together(reference):
    _, results = reference
    found = traces(results)
    np.testing.assert_allclose(found["trace_pre_unbiased"], found["trace_pre"] * 8 / 7, rtol=1e-12)
    np.testing.assert_allclose(found["trace_post_unbiased"], found["trace_post"] * 8 / 7, rtol=1e-12)
    with np.load(results / "tiny/exp0_trials_T8.npz") as arrays:
        np.testing.assert_array_equal(arrays["trial_pre"], found["trace_pre"])
        assert arrays["paths"].shape == (12,)
    summary = json.loads((results / "tiny/exp0_summary.json").read_text())
    assert summary["results"]["T=8"]["pre_norm"] == pytest.approx(reliability(found["trace_pre"]).record())
    assert np.unique(found["trace_pre"]).size == found["trace_pre"].size


@pytest.mark.parametrize(
    "change",
    [{"image_block": 5}, {"pass_block": 3}, {"image_block": 4, "pass_block": 2}],
)
def test_results_do_not_depend_on_how_the_work_is_cut(reference, change, tmp_path):
    options, results = reference
    other = serial(changed(options, "performance", **change), tmp_path)
    # The micro-batch has one shape throughout: features are the same bits, only sums of passes may round otherwise.
    same(traces(results), traces(other), 0 if "pass_block" not in change else 1e-9)
    same(traces(results, passes=4), traces(other, passes=4), 0 if "pass_block" not in change else 1e-9)


def test_results_do_not_depend_on_threads(reference, tmp_path):
    options, results = reference
    same(traces(results), traces(serial(options, tmp_path, threads=3)), 0)


def test_a_model_with_failed_units_is_left_out_and_named(images, model, tmp_path):
    weights = {"init": "random", "weights": {"tiny": str(model), "other": str(model)}}
    values = {"models": ["tiny", "other"], "passes": 4, "trials": 2, "dropout": 0.1, "device": "cpu"}
    options = build(McDropoutOptions, {"data_dir": str(images), "model": weights, **values})
    results = serial(options, tmp_path / "one", lost="other/i0000000-0000012/k001")
    overall = json.loads((results / "exp0_overall_summary.json").read_text())
    assert list(overall["results"]) == ["tiny"]
    assert "1 of 2 units" in overall["skipped"]["other"]
    results = serial(options, tmp_path / "both", lost="/k001")
    assert json.loads((results / "summary.json").read_text()) == {"decision": "no-go"}


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_results_do_not_depend_on_the_batch(reference, batch, tmp_path):
    options, results = reference
    other = serial(changed(options, "performance", batch_size=batch), tmp_path)
    same(traces(results), traces(other), 1e-5)


def test_nested_passes_are_those_of_a_shorter_run(reference, images, model, tmp_path):
    _, results = reference
    short = serial(options_of(images, model, trials=2, passes=4), tmp_path)
    nested, alone = traces(results, passes=4), traces(short, passes=4)
    same(nested, {name: alone[name] for name in nested}, 0)


def test_features_on_request_give_the_traces(reference, tmp_path):
    options, _ = reference
    other = serial(changed(options, "outputs", features=True, geometry=True), tmp_path)
    found = traces(other)
    with h5py.File(other / "features.h5") as file:
        features = np.stack([file[f"tiny/trial{k:03d}"][:] for k in range(2)]).astype(np.float64)
        assert file["tiny/trial001"].attrs["seed"] == 43
    assert features.shape == (2, 8, 12, 16)
    np.testing.assert_allclose(features.var(axis=1).mean(axis=2), found["trace_pre"], rtol=1e-6)
    weights = features[0].mean(axis=0).var(axis=0, ddof=1)
    weighted = (features[0].var(axis=0, ddof=1) * weights / weights.sum()).sum(axis=1)
    np.testing.assert_allclose(found["weighted_trace_pre"][0], weighted, rtol=1e-6)
    np.testing.assert_allclose(found["weighted_trace_pre_biased"][0], weighted * 7 / 8, rtol=1e-6)
    eigenvalues = found["eigs_pre"].sum(axis=2) / 16
    np.testing.assert_allclose(eigenvalues, found["trace_pre_unbiased"], rtol=1e-6)


def test_the_site_table_and_the_provenance_are_stored(reference):
    _, results = reference
    with h5py.File(results / "mcdropout.h5") as file:
        ids = [name.decode() for name in file["sites/tiny/id"][:]]
        facts = {name: json.loads(value) for name, value in file.attrs.items()}
    assert len(ids) == 3 * 6
    assert "blocks.02.mlp.fc2" in ids
    assert facts["models"]["tiny"]["init"] == "random"
    assert "RANDOM WEIGHTS" in facts["models"]["tiny"]["remarks"][0]
    assert facts["models"]["tiny"]["preprocess"]["size"] == 32
    assert (facts["rng"], facts["masks"], facts["form"]) == ("philox", "per_image", "sparse")


def test_shared_masks_are_recorded_and_make_trials_agree(images, model, tmp_path):
    options = options_of(images, model, trials=4, passes=16, perturbation={"masks": "shared"})
    shared = serial(options, tmp_path / "shared")
    own = serial(changed(options, "perturbation", masks="per_image"), tmp_path / "own")
    rho = [reliability(traces(r, passes=16)["trace_pre"]).pairwise_spearman_median for r in (shared, own)]
    assert rho[0] > rho[1] + 0.1
    with h5py.File(shared / "mcdropout.h5") as file:
        assert json.loads(file.attrs["masks"]) == "shared"


def test_adaptive_passes_stop_some_images_and_change_no_other_number(images, model, tmp_path):
    options = options_of(images, model, trials=2, passes=32)
    whole = traces(serial(options, tmp_path / "whole"), passes=32)
    adaptive = changed(options, "adaptive", enabled=True, gate=0.5, least_passes=8)
    found = traces(serial(adaptive, tmp_path / "adaptive"), passes=32)
    stopped = found["passes"] < 32
    assert stopped.any()
    assert set(found["passes"][stopped]) <= {8, 16, 24}
    np.testing.assert_allclose(found["trace_pre"][~stopped], whole["trace_pre"][~stopped], rtol=1e-5)
    cut = changed(adaptive, "performance", image_block=5)
    same(found, traces(serial(cut, tmp_path / "cut"), passes=32), 1e-5)
    with pytest.raises(InputError, match=r"one job\.passes"):
        McDropoutJob(options_of(images, model, passes=[4, 8], adaptive={"enabled": True})).check()


def test_the_torch_stream_is_one_unit_per_trial(images, model, tmp_path):
    options = options_of(images, model, trials=2, passes=4, perturbation={"rng": "torch", "compat": "uniform_linear"})
    found = traces(serial(options, tmp_path / "a"), passes=4)
    assert np.isfinite(found["trace_pre"]).all()
    cut = changed(options, "performance", image_block=3, pass_block=1)
    same(found, traces(serial(cut, tmp_path / "b"), passes=4), 0)


def test_traces_are_those_of_the_plain_loop_bit_for_bit(images, model, tmp_path):
    perturbation = {"rng": "torch", "select": "mlp"}
    options = options_of(images, model, trials=2, passes=4, num_images=10, perturbation=perturbation)
    results = serial(changed(options, "performance", batch_size=4), tmp_path)
    with np.load(results / "tiny/exp0_trials_T4.npz") as arrays:
        paths, pre, post = ([*map(Path, arrays["paths"])], arrays["trial_pre"], arrays["trial_post"])
    loaded = load_model(str(model), init="random", seed=options.seed)
    linears = [f"blocks.{block}.mlp.{layer}" for block in range(3) for layer in ("fc1", "fc2")]
    for trial in range(2):
        with dropout_after(loaded.tower, linears, 0.1):
            found = plain_trial(
                loaded.tower, paths, loaded.preprocess.apply, passes=4, batch=4, seed=options.seed + trial
            )
        np.testing.assert_array_equal(pre[trial].astype(np.float32), found[0])
        np.testing.assert_array_equal(post[trial].astype(np.float32), found[1])


def test_pixels_are_shared_between_runs_and_fall_back_to_memory(images, model, tmp_path, monkeypatch):
    options = changed(options_of(images, model, trials=2, passes=4), "pixels", cache=tmp_path / "cache")
    first = serial(options, tmp_path / "a")
    (cache,) = (tmp_path / "cache").iterdir()
    made = cache.stat().st_mtime_ns
    again = serial(options, tmp_path / "b")
    assert cache.stat().st_mtime_ns == made
    from tessera.mcdropout import pixels

    monkeypatch.setattr(pixels, "free_bytes", lambda folder: 10)
    elsewhere = changed(options, "pixels", cache=tmp_path / "full")
    without_disk = serial(elsewhere, tmp_path / "c")
    assert not (tmp_path / "full").exists()
    for other in (again, without_disk):
        same(traces(first, passes=4), traces(other, passes=4), 0)
    with pytest.raises(InputError, match="GB"):
        serial(changed(elsewhere, "pixels", store="disk"), tmp_path / "d")


def test_a_changed_data_dir_does_not_change_a_run_that_has_begun(images, model, tmp_path):
    options = options_of(images, model, trials=2, passes=4, num_images=6)
    results = serial(options, tmp_path)
    before = traces(results, passes=4)
    (results / "mcdropout.h5").unlink()
    same(before, traces(serial(options, tmp_path), passes=4), 0)
    listed = json.loads((results / "phase1_exp0_manifest.json").read_text())
    assert listed["num_images"] == len(listed["paths"]) == 6
    folder = tmp_path / "own"
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"paths": listed["paths"][:4]}))
    own = serial(options_of(images, model, trials=2, passes=4, manifest=str(manifest)), folder)
    assert traces(own, passes=4)["trace_pre"].shape == (2, 4)


CUT = {"image_block": 3, "pass_block": 8}


def _run(path, images, model, ranks):
    """Start the engine's ranks on a run directory."""
    config = {
        "job": {
            "_target_": "tessera.mcdropout.job.McDropoutJob",
            "name": "mcdropout",
            "data_dir": str(images),
            "models": ["tiny"],
            "model": {"init": "random", "weights": {"tiny": str(model)}},
            "device": "cpu",
            "dropout": 0.1,
            "trials": 2,
            "passes": [4, 64],
            "performance": CUT,
        },
        "run": {"dir": str(path)},
        "cluster": {"ranks": ranks, "threads_per_process": 1},
        "checkpoint": {"every": 0.2},
        "engine": {"heartbeat": 0.1, "kernels": "native"},  # as the reference is computed in this process
        "seed": 1,
    }
    if not path.is_dir():
        RunDir.prepare(path, config)
    environment = rank_environment(ranks)
    with output_of(path).open("w") as output:
        return subprocess.Popen(
            rank_command(path, ranks), env=environment, stdout=output, stderr=output, start_new_session=True
        )


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_a_kill_and_a_resume_do_not_show(images, model, tmp_path):
    path = tmp_path / "killed"
    process = _run(path, images, model, 3)
    deadline = time.monotonic() + 120
    while not [*path.glob("checkpoints/trials/seg-*")] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    ranks = json.loads((path / "progress.json").read_text())["ranks"]
    os.kill(ranks[1]["pid"], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert not (path / "results" / "mcdropout.h5").exists()
    resumed = _run(path, images, model, 1)
    assert resumed.wait(timeout=250) == 0, output_of(path).read_text()
    assert (path / "report" / "index.html").is_file()
    options = options_of(images, model, trials=2, passes=[4, 64], performance=CUT)
    reference = serial(options, tmp_path / "here")
    same(traces(path / "results", passes=64), traces(reference, passes=64), 0)
    for name in ("tiny/exp0_trials_T64.npz", "tiny/exp0_trials_T4.npz", "exp0_overall_summary.json"):
        assert (path / "results" / name).read_bytes() == (reference / name).read_bytes()


def test_units_of_larger_models_and_longer_suffixes_cost_more():
    options = build(McDropoutOptions, {"data_dir": "images", "model": {"init": "random"}})
    models = {name: architecture(options, name) for name in ("clip_b32", "clip_l14")}
    uniform, late = ByRecipe("uniform", 0.01), ByRecipe("late", 0.01, blocks=3)
    cost = {
        (name, how.select): pass_flops(Arm("a", name, how, (1,), (4,)), found)
        for name, found in models.items()
        for how in (uniform, late)
    }
    per_token = 12 * 12 * 768**2
    assert cost["clip_b32", "uniform"] == pytest.approx(2 * 50 * per_token, rel=0.02)
    assert cost["clip_b32", "late"] == pytest.approx(cost["clip_b32", "uniform"] / 4)
    assert cost["clip_l14", "uniform"] > 15 * cost["clip_b32", "uniform"]
