"""Agreement of trials against scipy and a textbook analysis of variance."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tessera.mcdropout.reliability import auroc, go_no_go, reliability, spearman, spearman_matrix


def trials(k: int, n: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.lognormal(size=n) + noise * rng.normal(size=(k, n))


def textbook(values: np.ndarray) -> dict[str, float]:
    """Shrout & Fleiss' one-way ANOVA written out with loops, and scipy's Spearman for every pair."""
    k, n = values.shape
    grand = sum(values[t, i] for t in range(k) for i in range(n)) / (k * n)
    means = [sum(values[:, i]) / k for i in range(n)]
    between = sum(k * (m - grand) ** 2 for m in means) / (n - 1)
    within = sum((values[t, i] - means[i]) ** 2 for t in range(k) for i in range(n)) / (n * (k - 1))
    rho = [stats.spearmanr(values[a], values[b]).statistic for a, b in itertools.combinations(range(k), 2)]
    q25, median, q75 = np.percentile(rho, [25, 50, 75])
    return {
        "signal": between / k,
        "noise": within,
        "snr": between / k / within,
        "icc": (between - within) / (between + (k - 1) * within),
        "pairwise_spearman_median": median,
        "pairwise_spearman_iqr": q75 - q25,
        "pairwise_spearman_q25": q25,
        "pairwise_spearman_q75": q75,
    }


@pytest.mark.parametrize(("k", "n", "noise"), [(2, 5, 0.1), (10, 500, 0.3), (3, 40, 3.0), (5, 30, 100.0)])
def test_equal_to_an_independent_implementation(k, n, noise):
    values = trials(k, n, noise)
    found = reliability(values)
    for name, expected in textbook(values).items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-12, abs=1e-13), name
    assert (found.num_trials, found.num_images) == (k, n)


def test_tiny_traces_next_to_each_other_keep_their_digits():
    values = 7.3e-5 * (1 + 1e-4 * trials(6, 200, 0.4))
    for name, expected in textbook(values).items():
        assert getattr(reliability(values), name) == pytest.approx(expected, rel=1e-9), name


def test_ties_are_shared_ranks_and_a_constant_trial_correlates_with_nothing():
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 4, size=(3, 60)).astype(float)
    for a, b in itertools.combinations(range(3), 2):
        assert spearman_matrix(rows)[a, b] == pytest.approx(stats.spearmanr(rows[a], rows[b]).statistic, abs=1e-12)
    rows[1] = 2.0
    assert spearman_matrix(rows)[0, 1] == 0
    assert spearman(rows[0], rows[1]) == 0
    assert reliability(rows).pairwise_spearman_median == 0


def test_published_pairs_of_snr_and_icc():
    """SNR and ICC of the original's tables at K = 10 belong together by ICC = (K SNR - 1) / (K SNR + K - 1)."""
    for snr, icc in ((15.029, 0.937), (26.493, 0.963), (1.014, 0.477)):
        assert (10 * snr - 1) / (10 * snr + 9) == pytest.approx(icc, abs=1e-3)
    found = reliability(trials(10, 300, 0.2))
    assert found.icc == pytest.approx((10 * found.snr - 1) / (10 * found.snr + 9), abs=1e-12)


@pytest.mark.parametrize(("noise", "status"), [(0.1, "usable"), (0.6, "marginal"), (20.0, "failed")])
def test_verdicts(noise, status):
    assert reliability(trials(10, 400, noise)).status == status


def test_one_trial_is_insufficient_not_an_error():
    found = reliability(trials(1, 20, 0.1))
    assert found.status == "insufficient_trials"
    assert np.isnan(found.icc)
    assert np.isnan(found.pairwise_spearman_median)


def test_trials_without_any_noise():
    found = reliability(np.tile(np.arange(9.0), (3, 1)))
    assert found.snr == float("inf")
    assert found.icc == 1
    assert found.status == "usable"


def test_bad_values_are_named():
    values = trials(3, 10, 0.1)
    values[1, 7] = np.nan
    with pytest.raises(ValueError, match="trial 1, image 7"):
        reliability(values)
    with pytest.raises(ValueError, match="at least two images"):
        reliability(np.ones((3, 1)))


def test_auroc_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(8)
    labels = rng.random(200) < 0.2
    scores = np.round(rng.normal(size=200) + labels, 1)
    u = stats.mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert auroc(scores, labels) == pytest.approx(u / (labels.sum() * (~labels).sum()), abs=1e-12)
    assert np.isnan(auroc(scores, np.zeros(200, bool)))


def test_go_or_no_go():
    assert go_no_go(["failed", "marginal", "usable"]) == "go"
    assert "512" in go_no_go(["failed", "marginal"])
    assert go_no_go(["failed", "failed"]) == "no-go"
    assert go_no_go(["insufficient_trials"]).startswith("insufficient_trials")
