"""Geometry of the passes against full covariance matrices, and ambiguity against a plain softmax."""

import json

import numpy as np
import pytest

from tessera.mcdropout.ambiguity import Ambiguity, class_names, compare, measure, tails
from tessera.mcdropout.metrics import geometry, weighted_traces


@pytest.fixture(scope="module")
def passes() -> np.ndarray:
    """Twelve passes of five images in 30 dimensions, correlated."""
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(30, 30)) * np.geomspace(1, 0.02, 30)
    return rng.normal(size=(5, 30)) * 3 + 0.1 * rng.normal(size=(12, 5, 30)) @ mix


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_spectrum_and_off_diagonal_mass_are_those_of_the_covariance(passes, kind):
    data = passes if kind == "pre" else unit(passes)
    found = geometry(passes)
    for i in range(5):
        covariance = np.cov(data[:, i].T)
        values = np.sort(np.linalg.eigvalsh(covariance))[::-1]
        np.testing.assert_allclose(found[f"eigs_{kind}"][i], values[:10], rtol=1e-9)
        off = covariance - np.diag(np.diag(covariance))
        ratio = np.linalg.norm(off) / np.linalg.norm(covariance)
        assert found[f"offdiag_{kind}"][i] == pytest.approx(ratio, rel=1e-9)
        assert found[f"trace_{kind}_unbiased"][i] == pytest.approx(np.trace(covariance) / 30, rel=1e-12)
        if kind == "pre":
            positive = values[values > 1e-12]
            assert found["top_eigenvalue"][i] == pytest.approx(values[0], rel=1e-9)
            assert found["effective_rank"][i] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
            assert found["anisotropy"][i] == pytest.approx(values[0] / values.sum(), rel=1e-9)
            share = positive / positive.sum()
            assert found["spectral_entropy"][i] == pytest.approx(-(share * np.log(share)).sum(), rel=1e-6)
            assert found["max_dim_var"][i] == pytest.approx(np.diag(covariance).max(), rel=1e-12)


def test_directions(passes):
    found = geometry(passes)
    data = unit(passes)
    for i in range(5):
        middle = unit(data[:, i].mean(axis=0))
        cosines = data[:, i] @ middle
        assert found["mean_cosine_dev"][i] == pytest.approx(1 - cosines.mean(), rel=1e-9)
        angles = np.arccos(np.clip(cosines, -1 + 1e-6, 1 - 1e-6))
        assert found["angular_var"][i] == pytest.approx(angles.var(ddof=1), rel=1e-9)
        assert found["norm_var"][i] == pytest.approx(np.linalg.norm(passes[:, i], axis=1).var(ddof=1), rel=1e-9)


def test_fewer_passes_than_eigenvalues_and_passes_that_do_not_differ(passes):
    few = geometry(passes[:3])
    assert np.all(few["eigs_pre"][:, 2:] < 1e-12)
    still = geometry(np.repeat(passes[:1], 4, axis=0))
    for name in ("top_eigenvalue", "effective_rank", "spectral_entropy", "anisotropy", "angular_var", "offdiag_pre"):
        np.testing.assert_allclose(still[name], 0, atol=1e-12, err_msg=name)


def test_one_pass_has_no_covariance(passes):
    with pytest.raises(ValueError, match="two passes"):
        geometry(passes[:1])


def test_images_do_not_see_each_other(passes):
    whole, part = geometry(passes), geometry(passes[:, 2:4])
    for name, values in part.items():
        np.testing.assert_allclose(values, whole[name][2:4], rtol=1e-10, atol=1e-14, err_msg=name)


def test_weighted_trace_follows_the_dimensions_that_differ_between_images():
    mean = np.zeros((4, 100))
    mean[:, 3] = [0, 2, 4, 6]
    mean[:, 5] = [0, 1, 2, 3]
    variance = np.arange(400.0).reshape(4, 100)
    found = weighted_traces(mean, variance)
    np.testing.assert_allclose(found["weighted_trace_pre"], 0.8 * variance[:, 3] + 0.2 * variance[:, 5])
    best = [3, 5, *[d for d in range(100) if d not in (3, 5)][:62]]
    np.testing.assert_allclose(found["topk64_trace_pre"], variance[:, best].mean(axis=1))
    flat = weighted_traces(np.ones((4, 100)), variance)
    np.testing.assert_allclose(flat["weighted_trace_pre"], variance.mean(axis=1))


def test_ambiguity_against_a_plain_softmax():
    rng = np.random.default_rng(1)
    images, texts = rng.normal(size=(40, 16)), rng.normal(size=(3, 7, 16))
    found = measure(images, texts, 20.0, -3.0)
    for i in range(40):
        logits = [[20 * unit(images[i]) @ unit(text) - 3 for text in template] for template in texts]
        probabilities = [np.exp(row) / np.exp(row).sum() for row in np.array(logits)]
        first = sorted(logits[0])
        assert found.margin[i] == pytest.approx(first[-1] - first[-2], rel=1e-9)
        assert found.entropy[i] == pytest.approx(-sum(p * np.log(p) for p in probabilities[0]), rel=1e-9)
        assert found.prompt_sensitivity[i] == pytest.approx(np.var([p.max() for p in probabilities], ddof=1), rel=1e-9)
    one = measure(images, texts[:1], 20.0, 0.0)
    assert not one.prompt_sensitivity.any()
    with pytest.raises(ValueError, match="two classes"):
        measure(images, texts[:, :1], 1.0, 0.0)


def test_an_uncertainty_that_is_the_entropy_finds_all_its_tail():
    rng = np.random.default_rng(3)
    found = Ambiguity(rng.random(100), rng.random(100), rng.random(100))
    chosen = tails(found, 0.1)
    assert chosen.low_margin.sum() == chosen.high_entropy.sum() == 10
    result = compare(found.entropy, found, chosen)
    assert result["auroc_high_entropy"] == 1
    assert result["rho_uncertainty_vs_entropy"] == pytest.approx(1)
    assert abs(result["auroc_low_margin"] - 0.5) < 0.25


def test_class_names_from_folders_and_maps(tmp_path):
    tsv, table = tmp_path / "map.tsv", tmp_path / "map.json"
    tsv.write_text("# folder\tname\nn01\ttench\n")
    table.write_text(json.dumps({"n01": "tench"}))
    for path in (tsv, table):
        assert class_names(["n01", "great_white"], path) == ["tench", "great white"]
    assert class_names(["n01"], None) == ["n01"]
    table.write_text("{")
    with pytest.raises(ValueError, match=r"map\.json"):
        class_names(["n01"], table)
