from __future__ import annotations

import numpy as np
import pytest
import torch
from mcdropout.small_towers import clip

from tessera.mcdropout.errors import SiteError
from tessera.mcdropout.masks import DeviceKeys, Pairs, dropped_elements
from tessera.mcdropout.perturb import DenseDraws, SparseDraws, TorchDraws, Watch, drop, first_token_exact
from tessera.mcdropout.recipes import Recipe, Schedule, Strength, resolve

SITES = {site.id: site for site in clip().sites()}
FC2 = SITES["blocks.01.mlp.fc2"]
B, (TOKENS, WIDTH) = 6, FC2.shape


def schedule(action="dropout", size=0.2, site=FC2) -> Schedule:
    return Schedule(tuple(SITES.values()), {site.id: Strength(action, size)})


def pairs(images=range(B)) -> Pairs:
    images = np.array(images, np.int64)
    return Pairs(1, 2, np.full(len(images), 4), images)


def sparse(plan: Schedule, keys: Pairs) -> SparseDraws:
    return SparseDraws(plan, keys)


def dense(plan: Schedule, keys: Pairs) -> DenseDraws:
    return DenseDraws(plan, DeviceKeys.of(keys, torch.device("cpu")))


FORMS = pytest.mark.parametrize("form", [sparse, dense])


def activations(seed: int = 0, shape=(B, TOKENS, WIDTH)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@FORMS
def test_dropout_keeps_the_mean_and_touches_only_its_sites(form):
    x = activations()
    assert torch.equal(form(schedule(), pairs())(SITES["blocks.00.mlp.fc2"], x.clone()), x)
    dropped = form(schedule(), pairs())(FC2, x.clone())
    zero = dropped == 0
    assert abs(zero.float().mean() - 0.2) < 0.02
    assert torch.allclose(dropped[~zero], x[~zero] / 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.cat([x, x, x], -1).chunk(3, -1)[1],  # q, k or v of a packed product
        lambda x: torch.cat([x, x, x], -1)[..., WIDTH : 2 * WIDTH],
        lambda x: torch.cat([x, x], 1)[:, :TOKENS],
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    ],
)
def test_dropping_in_slices_drops_the_same_elements(view):
    x = activations()
    places = torch.from_numpy(dropped_elements(pairs(), FC2.index, TOKENS * WIDTH, 0.2))
    expected = drop(x.clone(), places, 0.2)
    assert torch.equal(drop(view(x), places, 0.2), expected)


def test_dropping_in_an_expanded_tensor_leaves_the_others_alone():
    one = activations(shape=(1, 1, WIDTH))
    many = drop(one.expand(B, 1, WIDTH), torch.tensor([0, WIDTH + 3]), 0.5)
    assert (many == 0).nonzero().tolist() == [[0, 0, 0], [1, 0, 3]]


@FORMS
@pytest.mark.parametrize("action", ["gaussian", "scale"])
def test_noise_has_the_size_asked_for_and_is_the_same_in_any_batch(form, action):
    x = activations() * torch.arange(1, B + 1)[:, None, None]
    found = form(schedule(action, 0.05), pairs())(FC2, x.clone())
    alone = form(schedule(action, 0.05), pairs([3]))(FC2, x[3:4].clone())
    assert torch.allclose(alone[0], found[3], rtol=1e-6)
    noise = (found - x) if action == "gaussian" else (found / x - 1)
    scale = x.flatten(1).std(1) if action == "gaussian" else torch.ones(B)
    assert torch.allclose(noise.flatten(1).std(1) / scale, torch.full((B,), 0.05), rtol=0.1)


@FORMS
def test_a_block_is_skipped_for_an_image_as_a_whole(form):
    first, second = SITES["blocks.02.drop_path.attn"], SITES["blocks.02.drop_path.mlp"]
    plan = resolve(Recipe("stochastic_depth", 0.3), tuple(SITES.values()))
    draws, x = form(plan, pairs(range(400))), torch.ones(400, TOKENS, WIDTH)
    kept = draws(first, x.clone())[:, 0, 0]
    assert torch.equal(kept, draws(second, x.clone())[:, 3, 3])
    assert abs(kept.mean() - 0.7) < 0.1
    assert set(kept.tolist()) == {0.0, 1.0}


def test_the_torch_stream_is_drawn_as_by_torchs_own_dropout():
    packed = torch.cat([activations(seed) for seed in range(3)], -1)
    torch.manual_seed(5)
    found = TorchDraws(schedule())(FC2, packed.chunk(3, -1)[1])
    torch.manual_seed(5)
    assert torch.equal(found, torch.nn.Dropout(0.2)(activations(1)))


def test_the_torch_stream_skips_a_block_for_the_whole_batch_with_one_draw():
    draws = TorchDraws(resolve(Recipe("stochastic_depth", 0.5), tuple(SITES.values())))
    torch.manual_seed(3)
    expected = (torch.rand(40) >= 0.5).float()
    torch.manual_seed(3)
    names = [f"blocks.{i % 4:02d}.drop_path." for i in range(40)]
    found = [
        torch.stack([draws(SITES[name + branch], torch.ones(2, 1, 1)).squeeze() for branch in ("attn", "mlp")])
        for name in names
    ]
    assert torch.equal(torch.stack(found), expected[:, None, None].expand(40, 2, 2))


def test_the_original_noise_scales_with_the_whole_batch():
    x = activations() * torch.arange(1, B + 1)[:, None, None]
    torch.manual_seed(7)
    found = TorchDraws(schedule("gaussian", 0.05))(FC2, x)
    torch.manual_seed(7)
    assert torch.equal(found, x + torch.randn_like(x) * (0.05 * x.std().clamp(min=1e-12)))


def test_a_site_that_never_fires_is_an_error():
    watch = Watch()
    for site in SITES.values():
        if site != FC2:
            watch(site, torch.zeros(1, *site.shape))
    with pytest.raises(SiteError, match=r"never fire: blocks\.01\.mlp\.fc2"):
        watch.check(schedule())
    watch(FC2, torch.zeros(1, TOKENS, WIDTH + 1))
    with pytest.raises(SiteError, match="declares"):
        watch.check(schedule())


def test_the_class_token_alone_is_not_enough_for_noise_that_scales_with_all_tokens():
    last = SITES["blocks.03.mlp.fc2"]
    assert first_token_exact(schedule(site=last), 4)
    assert first_token_exact(schedule("gaussian"), 4)
    assert not first_token_exact(schedule("gaussian", site=last), 4)
    with pytest.raises(SiteError, match="all 17 tokens"):
        sparse(schedule("gaussian", site=last), pairs())(last, torch.zeros(B, 1, WIDTH))
