"""The towers are those of transformers, OpenCLIP and timm, and every site can be entered and perturbed."""

import pytest
import torch
from mcdropout import made_models
from torch import nn
from torch.nn import functional

from tessera.mcdropout.models import MODELS, load_model
from tessera.mcdropout.sites import wrapped_by_original
from tessera.mcdropout.towers import TowerConfig, VisionTower, initialise, rotary_table

CLIP = TowerConfig(
    "clip", "hf", 48, 3, 4, 80, 8, 40, 20, "quick_gelu", 1e-5, "cls", 0, True, True, False, False, "linear"
)
SIGLIP = TowerConfig(
    "siglip", "timm", 48, 2, 4, 80, 8, 40, 48, "gelu_tanh", 1e-6, "map", 4, False, False, True, False, "none"
)
PE = TowerConfig("pe", "timm", 64, 2, 4, 256, 8, 32, 24, "gelu", 1e-5, "map", 8, True, True, False, True, "biased")


@pytest.fixture(autouse=True)
def one_thread():
    """As the engine runs the towers: the bits of some operations depend on the number of torch's own threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tower_of(config: TowerConfig) -> VisionTower:
    tower = VisionTower(config).eval().requires_grad_(False)
    initialise(tower, 3)
    return tower


def pixels(config: TowerConfig, images: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(images, 3, config.image_size, config.image_size, generator=generator)


def image_features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    features = model.get_image_features(pixel_values=x)
    return features if isinstance(features, torch.Tensor) else features.pooler_output


@pytest.mark.parametrize("made", ["clip", "siglip"])
@pytest.mark.parametrize("vision", [{}, {"image_size": 43, "hidden_act": "gelu", "layer_norm_eps": 1e-3}])
def test_features_are_those_of_transformers(made, vision, tmp_path):
    model = getattr(made_models, made)(**vision)
    folder = made_models.save(model, tmp_path)
    side = vision.get("image_size", made_models.SIDE)
    text = (folder / "preprocessor_config.json").read_text().replace(str(made_models.SIDE), str(side))
    (folder / "preprocessor_config.json").write_text(text)
    tower = load_model(str(folder)).tower
    x = pixels(tower.config)
    with torch.inference_mode():
        ours, theirs = tower(x), image_features(model, x)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert theirs.abs().mean() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()) + 1e-6)


def test_pe_core_is_that_of_timm():
    """Features that timm 1.0.31 gave for these weights and pixels: every fourth of 24."""
    tower = tower_of(PE)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()))
    i = torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)
    x = torch.sin(i * i * 0.01).reshape(2, 3, 32, 32).float()
    timm = torch.tensor(
        [
            [-0.4397808, 0.3391948, -0.5523413, 0.3302810, -0.6294984, -0.3190741],
            [-1.2718091, 0.5682201, 0.1008848, 0.5411646, -0.6752464, -0.6357106],
        ]
    )
    torch.testing.assert_close(tower(x)[:, ::4], timm, rtol=0, atol=2e-6)


def test_rotary_attention_depends_on_distances_alone():
    from tessera.mcdropout.blocks import rotate

    table = rotary_table(PE)
    grid, channels = PE.grid, PE.width // PE.heads
    q, k = torch.randn(2, channels, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(1, 1, PE.tokens, 1)
    scores = (rotate(q * everywhere, table)[0, 0] @ rotate(k * everywhere, table)[0, 0].T)[1:, 1:]
    scores = scores.reshape(grid, grid, grid, grid)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[1, 1, 2, 3])
    torch.testing.assert_close(scores[2, 1, 0, 0], scores[3, 3, 1, 2])
    assert not torch.allclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])
    torch.testing.assert_close(rotate(q * everywhere, table)[0, 0, 0], q)


@pytest.mark.parametrize("config", [CLIP, SIGLIP, PE], ids=lambda c: c.family)
def test_every_site_fires_once_in_order_with_its_shape(config):
    tower, fired = tower_of(config), []
    tower(pixels(config, 2), lambda site, x: (fired.append((site, tuple(x.shape))), x)[1])
    assert [site for site, _ in fired] == list(tower.sites())
    assert all(shape == (2, *site.shape) for site, shape in fired)
    assert [site.index for site in tower.sites()] == list(range(len(fired)))
    assert len({site.id for site in tower.sites()}) == len(fired)


def later(first):
    """Perturb a site and everything behind it, as a function of the site and the element alone."""

    def perturb(site, x):
        if site.index < first.index or site.kind in ("packed", "preexisting"):
            return x
        tokens, width = x.shape[1:]
        pattern = torch.cos(torch.arange(tokens * width, dtype=torch.float32) * (site.index + 1)).reshape(tokens, width)
        return x * (1 + 0.3 * pattern)

    return perturb


@pytest.mark.parametrize("config", [CLIP, SIGLIP, PE], ids=lambda c: c.family)
def test_resuming_from_a_cached_prefix_is_the_whole_pass_bit_for_bit(config):
    tower = tower_of(config)
    x = pixels(config)
    again = torch.tensor([2, 0, 2])
    with torch.inference_mode():
        before = tower.embed(x)
        for site in tower.sites():
            if site.block < 0:
                continue
            entry = tower.enter(before, 0, site)
            whole = tower(x, later(site))
            assert torch.equal(tower.head(tower.resume(entry, later(site)), later(site)), whole), site
            repeated = tower.head(tower.resume(entry.take(again), later(site)), later(site))
            torch.testing.assert_close(repeated, whole[again], rtol=0, atol=2e-6)
        halfway = tower.run(before, 0, 1)
        late = tower.sites()[-1]
        assert torch.equal(tower.enter(halfway, 1, late).residual, tower.enter(before, 0, late).residual)
    assert not torch.equal(whole, tower(x, later(tower.sites()[0])))


def test_the_class_token_alone_is_exact_in_the_last_block():
    tower = tower_of(CLIP)
    x, seen = pixels(CLIP), {}
    with torch.inference_mode():
        before = tower.embed(x)
        for site in tower.sites():
            perturb = later(site)
            whole = tower(x, perturb)
            entry = tower.enter(before, 0, site, first_token_only=True)
            cut = tower.head(tower.resume(entry, perturb, first_token_only=True), perturb)
            torch.testing.assert_close(cut, whole, rtol=0, atol=2e-6)
        tower.run(before, 0, 3, lambda s, x: (seen.setdefault(s.id, x.shape[1]), x)[1], first_token_only=True)
    assert seen["blocks.02.attn.k"] == CLIP.tokens == seen["blocks.01.mlp.fc2"]
    assert seen["blocks.02.attn.q"] == seen["blocks.02.attn.out"] == seen["blocks.02.mlp.fc1"] == 1


def test_the_class_token_alone_is_refused_where_all_tokens_are_pooled():
    tower = tower_of(SIGLIP)
    with pytest.raises(ValueError, match="pools more than its first token"):
        tower.run(tower.embed(pixels(SIGLIP)), 0, 2, first_token_only=True)
    with pytest.raises(ValueError, match="before block 1"):
        tower.enter(tower.embed(pixels(SIGLIP)), 1, tower.sites()[3])


class Wrapper(nn.Module):
    """The LinearDropoutWrapper of mcdo-vlm-uncertainty."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.dropout = linear, nn.Dropout(0.1)

    def forward(self, x):
        return self.dropout(self.linear(x))

    weight = property(lambda self: self.linear.weight)
    bias = property(lambda self: self.linear.bias)


@pytest.mark.parametrize("made", ["clip", "siglip"])
def test_one_torch_seed_gives_the_masks_of_the_originals_wrapper(made, tmp_path):
    model = getattr(made_models, made)()
    tower = load_model(str(made_models.save(model, tmp_path))).tower
    root = model.vision_model
    for name, module in list(root.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(root.get_submodule(parent) if parent else root, leaf, Wrapper(module).eval())
    for module in root.modules():
        if isinstance(module, Wrapper):
            module.dropout.train()
    chosen = set(wrapped_by_original("hf", tower.sites()))
    x = pixels(tower.config)
    with torch.inference_mode():
        torch.manual_seed(5)
        theirs = image_features(model, x)
        torch.manual_seed(5)
        ours = tower(x, lambda site, x: functional.dropout(x, 0.1) if site in chosen else x)
        still = tower(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 * float(theirs.abs().max()) + 1e-6)
    assert (ours - still).abs().max() > 0.1


def test_what_the_original_reaches_in_the_full_models():
    """Counted once in open_clip 3.3.0 and timm 1.0.31: Linears called, idle dropouts, masked elements of an image."""
    expected = {"clip_b32": (24, 0, 2.304e6), "siglip2_b16": (53, 41, 27.557e6), "pe_core_b16": (54, 41, 27.699e6)}
    for key, (linears, idle, elements) in expected.items():
        with torch.device("meta"):
            tower = VisionTower(MODELS[key].architecture(key).vision)
        reached = wrapped_by_original(tower.config.layout, tower.sites())
        assert sum(site.kind != "preexisting" for site in reached) == linears
        assert sum(site.kind == "preexisting" for site in reached) == idle
        assert sum(site.shape[0] * site.shape[1] for site in reached) == pytest.approx(elements, rel=1e-3)


def test_the_feature_is_computed_in_float32_under_autocast():
    tower = tower_of(CLIP)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = tower(pixels(CLIP))
    assert features.dtype == torch.float32
    assert not torch.equal(features, features.bfloat16().float())
    torch.testing.assert_close(features, tower(pixels(CLIP)), rtol=0, atol=0.1)


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = (
        load_model("clip_b32", init="random", seed=s).tower.blocks[3].mlp.fc1.weight for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(768**-0.5, rel=0.01)
