import os
import subprocess
import sys

import numpy as np
import pytest
from xpcs.problems import FLOW, FLOW_START, GAP, PHI, SCALING, Q, direct_quadratic, noisy, times_of

import tessera.xpcs.objective
from tessera.xpcs import first_fit
from tessera.xpcs.dataset import ArrayC2
from tessera.xpcs.errors import ParameterError, XpcsInputError
from tessera.xpcs.fit import fit
from tessera.xpcs.objective import XpcsObjective


def at_the_minimum(result, c2, phi, tolerance=1e-3):
    """Whether a Gauss-Newton step of the direct form would go less than some standard errors."""
    n = len([name for name in result.names if not name.startswith(("contrast", "offset"))])
    contrast, offset = result.x[n : n + 1], result.x[n + 1 :]
    cost, gradient, hessian = direct_quadratic(c2, phi, result.x[:n], contrast, offset, np.ones((len(phi), 1)))
    step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)) * 2 * cost / result.count)
    assert result.cost == pytest.approx(cost, rel=1e-9)
    assert np.abs(step / errors).max() < tolerance


@pytest.mark.parametrize("start", [FLOW_START, FLOW * np.array([5, 0.5, 0.2, 0.2, 2, 0, -1]), None])
def test_flow_ends_at_the_minimum_of_the_direct_form(start):
    """From the start of the peers' comparison, from rates off by five, and from homodyne's registry (shear off by three)."""
    phi = PHI[1::2]
    c2 = noisy(FLOW, 101, phi)
    result = fit(c2, phi, q=Q, gap=GAP, times=times_of(101), p0=start, scaling="shared")
    assert result.success, result.message
    at_the_minimum(result, c2, phi)
    assert np.abs((result.x - [*FLOW, *SCALING]) / result.errors).max() < 4


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_static_ends_at_the_minimum_also_from_where_prefactor_and_offset_are_one(alpha):
    c2 = noisy(FLOW[:3], 120, PHI[:1])
    result = fit(c2, PHI[0], q=Q, times=times_of(120), model="static_isotropic", p0={"alpha": alpha}, scaling="shared")
    assert result.success, result.message
    at_the_minimum(result, c2, PHI[:1])


def test_full_passes_are_few_where_nodes_stand_for_the_data():
    phi = PHI[::3]
    c2 = noisy(FLOW, 520, phi)
    result = fit(c2, phi, q=Q, gap=GAP, times=times_of(520), p0=FLOW_START)
    assert result.success
    assert result.evaluations <= 3
    assert result.names[-2:] == ("contrast", "offset")
    at_the_minimum(result, c2, phi)


def test_parameters_of_a_slow_flow_may_be_fixed():
    phi = PHI[::3]
    c2 = noisy(FLOW, 60, phi)
    result = fit(
        c2, phi, q=Q, gap=GAP, times=times_of(60), fixed={"alpha": -0.4, "phi0": 4.0, "gamma_dot_t_offset": 5e-4}
    )
    assert result.names == ("D0", "D_offset", "gamma_dot_t0", "beta", "contrast", "offset")
    assert np.abs((result.x - [1500, 200, 3e-3, 0.2, *SCALING]) / result.errors).max() < 4


def test_constant_scaling_is_taken_from_quantiles():
    """The 90th percentile of the shortest fifth of lags over the 10th of the longest, as homodyne has it."""
    c2 = noisy(FLOW[:3] * [1, 1, 20], 200, PHI[:2], sigma=1e-3)
    objective = XpcsObjective(c2, PHI[:2], q=Q, times=times_of(200), model="static_isotropic", scaling="constant")
    assert objective.names == ("D0", "alpha", "D_offset")
    lag = np.abs(np.arange(200) - np.arange(200)[:, None])
    for angle, (contrast, offset) in enumerate(zip(*objective.scaling_at(np.zeros(3)), strict=True)):
        short, long = (np.triu(where, 1) for where in (lag <= 200 * (1 - 0.8**0.5), lag >= 200 * (1 - 0.2**0.5)))
        assert short.sum() == pytest.approx(long.sum(), rel=0.1)
        assert offset == pytest.approx(np.percentile(c2[angle][long > 0], 10))
        assert contrast == pytest.approx(np.percentile(c2[angle][short > 0], 90) - offset)
    assert objective.evaluate(FLOW[:3]).x.shape == (3,)


def test_threads_and_memory_do_not_change_a_bit(monkeypatch):
    phi = PHI[::3]
    c2 = noisy(FLOW, 300, phi)
    x = np.concatenate([FLOW, [0.0, 0.0]])
    options = {"q": Q, "gap": GAP, "times": times_of(300)}
    one = XpcsObjective(c2, phi, **options).evaluate(x)
    reads = []
    read = tessera.xpcs.objective.read_strip
    monkeypatch.setattr(tessera.xpcs.objective, "read_strip", lambda *given: reads.append(given) or read(*given))
    other = XpcsObjective(ArrayC2(c2), phi, threads=3, hold=False, **options)
    for _ in range(2):
        again = other.evaluate(x)
        assert again.cost == one.cost
        np.testing.assert_array_equal(again.gradient, one.gradient)
        np.testing.assert_array_equal(again.hessian, one.hessian)
    assert len(reads) == 2 * 10


def test_float32_data_are_fitted_in_float64():
    phi = PHI[::3]
    c2 = noisy(FLOW, 80, phi).astype(np.float32)
    single = fit(c2, phi, q=Q, gap=GAP, times=times_of(80), p0=FLOW_START)
    double = fit(c2.astype(float), phi, q=Q, gap=GAP, times=times_of(80), p0=FLOW_START)
    np.testing.assert_array_equal(single.x, double.x)


def test_the_first_fit_goes_on_from_what_was_saved_at_any_pass():
    """From a start that is so poor that constant rates are looked at as well."""
    phi = PHI[::3]
    c2 = noisy(FLOW, 80, phi)
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times_of(80), scaling="shared")
    far = np.array([1e5, 2.0, 1e5, 0.5, 2.0, 0.1, -10.0, 0.5, 1.0])
    fits = first_fit.FirstFits(objective.lower, objective.upper)
    straight = saved = fits.begin(objective, [far])
    looked = False
    while not straight.done:
        straight = fits.step(straight, objective)
        saved = fits.step(first_fit.from_arrays(first_fit.to_arrays(saved)), objective)
        looked |= saved.looking
    assert looked
    assert saved.done
    for name, value in first_fit.to_arrays(straight).items():
        np.testing.assert_array_equal(first_fit.to_arrays(saved)[name], value)


def test_importing_and_fitting_needs_neither_jax_nor_scipy():
    code = (
        "import sys, numpy as np; from tessera.xpcs.fit import fit\n"
        "t = np.arange(30.0); c2 = 1 + 0.3 * np.exp(-np.abs(t[:, None] - t) / 9)[None]\n"
        "c2 += 1e-3 * np.cos(7 * t + 7 * t[:, None])\n"
        "print(fit(c2, 0.0, q=0.01, dt=1.0, model='static_isotropic').success)\n"
        "print([m for m in ('jax', 'scipy', 'h5py', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["True", "[]"]


GOOD = {"q": Q, "gap": GAP, "dt": 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c2": np.ones((2, 5, 4))}, r"c2 has shape \(2, 5, 4\)"),
        ({"phi": [0.0]}, r"phi has shape \(1,\) and c2 2 angles"),
        ({"phi": [0.0, np.nan]}, r"phi\[1\] is not finite"),
        ({"q": -1.0}, "q is -1.0; give the wavevector in 1/Å"),
        ({"gap": None}, "gap is None; laminar flow needs"),
        ({"dt": None}, "dt is None; give the time between frames"),
        ({"times": [0.0, 1.0, 2.0, 3.0, 5.0]}, "times are not evenly spaced"),
        ({"sigma": 0.0}, r"sigma is 0.0; standard errors must be above zero"),
        ({"sigma": [0.1, -0.1]}, r"sigma\[1\] is -0.1"),
        ({"sigma": np.ones(3)}, r"sigma has shape \(3,\); give one number"),
        ({"model": "flow"}, "there is no model 'flow'"),
        ({"scaling": "free"}, "there is no scaling 'free'"),
        ({"scaling": "fourier"}, "5 coefficients for contrast .* 2 angles; use 'individual'"),
        ({"p0": [1.0]}, r"p0 has shape \(1,\); give 7 values: D0, alpha"),
        ({"p0": {"D": 1.0}}, "p0 names D; the parameters are D0"),
        ({"p0": {"alpha": 3.0}}, "start value of alpha, 3.0, is outside of its bounds -2.0 … 2.0"),
        ({"bounds": {"alpha": (1.0, -1.0)}}, "lower bound of alpha, 1.0, is not below the upper one, -1.0"),
        ({"fixed": {"contrast": 0.3}}, "fixed names contrast; the physical parameters of the model are D0"),
    ],
)
def test_bad_input_is_named(change, message):
    c2 = 1 + np.random.default_rng(0).random((2, 5, 5))
    given = {"c2": c2, "phi": [0.0, 30.0], **GOOD, **change}
    with pytest.raises((XpcsInputError, ParameterError), match=message):
        fit(given.pop("c2"), np.array(given.pop("phi")), **given)
