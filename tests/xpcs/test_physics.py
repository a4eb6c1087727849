import numpy as np
import pytest
from scipy.integrate import quad
from xpcs.problems import FLOW, GAP, PHI, Q, direct_model, times_of

from tessera.xpcs.errors import ParameterError
from tessera.xpcs.physics import cumulative, g1_squared, parameters_of, power_law, safe_times


def test_the_direct_form_is_homodynes_formula_written_again():
    n_t = 40
    i, j = np.triu_indices(n_t, 1)
    for angle in PHI:
        found = g1_squared(FLOW, times_of(n_t), q=Q, gap=GAP, phi=float(angle))
        np.testing.assert_allclose(found[i, j], direct_model(FLOW, n_t, angle), rtol=1e-11, atol=1e-14)
        np.testing.assert_array_equal(found, found.T)


def test_a_fine_grid_approaches_the_integral():
    """exp(-q² ∫D) sinc⁴(qL/2π cos ∫γ̇), the integrals by adaptive quadrature."""
    n_t = 2001
    times = times_of(n_t) + 1.0
    first, last = 200, 1400
    decay = quad(lambda t: FLOW[0] * t ** FLOW[1] + FLOW[2], times[first], times[last])[0]
    strain = quad(lambda t: FLOW[3] * t ** FLOW[4] + FLOW[5], times[first], times[last])[0]
    phase = Q * GAP / (2 * np.pi) * strain * np.cos(np.deg2rad(FLOW[6] - 75.0))
    expected = np.exp(-(Q**2) * decay) * np.sinc(phase / np.pi) ** 4
    found = g1_squared(FLOW, times, q=Q, gap=GAP, phi=75.0, rows=slice(first, first + 1))[0, last]
    assert found == pytest.approx(expected, rel=1e-4)


def test_time_zero_is_half_a_step_and_rates_are_cut_off():
    times = np.arange(5) * 0.1
    np.testing.assert_array_equal(safe_times(times), [0.05, 0.1, 0.2, times[3], 0.4])
    rates = power_law(safe_times(times), 1.0, -1.0, -6.0)
    assert rates[0] == 14.0
    assert (rates[2:] == 1e-10).all()
    np.testing.assert_allclose(cumulative(np.array([1.0, 3.0, 5.0])), [0.0, 2.0, 6.0])


def test_models_have_homodynes_parameters():
    assert [p.name for p in parameters_of("static_isotropic")] == ["D0", "alpha", "D_offset"]
    assert [p.name for p in parameters_of("laminar_flow")][3:] == ["gamma_dot_t0", "beta", "gamma_dot_t_offset", "phi0"]
    with pytest.raises(ParameterError, match="no model 'flow'; choose one of"):
        parameters_of("flow")
    with pytest.raises(ParameterError, match="needs the gap"):
        g1_squared(FLOW, times_of(4), q=Q)
