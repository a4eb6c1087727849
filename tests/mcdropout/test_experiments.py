"""Every experiment on made tables: its arms, seeds and defaults, and the original's files and keys."""

import json

import numpy as np
import pytest
from scipy import stats

from hpc.options import build
from tessera.mcdropout.ambiguity import Ambiguity
from tessera.mcdropout.experiments import EXPERIMENTS, convergence, module_scan, synthetic, text_tower
from tessera.mcdropout.experiments.design import ArmTable, BySites, Study, settle
from tessera.mcdropout.options import McDropoutOptions
from tessera.mcdropout.reliability import reliability

SITES = ("blocks.00.attn.q", "blocks.00.mlp.fc2", "blocks.01.mlp.fc2")


def settings_of(experiment: str, **values):
    options = build(McDropoutOptions, {"data_dir": "images", "experiment": experiment, **values})
    return settle(options, EXPERIMENTS[options.experiment].defaults)


def table_of(arm, n: int, noise: float = 0.2) -> ArmTable:
    """Traces whose noise falls with T, the same images being uncertain everywhere."""
    images = np.arange(n)[arm.first : arm.end]
    rng = np.random.default_rng(len(arm.key))
    level = np.linspace(1, 4, images.size)
    columns = {}
    for t in arm.passes:
        for name in (
            "trace_pre",
            "trace_post",
            "trace_pre_unbiased",
            "trace_post_unbiased",
            "angular_var",
            "anisotropy",
            "effective_rank",
            "offdiag_pre",
            "offdiag_post",
        ):
            noisy = level + noise * rng.normal(size=(len(arm.seeds), images.size))
            columns[name, t] = noisy
        columns["rel_dist", t] = np.ones((len(arm.seeds), images.size)) / np.sqrt(t)
        for side in ("pre", "post"):
            columns[f"eigs_{side}", t] = rng.random((len(arm.seeds), images.size, 10))
    return ArmTable(arm, images, columns, rng.normal(size=(images.size, 8)))


def study_of(experiment: str, n: int = 30, **values) -> Study:
    settings = settings_of(experiment, **values)
    arms = EXPERIMENTS[experiment].arms(settings, lambda model: SITES)
    rng = np.random.default_rng(0)
    return Study(
        settings,
        tuple(f"folder/{i:03d}.png" for i in range(n)),
        {arm.key: table_of(arm, n) for arm in arms},
        sites={arm.key: SITES for arm in arms},
        ambiguity={m: Ambiguity(-np.linspace(1, 4, n), np.linspace(0, 1, n), rng.random(n)) for m in settings.models},
        classes=("a", "b"),
        styles=tuple("ab"[i % 2] for i in range(n)),
    )


DEFAULTS = {
    "exp0": (("clip_b32", "siglip2_b16", "siglip2_so400m"), 500, 10, (4, 16, 64)),
    "exp0b": (("clip_b32",), 500, 5, (64,)),
    "exp1": (("clip_b32", "siglip2_so400m"), 1000, 3, (64,)),
    "exp3": (("clip_b32",), 1000, 5, (64,)),
    "exp4": (("clip_b32", "siglip2_b16"), 500, 10, (64,)),
    "exp4_full": (("clip_b32", "siglip2_b16", "siglip2_so400m", "clip_l14", "siglip2_g16"), 500, 10, (64,)),
    "exp5": (("clip_b32", "siglip2_b16"), 5000, 1, (64,)),
    "exp5_full": (("clip_b32", "siglip2_b16"), 10000, 1, (64,)),
    "exp6": (("siglip2_b16", "siglip2_so400m"), 500, 3, (4, 8, 16, 32, 64)),
    "module_scan": (("clip_b32",), 200, 3, (32,)),
    "groupwise": (("clip_b32", "siglip2_b16"), 2000, 2, (32,)),
}


@pytest.mark.parametrize("experiment", DEFAULTS)
def test_defaults_are_the_originals(experiment):
    settings = settings_of(experiment)
    found = (settings.models, settings.num_images, settings.trials, settings.passes)
    assert found == DEFAULTS[experiment]
    assert settings.seed == 42
    assert settings.options.dropout == 0.01


def seeds_of(experiment: str, **values) -> dict[str, tuple[int, ...]]:
    settings = settings_of(experiment, trials=3, models=["m"], **values)
    return {arm.key: arm.seeds for arm in EXPERIMENTS[experiment].arms(settings, lambda model: SITES)}


def test_seeds_are_the_originals():
    assert seeds_of("exp0") == {"m": (42, 43, 44)}
    assert seeds_of("exp0", exp0={"nested": False})["m/T16"] == (1600042, 1600043, 1600044)
    assert seeds_of("exp0b") == {"m": (42, 43, 44)}
    assert seeds_of("exp1")["m/p0.005"] == (5042, 5043, 5044)
    assert seeds_of("exp2")["m/noise"] == (47, 1047, 2047)
    assert seeds_of("exp3")["m/C"] == (42 + 67, 10042 + 67, 20042 + 67)
    assert seeds_of("exp4") == seeds_of("exp5") == seeds_of("text") == {"m": (42, 43, 44)}
    assert seeds_of("exp6") == {"m": (42, 100042, 200042)}
    assert seeds_of("groupwise")["m/c002"] == (20042, 20043, 20044)
    assert set(seeds_of("module_scan").values()) == {(42, 43, 44)}


def test_exp0_files_and_keys():
    study = study_of("exp0", models=["clip_b32"], trials=4)
    files = EXPERIMENTS["exp0"].export(study)
    assert set(files.npz) == {f"clip_b32/exp0_trials_T{t}.npz" for t in (4, 16, 64)}
    arrays = files.npz["clip_b32/exp0_trials_T16.npz"]
    assert {"paths", "trial_pre", "trial_post"} <= set(arrays)
    assert arrays["trial_pre"].shape == (4, 30)
    row = files.json["clip_b32/exp0_summary.json"]["results"]["T=16"]["pre_norm"]
    assert row == reliability(arrays["trial_pre"]).record()
    assert row["status"] == "usable"
    assert files.json["exp0_overall_summary.json"]["decision"] == "go"


def test_exp0_separate_runs_have_the_same_files():
    files = EXPERIMENTS["exp0"].export(study_of("exp0", models=["clip_b32"], trials=2, exp0={"nested": False}))
    assert set(files.npz) == {f"clip_b32/exp0_trials_T{t}.npz" for t in (4, 16, 64)}


def test_exp0_with_one_trial_says_so():
    files = EXPERIMENTS["exp0"].export(study_of("exp0", models=["clip_b32"], trials=1))
    overall = files.json["exp0_overall_summary.json"]
    assert overall["results"]["clip_b32"]["T=4"]["pre_norm"]["status"] == "insufficient_trials"
    assert overall["decision"].startswith("insufficient_trials")


def test_exp0b_keys():
    files = EXPERIMENTS["exp0b"].export(study_of("exp0b"))
    arrays = files.npz["exp0b_geometry_trials.npz"]
    assert arrays["eigs_pre"].shape == (5, 30, 10)
    assert {"trace_pre", "trace_post", "angular_var", "offdiag_pre", "offdiag_post", "eigs_post"} <= set(arrays)
    assert len(files.json["exp0b_summary.json"]["pre_norm"]["eigs_top10_mean"]) == 10


def test_exp1_matrix_across_rates():
    study = study_of("exp1", models=["clip_b32"])
    files = EXPERIMENTS["exp1"].export(study)
    arrays = files.npz["clip_b32/exp1_rank_p_trials.npz"]
    assert {"p_values", "mean_uncertainty", "spearman_matrix", "trials_p_0_001", "trials_p_0_1"} <= set(arrays)
    mean = arrays["mean_uncertainty"]
    expected = stats.spearmanr(mean[1], mean[4]).statistic
    assert arrays["spearman_matrix"][1, 4] == pytest.approx(expected, abs=1e-12)
    assert set(files.json["clip_b32/exp1_summary.json"]["reliability_by_p"]) == {
        "0.001",
        "0.005",
        "0.01",
        "0.02",
        "0.05",
        "0.1",
    }


def test_exp2_orders_the_categories():
    study = study_of("exp2", n=40, models=["clip_b32"])
    (summary,) = [v for k, v in EXPERIMENTS["exp2"].export(study).json.items() if k == "clip_b32/exp2_summary.json"]
    assert set(summary["category_stats"]) == {"solid", "gradient", "noise", "natural"}
    assert len(summary["ascending_uncertainty_order"]) == 4


def test_exp2_images_are_the_originals():
    found = synthetic.synthetic_images(24, 4, 42)
    rng = np.random.default_rng(42)
    colour = [int(x) for x in rng.integers(0, 256, size=3)]
    assert np.array_equal(found["solid"][0], np.full((24, 24, 3), colour, np.uint8))
    ramp = np.tile(np.linspace(0, 255, 24, dtype=np.float32), (24, 1))
    assert np.array_equal(found["gradient"][2][..., 0], ramp.astype(np.uint8))
    assert np.array_equal(found["gradient"][3][..., 2], np.roll(255.0 - ramp.T, 24 // 5, axis=0).astype(np.uint8))
    assert found["noise"][0].std() > 60


def test_exp3_types():
    study = study_of("exp3", trials=3)
    files = EXPERIMENTS["exp3"].export(study)
    summary = files.json["clip_b32/exp3_summary.json"]
    assert summary["cross_type"]["types"] == ["A", "B", "C", "D", "E"]
    assert {"trace_pre", "angular_var", "anisotropy"} <= set(files.npz["clip_b32/exp3_type_C_trials.npz"])
    assert summary["results_by_type"]["A"]["selected_paths"] == list(SITES)


def test_exp4_and_exp4_full():
    subset = EXPERIMENTS["exp4"].export(study_of("exp4", trials=3))
    assert set(subset.json["exp4_subset_summary.json"]["comparison"]) == {"trace_mean_delta", "angular_mean_delta"}
    full = EXPERIMENTS["exp4_full"].export(study_of("exp4_full", trials=3))
    matrix = full.json["exp4_full_overall_summary.json"]["cross_model_spearman"]["trace_pre"]
    assert np.shape(matrix) == (5, 5)


def test_exp5_uncertainty_that_follows_the_margin():
    study = study_of("exp5", models=["clip_b32"], trials=5)
    files = EXPERIMENTS["exp5"].export(study)
    metrics = files.json["exp5_subset_clip_b32_summary.json"]["metrics"]
    assert metrics["rho_uncertainty_vs_negative_margin"] > 0.95
    assert metrics["auroc_low_margin"] > 0.95
    arrays = files.npz["exp5_subset_clip_b32.npz"]
    assert arrays["low_margin"].sum() == 3
    assert set(arrays) == {
        "paths",
        "uncertainty_trials",
        "uncertainty",
        "margin",
        "entropy",
        "prompt_sensitivity",
        "low_margin",
        "high_entropy",
    }


def test_exp5_records_a_model_that_failed():
    study = study_of("exp5", models=["clip_b32"])
    failed = Study(study.settings, study.paths, {}, skipped={"clip_b32": "no weights"}, classes=("a", "b"))
    files = EXPERIMENTS["exp5"].export(failed)
    assert files.json["exp5_subset_clip_b32_error.json"]["reason"] == "no weights"
    assert files.json["exp5_subset_overall_summary.json"]["skipped"] == {"clip_b32": "no weights"}


def test_exp6_slope():
    files = EXPERIMENTS["exp6"].export(study_of("exp6", models=["clip_b32"]))
    results = files.json["clip_b32/exp6_summary.json"]["results"]
    assert results["convergence_slope"] == pytest.approx(-0.5, abs=1e-12)
    assert convergence.slope([4, 8, 16], [0.2, 0.2, 0.2]) == pytest.approx(0, abs=1e-12)
    assert np.isnan(convergence.slope([4], [0.1]))


def scan_study(best: str) -> Study:
    """A scan in which one site ranks well, another fairly, and the third at random."""
    study = study_of("module_scan", module_scan={"ptypes": ["dropout", "scale"], "combo_max_modules": 3})
    noise = {best: 0.05, SITES[1] if best != SITES[1] else SITES[0]: 0.6}
    tables = {
        key: table_of(t.arm, 30, noise.get(t.arm.perturbation.sites[0][0], 30.0)) for key, t in study.tables.items()
    }
    return Study(study.settings, study.paths, tables, sites=study.sites)


def test_module_scan_goes_on_while_it_gets_better():
    study = scan_study(SITES[2])
    assert len(study.tables) == 3 * 2 * 2
    first = module_scan.combinations(study, 1)
    assert first[0].perturbation.sites[0][0] == SITES[2]
    assert len(first) == 3
    assert {arm.passes for arm in first} == {(64,)}
    tables = dict(study.tables)
    for arm in first:
        tables[arm.key] = table_of(arm, 500, 0.02 if arm.perturbation.sites[0][0] == SITES[2] else 0.5)
    study = Study(study.settings, study.paths, tables, sites=study.sites)
    second = module_scan.combinations(study, 2)
    assert {arm.perturbation.sites[0][0] for arm in second} == {SITES[2]}
    assert {arm.perturbation.sites[1][0] for arm in second} == set(SITES[:2])
    for arm in second:
        tables[arm.key] = table_of(arm, 500, 2.0)
    study = Study(study.settings, study.paths, tables, sites=study.sites)
    assert module_scan.combinations(study, 3) == []
    files = EXPERIMENTS["module_scan"].export(study)
    (step,) = files.json["clip_b32/combination_results.json"]["combination_results"]
    assert step["added_module"] == SITES[2]
    ranked = files.json["clip_b32/scan_results.json"]["scan_results"]
    assert ranked[0]["module"] == SITES[2]
    rho = [row["pairwise_spearman_median"] for row in ranked]
    assert rho == sorted(rho, reverse=True)


def test_groupwise_candidates_and_objective():
    study = study_of("groupwise", models=["clip_b32"], groupwise={"num_candidates": 5})
    rates = [t.arm.perturbation.schedule for t in study.tables.values()]
    assert rates[0] == (0.01,) * 4
    assert all(0.001 <= p <= 0.1 for rate in rates for p in rate)
    rng = np.random.default_rng(42)
    np.testing.assert_allclose(rates[1], np.exp(rng.uniform(np.log(0.001), np.log(0.1), size=4)))
    files = EXPERIMENTS["groupwise"].export(study)
    assert files.json["clip_b32/exp11_groups.json"]["path_to_group"] == dict(zip(SITES, (0, 0, 2), strict=True))
    summary = files.json["clip_b32/exp11_summary.json"]
    best = summary["best"]
    expected = (
        best["metrics"]["rho_uncertainty_vs_negative_margin"]
        + best["metrics"]["rho_uncertainty_vs_entropy"]
        + 0.5 * best["metrics"]["rho_uncertainty_vs_prompt_sensitivity"]
        + 0.1 * best["reliability"]["icc"]
    )
    assert best["objective"] == pytest.approx(expected, rel=1e-12)
    assert summary["improvement_over_baseline"]["objective_delta"] >= 0


def test_text_prompts_and_specificity(tmp_path):
    bank = text_tower.prompt_bank(["red fox", "car"])
    assert len(bank) == 7 + 8
    assert ("specific", "a detailed close-up photo of a red fox in natural lighting") in bank
    specific = text_tower.specificity("a detailed photo of a car with natural lighting")
    assert specific > text_tower.specificity("a car") > text_tower.specificity("something unknown")
    assert len(text_tower.sample_prompts(bank, 6, 42)) == 6
    assert len(text_tower.sample_prompts(bank, 40, 42)) == 40
    assert text_tower.sample_prompts(bank, 0, 42) == bank
    path = tmp_path / "prompts.txt"
    path.write_text("# comment\nart\ta painting\nplain line\n")
    assert text_tower.read_prompts(path) == [("art", "a painting"), ("file", "plain line")]
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        text_tower.read_prompts(path)
    files = EXPERIMENTS["text"].export(study_of("text", models=["clip_b32"]))
    assert {"prompts", "styles", "token_count", "specificity"} <= set(files.npz["clip_b32/exp10_outputs.npz"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_export_is_plain_json_and_every_key_fits_a_unit(experiment, tmp_path):
    from hpc.job import Unit
    from tessera.mcdropout.outputs import write_json, write_npz

    study = study_of(experiment, n=45)
    for key in study.tables:
        Unit(f"{key}/i000000-000016")
    files = EXPERIMENTS[experiment].export(study)
    assert files.json
    for name, record in files.json.items():
        path = tmp_path / name.replace("/", "_")
        write_json(path, record)
        json.loads(path.read_text(), parse_constant=pytest.fail)
    for name, arrays in files.npz.items():
        path = tmp_path / name.replace("/", "_")
        write_npz(path, arrays)
        with np.load(path, allow_pickle=False) as read:
            assert set(read) == set(arrays)


def test_a_scan_of_one_site_is_by_site():
    study = study_of("module_scan")
    assert all(isinstance(t.arm.perturbation, BySites) for t in study.tables.values())
