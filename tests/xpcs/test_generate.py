"""Made data are the truth plus noise of the stated size, symmetric, and the same for the same seed."""

import numpy as np
import pytest

from tessera.xpcs.errors import ParameterError
from tessera.xpcs.generate import Truth

FLOW = {
    "D0": 1500.0,
    "alpha": -0.4,
    "D_offset": 200.0,
    "gamma_dot_t0": 3e-4,
    "beta": 0.2,
    "gamma_dot_t_offset": 5e-5,
    "phi0": 4.0,
}
TRUTH = Truth(
    "laminar_flow", FLOW, np.array([-30.0, 0.0, 60.0]), 120, 0.1, 0.0054, 2e6, contrast=[0.2, 0.3, 0.4], offset=1.01
)


def test_exact_values_are_those_of_an_independent_implementation(shared, monkeypatch):
    monkeypatch.syspath_prepend(shared / "scenes")
    problems = pytest.importorskip("xpcs_problems")
    i, j = np.meshgrid(np.arange(120), np.arange(120), indexing="ij")
    off = i != j
    for angle, contrast in enumerate([0.2, 0.3, 0.4]):
        # Its angles are fixed, so the flow is turned instead.
        x = np.stack([np.zeros(off.sum()), i[off], j[off]], axis=1)
        physical = [*FLOW.values()]
        physical[6] += problems.PHI[0] - TRUTH.phi[angle]
        wanted = problems.np_model("flow", x, [*physical, contrast, 1.01], TRUTH.times)
        np.testing.assert_allclose(TRUTH.exact(angle)[off], wanted, rtol=1e-9)


def test_noise_has_the_stated_size_and_is_mirrored():
    c2 = TRUTH.stack(noise=0.02, seed=7, photons=0.1)
    np.testing.assert_array_equal(c2, c2.transpose(0, 2, 1))
    upper = np.triu_indices(TRUTH.n_t, 1)
    for angle, matrix in enumerate(c2):
        exact = TRUTH.exact(angle)
        pull = (matrix - exact)[upper] / (0.02 * np.sqrt(exact[upper]))
        assert abs(pull.mean()) < 4 / np.sqrt(pull.size)
        assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * pull.size))
        assert np.diagonal(matrix - exact).mean() == pytest.approx(10, abs=0.02)


def test_an_angle_does_not_depend_on_the_others():
    lone = Truth("laminar_flow", FLOW, TRUTH.phi[:1], 120, 0.1, 0.0054, 2e6, contrast=0.2, offset=1.01)
    np.testing.assert_array_equal(lone.stack(0.02, 7)[0], TRUTH.stack(0.02, 7)[0])
    assert not np.array_equal(lone.stack(0.02, 8)[0], TRUTH.stack(0.02, 7)[0])


def test_the_truth_must_be_complete():
    with pytest.raises(ParameterError, match="needs values for D0, alpha, D_offset, not D0"):
        Truth("static_isotropic", {"D0": 1.0}, np.zeros(1), 10, 0.1, 0.0054)
