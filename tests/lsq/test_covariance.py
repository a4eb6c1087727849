"""Covariances against closed forms and against the scatter of simulated fits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tessera.lsq import fit
from tessera.lsq.covariance import covariance
from tessera.lsq.quadratic import Quadratic

X = np.linspace(0, 1, 120)


def line(x, a, b):
    return a + b * x


def test_a_line_has_the_textbook_covariance():
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.1, 0.3, 120)
    y = 1 + 2 * X + sigma * rng.standard_normal(120)
    design = np.stack([np.ones(120), X], 1) / sigma[:, None]
    expected = np.linalg.inv(design.T @ design)
    absolute = fit(line, (X, y), [0.0, 0.0], sigma=sigma, absolute_sigma=True)
    np.testing.assert_allclose(absolute.covariance, expected, rtol=1e-10)
    relative = fit(line, (X, y), [0.0, 0.0], sigma=sigma)
    np.testing.assert_allclose(relative.covariance, expected * absolute.reduced, rtol=1e-10)
    np.testing.assert_allclose(np.diagonal(relative.correlation), 1.0)


def test_the_sandwich_holds_where_errors_grow_along_the_line():
    """With noise that the fit is not told of, only the sandwich agrees with the scatter of the slopes."""
    rng = np.random.default_rng(2)
    plain, sandwich, slopes = [], [], []
    design = np.stack([np.ones(120), X], 1)
    for _ in range(400):
        y = 1 + 2 * X + 0.5 * X**2 * rng.standard_normal(120)
        r = y - design @ (found := np.linalg.lstsq(design, y, rcond=None)[0])
        scores = (design * r[:, None]).T @ (design * r[:, None])
        q = Quadratic(found, 0.5 * r @ r, design.T @ r, design.T @ design, 120)
        plain.append(covariance(q)[1, 1])
        with_scores = Quadratic(found, 0.5 * r @ r, design.T @ r, design.T @ design, 120, scores=scores)
        sandwich.append(covariance(with_scores)[1, 1])
        slopes.append(found[1])
    truth = np.std(slopes)
    assert np.sqrt(np.mean(sandwich)) == pytest.approx(truth, rel=0.08)
    assert np.sqrt(np.mean(plain)) < 0.85 * truth


def test_the_sandwich_of_a_fit_is_hs_inverse():
    rng = np.random.default_rng(3)
    y = 2.0 * np.exp(-X) + 0.1 * X * rng.standard_normal(120)
    result = fit(lambda x, a, b: a * jnp.exp(-b * x), (X, y), [1.0, 0.5], sandwich=True)
    a, b = result.x
    j = np.stack([np.exp(-b * X), -a * X * np.exp(-b * X)], 1)
    r = a * np.exp(-b * X) - y
    inverse = np.linalg.inv(j.T @ j)
    np.testing.assert_allclose(result.covariance, inverse @ ((j * r[:, None] ** 2).T @ j) @ inverse, rtol=1e-8)


def test_an_ill_conditioned_jacobian_is_not_squared():
    """The factor of J gives errors to 1e-6 where JᵀJ has lost them all."""
    j = np.stack([np.ones(50), 1 + 1e-7 * np.linspace(-1, 1, 50)], 1)
    r = np.linspace(-1, 1, 50) ** 2 - 0.3
    root = np.linalg.qr(np.column_stack([j, r]), mode="r")
    q = Quadratic(np.zeros(2), 0.5 * r @ r, j.T @ r, j.T @ j, 50, root=root)
    slope = 1 / np.sum((j[:, 1] - j[:, 1].mean()) ** 2)
    assert covariance(q, absolute=True)[1, 1] == pytest.approx(slope, rel=1e-6)
