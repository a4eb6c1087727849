from __future__ import annotations

import numpy as np
import pytest
import torch
from mcdropout.small_towers import SIDE, clip, numbers, pixels, siglip, text
from PIL import Image

from tessera.mcdropout.adaptive import run_adaptive
from tessera.mcdropout.errors import DeviceError, DrawError, SiteError
from tessera.mcdropout.plain import dropout_after, plain_trial
from tessera.mcdropout.recipes import Recipe, Schedule, Strength, resolve
from tessera.mcdropout.trial import EngineSettings, TrialEngine

COUNT = 7


@pytest.fixture(autouse=True)
def one_thread():
    """As in a job: some of torch's operations change their last bits with the number of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine(tower, recipe: Recipe | Schedule, layout="hf", **settings) -> TrialEngine:
    schedule = recipe if isinstance(recipe, Schedule) else resolve(recipe, tower.sites(), layout)
    return TrialEngine(tower, schedule, EngineSettings(**{"micro_batch": 8, **settings}))


def run(made: TrialEngine, count=COUNT, passes=range(6), rows=slice(None), **how):
    where = numbers(count)[rows]
    return made.run(pixels(count)[rows], where, **{"seed": 3, "trial": 1, "passes": passes, "features": True, **how})


@pytest.fixture
def files(tmp_path):
    """Picture files of the size of the input, so that preparing them is a division."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02d}.png" for i in range(COUNT)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return paths


def prepare(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1)


RECIPES = {
    "uniform": (Recipe("uniform_linear", 0.05), "open_clip", ["mlp.fc1", "mlp.fc2"], range(4)),
    "late": (Recipe("late", 0.05, blocks=2), "hf", ["mlp.fc2"], (2, 3)),
    "packed": (Recipe("sites", 0.05, sites=("blocks.*.attn.qkv",)), "timm", ["attn.qkv"], range(4)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_torch_stream_gives_the_plain_loops_traces_bit_for_bit(files, name):
    """Batches of 3 leave a smaller last one; the engine runs only what follows the first perturbed site."""
    recipe, layout, leaves, blocks = RECIPES[name]
    tower = clip(layout)
    with dropout_after(tower, [f"blocks.{i}.{leaf}" for i in blocks for leaf in leaves], recipe.p):
        pre, post = plain_trial(tower, files, prepare, passes=5, batch=3, seed=11)
    inputs = torch.from_numpy(np.stack([prepare(Image.open(path)) for path in files]))
    made = engine(tower, recipe, layout, rng="torch", micro_batch=3)
    moments = made.run(inputs, numbers(COUNT), seed=11, trial=0, passes=range(5)).moments
    assert np.array_equal(moments.trace("pre").astype(np.float32), pre)
    assert np.array_equal(moments.trace("post").astype(np.float32), post)
    assert (pre > 1e-4).all()


def test_the_torch_stream_draws_the_masks_of_hugging_faces_own_model(tmp_path):
    """An independent tower with the original's wrapper: other kernels, the same draws, in all 18 linear layers."""
    from mcdropout import made_models

    from tessera.mcdropout.models import load_model

    model = made_models.clip()
    leaves = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    linears = [f"vision_model.encoder.layers.{i}.{leaf}" for i in range(3) for leaf in leaves]
    inputs = torch.randn(COUNT, 3, made_models.SIDE, made_models.SIDE, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(4)
    with dropout_after(model, linears, 0.1), torch.inference_mode():
        found = [model.get_image_features(pixel_values=batch) for _ in range(3) for batch in inputs.split(4)]
    expected = torch.cat([getattr(f, "pooler_output", f) for f in found]).view(3, COUNT, -1)
    tower = load_model(str(made_models.save(model, tmp_path))).tower
    made = engine(tower, Recipe("uniform_linear", 0.1), "hf", rng="torch", micro_batch=4)
    features = made.run(inputs, numbers(COUNT), seed=4, trial=0, passes=range(3), features=True).features
    assert np.abs(features - expected.numpy()).max() < 1e-5 * np.abs(expected.numpy()).max()


def test_the_variance_of_dropped_features_is_the_known_one():
    """Dropout on the features themselves: Var = x^2 p / (1 - p), whatever the tower."""
    tower, p = clip(), 0.2
    made = engine(tower, Recipe("sites", p, sites=("head.proj",)), micro_batch=64)
    moments = run(made, passes=range(1500), features=False).moments
    with torch.inference_mode():
        truth = (tower(pixels(COUNT)).double() ** 2).mean(1).numpy() * p / (1 - p)
    assert np.allclose(moments.trace(unbiased=True), truth, rtol=0.08)


ENGINES = [
    (clip, Recipe(p=0.05)),
    (clip, Recipe("late", 0.05)),
    (clip, Recipe("stochastic_depth", 0.3)),
    (clip, Recipe("late", 0.05, "gaussian")),
    (siglip, Recipe("projection", 0.05, "scale", sites=("pool.attn.q",))),
    (lambda: siglip("timm"), Recipe("uniform_linear", 0.05)),
]


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize(("tower", "recipe"), ENGINES)
def test_features_do_not_depend_on_the_batch_or_on_the_cut(tower, recipe, form):
    tower = tower()
    layout = tower.config.layout
    whole = run(engine(tower, recipe, layout, form=form)).features
    scale = np.abs(whole).max()
    assert np.abs(whole - whole.mean(0)).max() > 1e-4 * scale
    for size in (1, 32):
        other = run(engine(tower, recipe, layout, form=form, micro_batch=size)).features
        assert np.abs(other - whole).max() < 1e-5 * scale
    again = engine(tower, recipe, layout, form=form)
    assert np.array_equal(run(again, passes=range(2, 5)).features, whole[2:5])
    assert np.array_equal(run(again, rows=slice(3, 6)).features, whole[:, 3:6])
    assert np.array_equal(run(engine(tower, recipe, layout, form=form, threads=2)).features, whole)


def test_the_prefix_and_the_class_token_alone_change_nothing():
    """The engine's features are those of the whole tower with the same perturbation."""
    from tessera.mcdropout.masks import Pairs
    from tessera.mcdropout.perturb import SparseDraws

    tower = clip()
    for recipe in (Recipe(p=0.1), Recipe("late", 0.1), Recipe("sites", 0.1, sites=("blocks.03.attn.*", "head.proj"))):
        made = engine(tower, recipe, packed=False)
        found = run(made, passes=range(3, 4)).features[0]
        pairs = Pairs(3, 1, np.full(COUNT, 3), numbers(COUNT))
        with torch.inference_mode():
            expected = tower(pixels(COUNT), SparseDraws(made.schedule, pairs)).numpy()
        assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()


def test_packed_weights_change_rounding_only_and_leave_the_tower_as_it_was():
    tower = clip()
    with torch.inference_mode():
        before = tower(pixels(2))
        plain = run(engine(tower, Recipe(p=0.1), packed=False)).features
        packed = run(engine(tower, Recipe(p=0.1))).features
        assert np.abs(packed - plain).max() < 1e-5 * np.abs(plain).max()
        assert torch.equal(tower(pixels(2)), before)
    assert "blocks.0.mlp.fc1.weight" in tower.state_dict()
    assert len(tower.state_dict()) == len(clip().state_dict())


def test_nested_snapshots_are_the_moments_of_fewer_passes():
    made = engine(clip(), Recipe(p=0.1))
    whole = run(made, passes=range(6), snapshots=(2, 4, 6))
    assert sorted(whole.snapshots) == [2, 4, 6]
    for passes, moments in whole.snapshots.items():
        fewer = run(made, passes=range(passes)).moments
        assert np.array_equal(moments.trace(), fewer.trace())
        assert (moments.passes == passes).all()
        features = whole.features[:passes].astype(np.float64)
        assert np.allclose(moments.trace(unbiased=True), features.var(0, ddof=1).mean(1), rtol=1e-10)


def test_blocks_of_passes_merge_to_the_whole():
    made = engine(clip(), Recipe(p=0.1))
    merged = run(made, passes=range(4)).moments.merge(run(made, passes=range(4, 6)).moments)
    assert np.allclose(merged.trace(), run(made).moments.trace(), rtol=1e-12)


def test_half_precision_stays_near_full_precision():
    full = run(engine(clip(), Recipe(p=0.1)), passes=range(16)).moments.trace()
    half = run(engine(clip(), Recipe(p=0.1), precision="bfloat16"), passes=range(16)).moments.trace()
    assert np.abs(half / full - 1).max() < 0.05
    assert not np.array_equal(half, full)


def test_float32_sums_agree_with_float64_sums():
    double = run(engine(clip(), Recipe(p=0.1))).moments
    single = run(engine(clip(), Recipe(p=0.1), sums="float32")).moments
    assert single.pre.second.dtype == torch.float32
    assert np.abs(single.trace() / double.trace() - 1).max() < 1e-6


def test_one_mask_for_all_images_makes_equal_images_equal():
    same = pixels(1).expand(4, -1, -1, -1)
    how = {"seed": 1, "trial": 0, "passes": range(3), "features": True}
    shared = engine(clip(), Recipe(p=0.1), shared_masks=True).run(same, numbers(4), **how).features
    own = engine(clip(), Recipe(p=0.1)).run(same, numbers(4), **how).features
    assert np.array_equal(shared, np.repeat(shared[:, :1], 4, 1))
    assert np.abs(own[:, 0] - own[:, 1]).min(1).max() > 0


def test_texts_run_like_images():
    tower = text()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 58, (COUNT, 12), generator=generator)
    tokens[range(COUNT), torch.arange(COUNT) + 3] = 59
    made = engine(tower, Recipe(p=0.1))
    found = made.run(tokens, numbers(COUNT), seed=1, trial=0, passes=range(3), features=True)
    alone = made.run(tokens[4:5], numbers(COUNT)[4:5], seed=1, trial=0, passes=range(3), features=True)
    assert np.array_equal(alone.features[:, 0], found.features[:, 4])
    with torch.inference_mode():
        assert np.allclose(made.prepare(tokens, numbers(COUNT)).reference, tower(tokens), atol=1e-5)


def test_what_is_computed_once_is_computed_once(monkeypatch):
    tower = clip()
    made = engine(tower, Recipe("late", 0.1))
    run(made)
    monkeypatch.setattr(tower, "embed", None)
    run(made, trial=2)
    with pytest.raises(TypeError):
        run(made, count=COUNT + 1)


def test_what_is_kept_stays_within_its_limit():
    tower = clip()
    made = engine(tower, Recipe("late", 0.1), cache_bytes=1)
    first = made.prepare(pixels(4), numbers(4))
    assert made.prepare(pixels(4), numbers(4)) is first
    made.prepare(pixels(5), numbers(5))
    assert made.prepare(pixels(4), numbers(4)) is not first


def out_of_memory_above(limit: int, resume):
    def limited(entry, *args, **how):
        if len(entry.residual) > limit:
            raise torch.OutOfMemoryError
        return resume(entry, *args, **how)

    return limited


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch, caplog):
    tower = clip()
    expected = run(engine(tower, Recipe("late", 0.1), micro_batch=2)).features
    made = engine(tower, Recipe("late", 0.1), micro_batch=8)
    monkeypatch.setattr(tower, "resume", out_of_memory_above(2, tower.resume))
    assert np.array_equal(run(made).features, expected)
    assert made.batch.size == 2
    assert "2 images in a batch instead of 4" in caplog.text


def test_too_little_memory_for_one_image_is_an_error(monkeypatch):
    tower = clip()
    made = engine(tower, Recipe("late", 0.1))
    exact = engine(tower, Recipe("late", 0.1), rng="torch")
    monkeypatch.setattr(tower, "resume", out_of_memory_above(0, tower.resume))
    with pytest.raises(DeviceError, match="one image"):
        run(made)
    with pytest.raises(DrawError, match="smaller micro_batch"):
        run(exact)


def test_adaptive_passes_stop_where_the_interval_is_narrow():
    made = engine(clip(), Recipe(p=0.1), micro_batch=8)
    how = {"seed": 3, "trial": 1, "most": 64, "least": 8, "gate": 0.3}
    found = run_adaptive(made, pixels(COUNT), numbers(COUNT), **how)
    passes = found.moments.passes.numpy()
    assert ((passes % 8 == 0) & (passes >= 8) & (passes <= 64)).all()
    assert passes.max() < 64
    whole = run(made, passes=range(64))
    for image, made_passes in enumerate(passes):
        features = whole.features[:made_passes, image].astype(np.float64)
        assert np.allclose(found.moments.trace(unbiased=True)[image], features.var(0, ddof=1).mean(), rtol=1e-6)
    assert np.isnan(found.features[passes[0] :, 0]).all()
    alone = run_adaptive(made, pixels(COUNT)[2:3], numbers(COUNT)[2:3], **how)
    assert alone.moments.passes[0] == passes[2]
    narrow = run_adaptive(made, pixels(COUNT), numbers(COUNT), **{**how, "gate": 0.2})
    assert (narrow.moments.passes.numpy() > passes).all()


@pytest.mark.parametrize(
    ("settings", "how", "says"),
    [
        ({}, {"least": 3}, "4 <= least_passes"),
        ({}, {"least": 32, "most": 16}, "32 and 16"),
        ({}, {"gate": 0.0}, "gate above 0"),
        ({"rng": "torch"}, {}, "rng=philox"),
    ],
)
def test_adaptive_passes_refuse_what_makes_no_sense(settings, how, says):
    made = engine(clip(), Recipe(p=0.1), **settings)
    with pytest.raises(DrawError, match=says):
        run_adaptive(made, pixels(2), numbers(2), **{"seed": 1, "trial": 0, "most": 16, **how})


def test_a_part_of_the_torch_stream_is_refused():
    with pytest.raises(DrawError, match="one stream"):
        run(engine(clip(), Recipe(), rng="torch"), passes=range(2, 4))


def test_inputs_and_numbers_must_match():
    made = engine(clip(), Recipe())
    with pytest.raises(DrawError, match="one number for each"):
        made.run(pixels(3), numbers(2), seed=1, trial=1, passes=range(1))


def test_a_site_that_the_forward_pass_leaves_out_is_an_error():
    """k and v of the packed product are passed, the packed product of the class token's block is not."""
    tower = clip()
    silent = Schedule(tower.sites(), {"blocks.03.mlp.fc2": Strength("dropout", 0.1)})
    tower.blocks[3].mlp.fc2_sites = []
    with pytest.raises(SiteError, match=r"never fire: blocks\.03\.mlp\.fc2"):
        run(engine(tower, silent))


def test_host_masks_cannot_be_compiled():
    with pytest.raises(DrawError, match="form=dense"):
        engine(clip(), Recipe(), compile=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of torch by torch
def test_one_compiled_graph_serves_all_micro_batches(monkeypatch):
    """Captured whole, without breaks or recompilations; the code that torch would generate is left out."""
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **how: compile_with(work, **{**how, "backend": "eager"}))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    tower, recipe = clip(layers=2), Recipe("late", 0.1, blocks=1)
    made = engine(tower, recipe, form="dense", compile=True)
    found = [run(made, trial=trial, passes=range(3)).features for trial in (1, 2)]
    assert counters["unique_graphs"] == 1
    plain = engine(tower, recipe, form="dense", packed=False)
    for trial, features in zip((1, 2), found, strict=True):
        assert np.array_equal(features, run(plain, trial=trial, passes=range(3)).features)
