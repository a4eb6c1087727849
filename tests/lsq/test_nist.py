"""NIST's certified nonlinear regressions, from both starts."""

from __future__ import annotations

import numpy as np
import pytest
from lsq import nist

from tessera.lsq.fit_model import fit
from tessera.lsq.options import HybridStreamingConfig

CONFIG = HybridStreamingConfig(
    max_warmup_iterations=0, warmup_iterations=0, gauss_newton_max_iterations=1000, gauss_newton_tol=1e-12
)


@pytest.mark.shared
@pytest.mark.parametrize("name", nist.MODELS)
def test_certified_values_are_found_from_both_starts(shared, name):
    problem = nist.load(shared / "data" / "nist_strd", name)
    for start in problem.starts:
        result = fit(problem.model, (problem.x, problem.y), start, config=CONFIG)
        assert result.success, result.message
        assert nist.digits(result.x, problem.certified) >= 9
        if name != "Lanczos1":  # its residuals are the rounding of the data to 14 digits
            assert nist.digits(result.errors, problem.deviations) >= 6
            assert result.chi2 == pytest.approx(problem.squares, rel=1e-9)


def test_digits_are_counted_right():
    assert nist.digits(np.array([1.0, 2.0002]), np.array([1.0, 2.0])) == pytest.approx(4.0)
