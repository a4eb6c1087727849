"""Quality figures agree with plain numpy on the whole matrix; data that cannot be fitted are refused with the frames."""

import numpy as np
import pytest

from tessera.xpcs.dataset import ArrayC2, Dataset
from tessera.xpcs.errors import DataQualityError
from tessera.xpcs.quality import assess_angle, judge, table

N = 200
NOISE = 0.02


def made(change=lambda c2: None, offset=1.0, contrast=0.3, decay=20.0) -> Dataset:
    lag = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    noise = np.random.default_rng(3).normal(0, NOISE, (N, N))
    c2 = offset + contrast * np.exp(-lag / decay) + np.triu(noise) + np.triu(noise, 1).T
    change(c2)
    phi, times = np.array([12.0]), np.arange(1.0, N + 1)
    return Dataset(ArrayC2(c2[None]), phi, times, 0.0054, (11, 210), "array", "made.h5")


def test_figures_are_those_of_the_whole_matrix():
    data = made()
    found = assess_angle(data.rows, 0)
    values = data.matrix(0)[np.triu_indices(N, 1)]
    assert (found.bad, found.least, found.most) == (0, values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.noise == pytest.approx(NOISE, rel=0.06)
    assert found.early == pytest.approx(1.27, abs=0.01)
    assert found.late == pytest.approx(1.0, abs=0.003)
    assert judge(data, [found]) == []
    assert table([found, found])["noise"].shape == (2,)


def test_values_that_are_not_finite_are_located():
    def spoil(c2):
        c2[:, 40] = c2[40, :] = np.nan
        c2[3, 7] = c2[7, 3] = np.inf

    data = made(spoil)
    found = assess_angle(data.rows, 0)
    assert found.bad == N - 1 + 1
    with pytest.raises(
        DataQualityError, match=r"angle 12 deg holds 200 values .* in frames .*51.*leave these frames out"
    ):
        judge(data, [found])


def test_a_constant_is_refused_and_oddities_are_said():
    flat = made(lambda c2: c2.fill(1.0))
    with pytest.raises(DataQualityError, match="holds 1 and nothing else"):
        judge(flat, [assess_angle(flat.rows, 0)])
    shifted = made(offset=0.0)
    warnings = judge(shifted, [assess_angle(shifted.rows, 0)])
    assert any("is it g2 - 1" in w for w in warnings)
    assert any("not negative" in w for w in warnings)
    still = made(contrast=0.0)
    assert "does not decay" in judge(still, [assess_angle(still.rows, 0)])[0]
