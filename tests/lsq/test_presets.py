"""Every preset finds the minimum of the XPCS problems on which the original's stop early and report success."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from tessera.lsq.fit_model import fit
from tessera.lsq.options import PRESETS, HybridStreamingConfig

pytestmark = pytest.mark.shared

POINTS = 5_000
SIGMA = 0.005
"""A quarter of the scene's, so that so few points tell the parameters of the flow apart."""


@pytest.fixture(scope="module", params=["static", "flow"])
def problem(request, shared):
    """A model, data, start, bounds, and the minimum as found from the truth with the tightest tolerance."""
    sys.path.insert(0, str(shared / "scenes"))
    problems = importlib.import_module("xpcs_problems")
    sys.path.pop(0)
    x, y = made(problems, request.param)
    truth, start, lower, upper = problems.spec(request.param)
    model = pointwise(problems, request.param)
    names = problems.NAMES[request.param]

    def run(p0, config):
        return fit(model, (x, y), p0, bounds=(lower, upper), names=names, config=config, threads=1)

    best = run(truth, HybridStreamingConfig(max_warmup_iterations=0, warmup_iterations=0, gauss_newton_tol=1e-11))
    return run, start, best


def made(problems, case):
    """Return a part of the problem's points, x with one row per variable."""
    rng = np.random.default_rng(7)
    nt = 101
    t = problems.tgrid(nt)
    i, j = rng.integers(0, nt, (2, 4 * POINTS))
    keep = np.flatnonzero(i != j)[:POINTS]
    angle = rng.integers(0, problems.NPHI, POINTS)
    x = np.stack([angle, i[keep], j[keep]], axis=1)
    y = problems.np_model(case, x, problems.spec(case)[0], t)
    return np.ascontiguousarray(x.T.astype(float)), y + rng.normal(0, SIGMA, POINTS)


def pointwise(problems, case):
    inner = problems.jax_model(case, problems.tgrid(101))

    def model(x, *p):
        return inner(x.T, *p)

    return model


def distance(found, best):
    return np.max(np.abs(found.x - best.x) / best.errors)


def test_the_reference_is_a_minimum(problem):
    _, _, best = problem
    assert best.success
    assert best.reduced == pytest.approx(SIGMA**2, rel=0.1)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_converge(problem, preset):
    run, start, best = problem
    found = run(start, preset)
    assert found.success
    assert distance(found, best) < 1e-3
    assert found.cost <= best.cost * (1 + 1e-9)
    assert found.evaluations < 40 or preset == "multistart"


@pytest.mark.parametrize(
    ("preset", "optimizer"),
    [("scientific_default", "lbfgs"), ("scientific_default", "adam"), ("defense_disabled", "lbfgs")],
)
def test_a_warm_up_on_the_way_does_no_harm(problem, preset, optimizer):
    """The original with its recommended warm-up ends 22 and 1800 standard errors off and says success."""
    run, start, best = problem
    config = HybridStreamingConfig.preset(preset, enable_warm_start_detection=False, warmup_optimizer=optimizer)
    found = run(start, config)
    assert found.telemetry["warmup"]["passes"] > 0
    assert found.evaluations < 60
    assert found.success
    assert distance(found, best) < 1e-3
