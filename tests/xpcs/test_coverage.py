"""Whether errors mean what they say: seeded cases, each with its own truth and noise."""

import numpy as np
import pytest
from xpcs.problems import GAP, PHI, SCALING, Q, noisy, times_of

from tessera.xpcs.fit import fit

CASES = 200


NARROW = GAP / 5
"""Å: half a radian per step, as of well-sampled data."""


def case(model, seed):
    rng = np.random.default_rng([seed, 7])
    truth = np.array([1500 * rng.uniform(0.7, 1.4), -0.4 * rng.uniform(0.7, 1.3), 200 * rng.uniform(0.5, 2)])
    if model == "laminar_flow":
        shear = [3e-3 * rng.uniform(0.7, 1.4), 0.2 * rng.uniform(0.7, 1.3), 5e-4, rng.uniform(-5, 5)]
        truth = np.concatenate([truth, shear])
    return truth


def pulls(model, seed, n_t=48, sigma=1e-3):
    truth = case(model, seed)
    phi = PHI[1::3] if model == "laminar_flow" else PHI[:1]
    c2 = noisy(truth, n_t, phi, sigma=sigma, seed=seed, gap=NARROW)
    result = fit(c2, phi, q=Q, gap=NARROW, times=times_of(n_t), model=model, p0=0.9 * truth, scaling="shared")
    assert result.success, (seed, result.message)
    return (result.x - [*truth, *SCALING]) / result.errors


@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
def test_errors_cover_the_truth(model):
    """Linearised errors hold at this noise; the cases are independent, pulls within one are correlated."""
    z = np.abs([pulls(model, seed) for seed in range(CASES)])
    assert (z < 1).mean() == pytest.approx(0.68, abs=0.05)
    assert (z < 3).mean() >= 0.99
    assert np.sqrt((z**2).mean()) == pytest.approx(1.0, abs=0.1)
