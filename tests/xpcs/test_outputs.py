"""Outputs hold what the fit found, under homodyne's names; maps and sums agree with plain numpy on whole matrices."""

import json

import numpy as np
import pytest
from xpcs.made_fits import FLOW, NOISE, PHYSICAL, fitted, made_finding

from tessera.lsq.result import HISTORY
from tessera.xpcs import outputs
from tessera.xpcs.diagonal import corrected
from tessera.xpcs.fitted import compare
from tessera.xpcs.fitted_npz import npz_bytes, write_npz
from tessera.xpcs.physics import g1_squared


@pytest.fixture(scope="module")
def finding() -> outputs.Finding:
    return made_finding()


@pytest.mark.parametrize(("n", "holes"), [(61, 0), (200, 9), (367, 0)])
def test_comparison_is_that_of_whole_matrices(n, holes):
    found = fitted(n, holes)
    data = found.dataset
    for angle in range(2):
        got = compare(found, angle)
        whole = data.matrix(angle)
        g = g1_squared(found.physical, data.times, q=data.q, gap=2e6, phi=float(data.phi[angle]))
        fit = found.offset[angle] + found.contrast[angle] * g
        pairs = np.triu(np.isfinite(whole), 1)
        assert got.count == pairs.sum()
        assert got.chi2 == pytest.approx((((whole - fit)[pairs] / NOISE) ** 2).sum(), rel=1e-10)
        line = np.linalg.lstsq(np.stack([g[pairs], np.ones(got.count)], axis=1), whole[pairs], rcond=None)[0]
        np.testing.assert_allclose([got.contrast, got.offset], line, rtol=1e-8)
        for lag in (1, 7, n - 1):
            band = np.diagonal(whole, lag)
            assert got.lag_data[lag] == pytest.approx(band[np.isfinite(band)].mean(), rel=1e-12)
            assert got.lag_fit[lag] == pytest.approx(np.diagonal(fit, lag)[np.isfinite(band)].mean(), rel=1e-12)
        step = got.step
        assert got.data.shape[0] == -(-n // step) <= 180
        np.testing.assert_array_equal(got.residual, got.residual.T)
        block = (slice(2 * step, 3 * step), slice(5 * step, 6 * step))
        assert got.data[2, 5] == pytest.approx(whole[block].mean(), rel=1e-12)
        pull = (whole - fit)[block].mean() / (NOISE / step)
        assert got.residual[2, 5] == pytest.approx(pull, rel=1e-9, abs=1e-9)
        assert np.nanstd(got.residual) == pytest.approx(1.05, abs=0.06)  # noise grows with the root of C2


def test_json_files_have_homodynes_keys(finding):
    parameters = json.loads(json.dumps(outputs.parameters_json(finding), allow_nan=False))
    wanted = {"timestamp", "analysis_mode", "chi_squared", "reduced_chi_squared", "convergence_status", "parameters"}
    assert wanted <= set(parameters)
    assert parameters["convergence_status"] == "converged"
    table = parameters["parameters"]
    assert list(table) == ["contrast", "offset", *PHYSICAL, *FLOW]
    assert table["D0"] == {"value": 1500.0, "uncertainty": pytest.approx(15.0)}
    assert table["contrast"]["value"] == pytest.approx(0.25)
    assert table["contrast"]["uncertainty"] == pytest.approx(np.sqrt((0.003**2 + 0.002**2) / 2))
    assert parameters["per_angle"][1] == {"phi": 40.0, "contrast": 0.2, "offset": 1.02}
    analysis = json.loads(json.dumps(outputs.analysis_json(finding), allow_nan=False))
    assert {"method", "fit_quality", "dataset_info", "optimization_summary"} <= set(analysis)
    assert analysis["dataset_info"]["total_data_points"] == 2 * 61 * 61
    assert analysis["dataset_info"]["independent_data_points"] == 2 * 61 * 60 // 2
    convergence = json.loads(json.dumps(outputs.convergence_json(finding), allow_nan=False))
    assert convergence["quality_flag"] == "marginal"
    assert convergence["quality_warnings"] == ["parameter phi0 is at its bound"]
    assert convergence["convergence"]["chi_squared_reduction"] == pytest.approx(5 / 9)


def test_npz_holds_homodynes_maps(finding, tmp_path):
    path = tmp_path / "fitted_data.npz"
    write_npz(path, finding.fitted, finding.angles, "basic")
    found = finding.fitted
    with np.load(path, allow_pickle=False) as data:
        shape = (2, 61, 61)
        stacks = [name for name in data if data[name].shape == shape]
        assert sorted(stacks) == [
            "c2_exp", "c2_solver_scaled", "c2_theoretical_raw", "c2_theoretical_scaled", "residuals", "residuals_normalized",
        ]  # fmt: skip
        assert 0 <= path.stat().st_size - npz_bytes(found) < 10_000
        np.testing.assert_array_equal(data["c2_exp"][1], corrected(found.dataset.matrix(1)))
        line = data["per_angle_scaling"][:, :, None, None]
        np.testing.assert_allclose(data["c2_theoretical_scaled"], line[:, 0] * data["c2_theoretical_raw"] + line[:, 1])
        solver = data["per_angle_scaling_solver"][:, :, None, None]
        fit = solver[:, 0] * (data["c2_theoretical_raw"] - 1) + solver[:, 1]
        np.testing.assert_allclose(data["c2_solver_scaled"], fit)
        np.testing.assert_allclose(data["residuals"], data["c2_exp"] - data["c2_theoretical_scaled"], atol=1e-15)
        np.testing.assert_allclose(data["residuals_normalized"], data["residuals"] / NOISE)
        np.testing.assert_array_equal(data["t1"], found.dataset.times)
        assert data["q"].tolist() == [0.0054]
        # Against an independent evaluation: the noise, and nothing but the noise, is left.
        off = ~np.eye(61, dtype=bool)
        assert data["residuals_normalized"][:, off].std() == pytest.approx(1.06, abs=0.05)


def test_fit_file_holds_all_that_the_report_draws(finding):
    arrays, attributes = outputs.fit_arrays(finding)
    json.dumps(attributes, allow_nan=False)
    assert attributes["history_columns"] == list(HISTORY)
    assert attributes["at_bounds"] == ["phi0"]
    assert arrays["maps/residual"].shape == (2, 61, 61)
    np.testing.assert_allclose(np.diagonal(arrays["correlation"]), 1)
