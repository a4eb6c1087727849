"""Every preset finds the minimum of the XPCS problems on which the original's stop early and report success."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from tessera.lsq.fit_model import fit
from tessera.lsq.options import PRESETS, HybridStreamingConfig

pytestmark = pytest.mark.shared


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
    """Return the problem with about 1e5 points, x with one row per variable: the one the original was tried on."""
    rng = np.random.default_rng(7)
    nt = problems.NT[case, 5]
    i, j = np.nonzero(~np.eye(nt, dtype=bool))
    angles = range(problems.NPHI if case == "flow" else 1)
    x = np.concatenate([np.stack([np.full(i.size, angle), i, j], axis=1) for angle in angles])
    y = problems.np_model(case, x, problems.spec(case)[0], problems.tgrid(nt))
    return np.ascontiguousarray(x.T.astype(float)), y + rng.normal(0, problems.SIG[case], len(x))


def pointwise(problems, case):
    inner = problems.jax_model(case, problems.tgrid(problems.NT[case, 5]))

    def model(x, *p):
        return inner(x.T, *p)

    return model


def distance(found, best):
    return np.max(np.abs(found.x - best.x) / best.errors)


def test_the_reference_is_a_minimum(problem):
    _, _, best = problem
    assert best.success
    assert best.reduced == pytest.approx(0.02**2, rel=0.05)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_converge(problem, preset):
    run, start, best = problem
    found = run(start, preset)
    assert found.success
    assert distance(found, best) < 1e-3
    assert found.cost <= best.cost * (1 + 1e-9)
    assert found.evaluations < 100 or preset == "multistart"  # those over a sample of the data included


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
