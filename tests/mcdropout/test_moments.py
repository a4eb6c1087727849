from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.mcdropout.moments import Moments, effective_rank, trace_spread

N, D = 5, 40


def features(passes: int, seed: int = 0, *, ratio: float = 50) -> torch.Tensor:
    """Features (T, N, D) float32 of unit variance whose squared mean is `ratio` times it."""
    generator = torch.Generator().manual_seed(seed)
    mean = ratio**0.5 * (1 + 0.1 * torch.rand(N, D, generator=generator))
    return mean + torch.randn(passes, N, D, generator=generator)


def summed(x: torch.Tensor, reference: torch.Tensor, **how) -> Moments:
    moments = Moments.empty(reference, **how)
    for one in x:
        moments.add(np.arange(N), one)
    return moments


def expected_trace(x: torch.Tensor, *, unbiased: bool = False, post: bool = False) -> np.ndarray:
    values = x.double().numpy()
    if post:
        values = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return values.var(0, ddof=int(unbiased)).mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_traces_stay_exact_where_the_mean_dwarfs_the_variance(dtype):
    """mean^2 / variance = 5e4: shifted float32 sums lose nothing, plain ones lose three digits and more."""
    *passes, reference = features(65, ratio=5e4)
    x, reference = torch.stack(passes), reference.to(dtype)
    truth = expected_trace(x)
    shifted = summed(x, reference).trace()
    assert np.abs(shifted / truth - 1).max() < 1e-6
    if dtype == torch.float32:
        assert np.abs(summed(x, reference, shifted=False).trace() / truth - 1).max() > 1e-4


@pytest.mark.parametrize("unbiased", [False, True])
def test_traces_before_and_after_normalisation(unbiased):
    x = features(16)
    moments = summed(x, x[0].double())
    assert np.allclose(moments.trace(unbiased=unbiased), expected_trace(x, unbiased=unbiased), rtol=1e-12)
    truth = expected_trace(x, unbiased=unbiased, post=True)
    assert np.allclose(moments.trace("post", unbiased=unbiased), truth, rtol=1e-9)
    assert np.allclose(moments.mean(), x.double().mean(0), rtol=1e-14)
    assert np.allclose(moments.variance(unbiased=unbiased), x.double().var(0, correction=int(unbiased)), rtol=1e-11)


def test_blocks_of_passes_merge_in_any_cut_and_with_any_reference():
    x = features(12)
    whole = summed(x, x[0].double())
    for cuts in ([4], [1, 5], [3, 6, 9]):
        parts = [summed(part, x[i].double()) for i, part in enumerate(np.split(x, cuts))]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        assert torch.equal(merged.passes, whole.passes)
        assert np.allclose(merged.trace(), whole.trace(), rtol=1e-12)
        assert np.allclose(merged.trace("post"), whole.trace("post"), rtol=1e-10)


def test_images_of_a_pass_may_come_in_pieces():
    x = features(6)
    whole, pieces = summed(x, x[0].double()), Moments.empty(x[0].double())
    for one in x:
        pieces.add(np.array([0, 1]), one[:2])
        pieces.add(np.array([2, 4]), one[[2, 4]])
        pieces.add(np.array([3]), one[3:4])
    assert torch.equal(pieces.pre.second, whole.pre.second)
    assert torch.equal(pieces.post.first, whole.post.first)


def test_a_snapshot_does_not_change():
    x = features(8)
    moments = summed(x[:4], x[0].double())
    kept = moments.cpu()
    moments.add(np.arange(N), x[5])
    assert np.array_equal(kept.trace(), summed(x[:4], x[0].double()).trace())


def test_moments_survive_a_checkpoint():
    moments = summed(features(4), features(1, seed=3)[0])
    again = Moments.from_arrays(moments.arrays())
    assert again.pre.second.dtype == torch.float32
    assert np.array_equal(again.trace("post"), moments.trace("post"))
    assert torch.equal(again.merge(moments).passes, 2 * moments.passes)


def test_one_pass_has_no_unbiased_variance():
    moments = summed(features(1), features(1)[0].double())
    assert np.isnan(moments.trace(unbiased=True)).all()
    assert np.allclose(moments.trace(), 0)


def test_the_effective_rank_is_found_from_fewer_passes_than_its_size():
    """Equal eigenvalues in k of D dimensions have effective rank k."""
    generator = torch.Generator().manual_seed(1)
    for rank in (1, 6, 30):
        x = torch.zeros(16, 200, D)
        x[:, :, :rank] = torch.randn(16, 200, rank, generator=generator)
        found = effective_rank(x)
        assert abs(1 / (1 / found).mean() / rank - 1) < 0.15
        assert ((found >= 1) & (found <= D)).all()


def test_the_spread_of_traces_is_as_predicted():
    x = torch.randn(16, 4000, 10, generator=torch.Generator().manual_seed(2))
    traces = x.var(0).mean(1)
    predicted = trace_spread(torch.tensor(10.0), 16)
    assert abs(traces.std() / traces.mean() / predicted - 1) < 0.05
