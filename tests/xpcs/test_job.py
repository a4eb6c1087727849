"""`job=xpcs` recovers a known truth, gives the same bits on any number of ranks and after a kill, and refuses bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from hpc.cli.main import main
from hpc.context import Context
from hpc.errors import InputError
from hpc.options import build
from tessera.lsq import plots as fit_plots
from tessera.xpcs.fit_file import read_fit
from tessera.xpcs.generate import Truth
from tessera.xpcs.job import XpcsJob
from tessera.xpcs.npz_cache import write_cache
from tessera.xpcs.options import XpcsOptions
from tessera.xpcs.write_files import write_aps_old, write_aps_u

NOISE, Q, GAP = 0.02, 0.0054, 2e6
DIFFUSION = {"D0": 1500.0, "alpha": -0.4, "D_offset": 200.0}
FLOW = {**DIFFUSION, "gamma_dot_t0": 3e-4, "beta": 0.2, "gamma_dot_t_offset": 5e-5, "phi0": 4.0}
START = {**FLOW, "D0": 1200.0, "alpha": -0.3, "gamma_dot_t0": 2e-4, "phi0": 1.0}
PHI = np.array([-70.0, -20.0, 15.0, 60.0])


def flow(n: int) -> Truth:
    return Truth("laminar_flow", FLOW, PHI, n, 60.0 / n, Q, GAP, contrast=0.3, offset=1.0)


@pytest.fixture(scope="module")
def flow_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "flow.h5"
    write_aps_u(path, flow(120).noisy(NOISE, seed=5), PHI, np.array([Q]))
    return path


def words(file: Path, run: Path, **more: object) -> list[str]:
    values = "{" + ",".join(f"{k}:{v}" for k, v in START.items()) + "}"
    settings = {
        "job.experimental_data.file_path": file,
        "job.analyzer_parameters.dt": 0.5,
        "job.initial_parameters.values": values,
        "job.output.plotted_angles": 1,
        "run.dir": run,
        "cluster.threads_per_process": 1,
        **more,
    }
    return ["job=xpcs", *(f"{k}={v}" for k, v in settings.items())]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hpc", *arguments]


def options(file: Path, **sections: dict) -> XpcsOptions:
    base = {
        "experimental_data": {"file_path": str(file), **sections.pop("experimental_data", {})},
        "analyzer_parameters": {"dt": 0.5, **sections.pop("analyzer_parameters", {})},
        "initial_parameters": {"values": START},
        **sections,
    }
    return build(XpcsOptions, base)


def fit_here(chosen: XpcsOptions, folder: Path, threads: int = 1) -> Path:
    """Run the job's stage in this process."""
    folder.mkdir()
    ctx = Context(results_dir=folder, threads=threads)
    job = XpcsJob(chosen)
    job.check()
    job.setup(ctx)
    (stage,) = job.stages()
    state = stage.start(ctx)
    assert stage.figures(state)["phase"] in ("first fit", "multi-start round 1")
    while not stage.done(state):
        state = stage.step(state, ctx)
    stage.finish(state, ctx)
    return folder


def bits(results: Path) -> dict[str, object]:
    """All results but the time at which they were written."""
    found = {name: (results / name).read_bytes() for name in ("fit.h5", "fitted_data.npz", "convergence_metrics.json")}
    for name in ("parameters", "analysis_results_nlsq"):
        found[name] = {k: v for k, v in json.loads((results / f"{name}.json").read_text()).items() if k != "timestamp"}
    return found


def pulls(results: Path, truth: dict[str, float]) -> np.ndarray:
    table = json.loads((results / "parameters.json").read_text())["parameters"]
    return np.array([(table[k]["value"] - v) / table[k]["uncertainty"] for k, v in truth.items()])


@pytest.fixture(scope="module")
def one_rank(flow_file, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    subprocess.run(command(*words(flow_file, run)), check=True, capture_output=True, timeout=200)
    return run


def test_the_truth_of_a_flow_is_found(one_rank):
    results = one_rank / "results"
    assert np.abs(pulls(results, {**FLOW, "contrast": 0.3, "offset": 1.0})).max() < 3.5
    parameters = json.loads((results / "parameters.json").read_text())
    assert parameters["convergence_status"] == "converged"
    assert parameters["reduced_chi_squared"] == pytest.approx(1, abs=0.05)
    found = read_fit(results / "fit.h5")
    assert found["correlation"].shape == (9, 9)
    page = (one_rank / "report" / "index.html").read_text()
    assert page.count("data:image/png") == 6
    assert "gamma_dot_t_offset" in page


@pytest.mark.mpi
@pytest.mark.parametrize("stored", ["whole", "in chunks"])
def test_two_ranks_give_the_same_bits(flow_file, one_rank, tmp_path, stored):
    run, file = tmp_path / "run", flow_file
    if stored == "in chunks":
        file = tmp_path / flow_file.name  # which the results hold
        write_aps_u(file, flow(120).noisy(NOISE, seed=5), PHI, np.array([Q]), compression="lzf")
    two = words(file, run, **{"cluster.ranks": 2, "job.experimental_data.in_memory": "false"})
    done = subprocess.run(command(*two), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bits(run / "results") == bits(one_rank / "results")


@pytest.mark.mpi
def test_kills_and_resumes_on_other_ranks_do_not_show(flow_file, one_rank, tmp_path):
    run = tmp_path / "run"
    first = words(flow_file, run, **{"checkpoint.every": "1 steps", "job.experimental_data.in_memory": "false"})
    for arguments, moment in (
        (first, "durable@gen-*.json:1:kill"),
        (["resume", str(run), "cluster.ranks=2"], "*@parameters.json*:1:kill"),
    ):
        killed = subprocess.run(
            command(*arguments),
            env={**os.environ, "TESSERA_FAULT": moment},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert killed.returncode not in (0, 2), killed.stdout + killed.stderr
        assert not (run / "results" / "parameters.json").exists()
    assert list(run.glob("checkpoints/fit/gen-*"))
    resumed = subprocess.run(
        command("resume", str(run), "cluster.ranks=1"), capture_output=True, text=True, timeout=200
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert bits(run / "results") == bits(one_rank / "results")


@pytest.mark.mpi
def test_a_robust_loss_holds_against_frames_that_are_off(tmp_path):
    """Pairs of two bright frames with all others; by squares, and by a robust loss on one and two ranks."""
    c2 = np.stack(list(flow(120).noisy(NOISE, seed=6)))
    c2[:, [30, 75]] += 0.3
    c2[:, :, [30, 75]] += 0.3
    path = tmp_path / "flashes.h5"
    write_aps_u(path, c2, PHI, np.array([Q]))
    truth = {**FLOW, "contrast": 0.3, "offset": 1.0}
    runs = {}
    for name, ranks, chosen in (
        ("squares", 1, {}),
        ("robust", 1, {"loss": "arctan", "loss_scale": 2.0, "errors": "sandwich"}),
        ("ranks", 2, {"loss": "arctan", "loss_scale": 2.0, "errors": "sandwich"}),
    ):
        runs[name] = tmp_path / name
        more = {f"job.optimization.{key}": value for key, value in chosen.items()}
        given = words(path, runs[name], **{"cluster.ranks": ranks, **more})
        done = subprocess.run(command(*given), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
    assert bits(runs["robust"] / "results") == bits(runs["ranks"] / "results")
    assert np.abs(pulls(runs["robust"] / "results", truth)).max() < 4
    told = json.loads((runs["robust"] / "results" / "analysis_results_nlsq.json").read_text())["optimization_summary"]
    assert (told["loss"], told["loss_scale"], told["errors"]) == ("arctan", 2.0, "sandwich")
    offsets = [
        json.loads((runs[name] / "results" / "parameters.json").read_text())["parameters"]["offset"]["value"]
        for name in ("squares", "robust")
    ]
    assert abs(offsets[0] - 1) > 5e-3 > 1e-3 > abs(offsets[1] - 1)


def test_static_data_of_the_old_layout_and_of_a_cache(tmp_path):
    truth = Truth("static_isotropic", DIFFUSION, np.zeros(1), 200, 0.5, Q, contrast=0.25, offset=1.02)
    c2 = truth.stack(NOISE, seed=8)
    write_aps_old(tmp_path / "old.h5", c2, np.zeros(1), np.array([Q]))
    write_cache(tmp_path / "cache.npz", c2, np.zeros(1), truth.times, Q)
    folders = []
    for name in ("old.h5", "cache.npz"):
        chosen = options(tmp_path / name, analysis_mode="static_isotropic")
        folders.append(fit_here(chosen, tmp_path / name.partition(".")[0]))
        assert np.abs(pulls(folders[-1], {**DIFFUSION, "contrast": 0.25, "offset": 1.02})).max() < 3
    first, second = (read_fit(folder / "fit.h5") for folder in folders)
    np.testing.assert_array_equal(first["x"], second["x"])


def test_threads_and_memory_do_not_show(flow_file, tmp_path):
    kept = fit_here(options(flow_file), tmp_path / "kept", threads=2)
    read = fit_here(options(flow_file, experimental_data={"in_memory": False}), tmp_path / "read")
    assert bits(kept) == bits(read)


def test_fixed_parameters_and_angles(flow_file, tmp_path):
    chosen = options(
        flow_file,
        initial_parameters={"values": START, "fixed_parameters": {"beta": 0.2, "gamma_dot_t_offset": 5e-5}},
        phi_filtering={"enabled": True, "target_ranges": [{"min_angle": -30, "max_angle": 70}]},
        optimization={"per_angle_mode": "individual", "sigma": NOISE},
        output={"fitted_data": False},
    )
    results = fit_here(chosen, tmp_path / "fixed")
    parameters = json.loads((results / "parameters.json").read_text())
    assert parameters["parameters"]["beta"] == {"value": 0.2, "uncertainty": None}
    assert [a["phi"] for a in parameters["per_angle"]] == [-20, 15, 60]
    free = {k: v for k, v in FLOW.items() if k not in ("beta", "gamma_dot_t_offset")}
    assert np.abs(pulls(results, free)).max() < 3.5
    assert not (results / "fitted_data.npz").exists()
    assert len(read_fit(results / "fit.h5").attributes["names"]) == 5 + 6


def test_several_starts_end_where_one_good_one_does(flow_file, tmp_path):
    many = {"hybrid_streaming": {"enable_multistart": True, "n_starts": 4}}
    results = fit_here(options(flow_file, optimization=many, initial_parameters={}, profile=True), tmp_path / "many")
    assert np.abs(pulls(results, FLOW)).max() < 3.5
    assert "solve" in (results / "profile" / "timing.txt").read_text()


def test_a_fit_that_cannot_succeed_says_so_everywhere(tmp_path):
    truth = Truth("static_isotropic", DIFFUSION, np.zeros(1), 60, 0.5, Q)
    file = tmp_path / "static.h5"
    write_aps_u(file, truth.noisy(NOISE, seed=2), np.zeros(1), np.array([Q]))
    flat = {"fixed_parameters": {"alpha": 0.0}}  # D0 and D_offset are then the same thing
    chosen = options(file, analysis_mode="static_isotropic", initial_parameters=flat)
    results = fit_here(chosen, tmp_path / "singular")
    parameters = json.loads((results / "parameters.json").read_text())
    assert parameters["convergence_status"] == "singular"
    assert parameters["parameters"]["D0"]["uncertainty"] is None
    convergence = json.loads((results / "convergence_metrics.json").read_text())
    assert convergence["quality_flag"] == "poor"
    assert not convergence["quality_validation_passed"]
    assert "D0, D_offset" in convergence["quality_warnings"][0]
    found = read_fit(results / "fit.h5")
    assert fit_plots.correlations(found.attributes["names"], found["correlation"]).startswith(b"\x89PNG")


def test_values_that_are_not_finite(tmp_path):
    truth = Truth("static_isotropic", DIFFUSION, np.zeros(1), 120, 0.5, Q)
    c2 = truth.stack(NOISE, seed=8)
    c2[0, 50] = c2[0, :, 50] = np.nan
    file = tmp_path / "holes.h5"
    write_aps_u(file, c2, np.zeros(1), np.array([Q]))
    with pytest.raises(InputError, match=r"118 values that are not finite, most of them in frames .*51.*nan=omit"):
        fit_here(options(file, analysis_mode="static_isotropic"), tmp_path / "refused")
    chosen = options(file, analysis_mode="static_isotropic", experimental_data={"nan": "omit"})
    results = fit_here(chosen, tmp_path / "omitted")
    assert np.abs(pulls(results, DIFFUSION)).max() < 3
    assert read_fit(results / "fit.h5").attributes["rejected"] == 118
    notes = json.loads((results / "analysis_results_nlsq.json").read_text())["dataset_info"]["notes"]
    assert any("are left out" in note for note in notes)


def spoil_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40_000])


def spoil_by_deleting(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["xpcs/twotime/processed_bins"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (spoil_by_cutting, "is cut off"),
        (spoil_by_deleting, "lacks xpcs/twotime/processed_bins; it holds"),
        ("job.analyzer_parameters.scattering.wavevector_q=0.02", "no wavevector near 0.02 1/Å"),
        ("job.analyzer_parameters.dt=null", "does not hold the time between frames"),
        ("job.analyzer_parameters.dt=-1", "must be above zero"),
        ("job.analyzer_parameters.end_frame=500", "there are 1 … 120"),
        ("job.analyzer_parameters.geometry.stator_rotor_gap=200", "looks like another unit"),
        (
            "job.phi_filtering={enabled: true, target_ranges: [{min_angle: 30, max_angle: 40}]}",
            "no angle lies in 30 … 40",
        ),
        ("job.initial_parameters.values.D0=1", "start value of D0, 1.0, is outside of its bounds"),
        ("job.parameter_space.bounds.alpha=[1,-1]", "lower bound 1 must be below the upper one, -1"),
        ("job.optimization.per_angle_mode=fourier", "use 'individual'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(flow_file, tmp_path, capsys, override, message):
    file = tmp_path / "data.h5"
    file.write_bytes(flow_file.read_bytes())
    more = []
    if callable(override):
        override(file)
    else:
        more = [override]
    assert main([*words(file, tmp_path / "run"), *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_run_records_absolute_paths(one_rank, flow_file):
    config = yaml.safe_load((one_rank / "config.yaml").read_text())
    assert config["job"]["experimental_data"]["file_path"] == str(flow_file)
