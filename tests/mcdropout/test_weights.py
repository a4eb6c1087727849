"""Weights in every layout give the same features, and weights that do not fit are refused by name."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from mcdropout import made_models
from safetensors.torch import load_file, save_file

from tessera.mcdropout.errors import TextError, WeightsError
from tessera.mcdropout.model_config import open_clip_architecture, read_architecture
from tessera.mcdropout.models import MODELS, find_architecture, load_model
from tessera.mcdropout.tensor_names import vision_source
from tessera.mcdropout.towers import VisionTower
from tessera.mcdropout.weights import find_weights, load_into, open_weights, require_all_read


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return made_models.save(made_models.clip(), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory) -> Path:
    return made_models.save(made_models.siglip(), tmp_path_factory.mktemp("siglip"))


@pytest.fixture
def copy(tmp_path, clip_folder) -> Path:
    return Path(shutil.copytree(clip_folder, tmp_path / "model"))


def features(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load_model(str(folder), text=True)
    x = torch.randn(2, 3, made_models.SIDE, made_models.SIDE, generator=torch.Generator().manual_seed(2))
    return loaded.tower(x), loaded.text(loaded.tokenizer(["ab cd", "ef"]))


def as_open_clip(folder: Path, target: Path, *, custom_text: bool = False) -> Path:
    """Rewrite a CLIP of transformers as OpenCLIP stores it."""
    old = load_file(folder / "model.safetensors")
    new = {"logit_scale": old["logit_scale"]}
    text = "text." if custom_text else ""
    for tower, ours in (("vision_model", "visual."), ("text_model", text)):
        for i in range(3):
            a, b = f"{tower}.encoder.layers.{i}.", f"{ours}transformer.resblocks.{i}."
            for end in ("weight", "bias"):
                packed = [old[f"{a}self_attn.{n}_proj.{end}"] for n in "qkv"]
                new[f"{b}attn.in_proj_{end}"] = torch.cat(packed)
                pairs = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
                pairs |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
                new |= {f"{b}{y}.{end}": old[f"{a}{x}.{end}"] for x, y in pairs.items()}
    for end in ("weight", "bias"):
        new[f"visual.ln_pre.{end}"] = old[f"vision_model.pre_layrnorm.{end}"]
        new[f"visual.ln_post.{end}"] = old[f"vision_model.post_layernorm.{end}"]
        new[f"{text}ln_final.{end}"] = old[f"text_model.final_layer_norm.{end}"]
    new["visual.conv1.weight"] = old["vision_model.embeddings.patch_embedding.weight"]
    new["visual.class_embedding"] = old["vision_model.embeddings.class_embedding"]
    new["visual.positional_embedding"] = old["vision_model.embeddings.position_embedding.weight"]
    new["visual.proj"] = old["visual_projection.weight"].T.contiguous()
    new[f"{text}token_embedding.weight"] = old["text_model.embeddings.token_embedding.weight"]
    new[f"{text}positional_embedding"] = old["text_model.embeddings.position_embedding.weight"]
    new[f"{text}text_projection"] = old["text_projection.weight"].T.contiguous()
    new[f"{text}attn_mask"] = torch.zeros(12, 12)
    target.mkdir()
    save_file(new, target / "open_clip_model.safetensors")
    vision = {"image_size": 40, "layers": 3, "width": 48, "patch_size": 8, "head_width": 12, "mlp_ratio": 80 / 48}
    words = {"context_length": 12, "vocab_size": 60, "width": 48, "heads": 4, "layers": 3, "mlp_ratio": 80 / 48}
    model = {"embed_dim": 20, "quick_gelu": True, "vision_cfg": vision, "text_cfg": words}
    (target / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    shutil.copy(folder / "tokenizer.json", target)
    return target


@pytest.mark.parametrize("custom_text", [False, True])
def test_open_clip_and_hugging_face_files_give_the_same_features(clip_folder, tmp_path, custom_text):
    theirs = features(clip_folder)
    ours = features(as_open_clip(clip_folder, tmp_path / "oc", custom_text=custom_text))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_of_a_folder_with_both_forms_the_one_with_weights_is_read(clip_folder, tmp_path):
    folder = as_open_clip(clip_folder, tmp_path / "both")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copy(clip_folder / name, folder)
    loaded = load_model(str(folder))
    assert (loaded.tower.config.layout, [p.name for p in loaded.files.paths]) == (
        "open_clip",
        ["open_clip_model.safetensors"],
    )
    (folder / "open_clip_model.safetensors").unlink()
    loaded = load_model(str(folder))
    assert (loaded.tower.config.layout, [p.name for p in loaded.files.paths]) == ("hf", ["model.safetensors"])


def as_timm(folder: Path) -> dict[str, torch.Tensor]:
    """Rewrite the image encoder of a SigLIP of transformers as timm stores it."""
    old = load_file(folder / "model.safetensors")
    new, head = {}, "vision_model.head."
    for end in ("weight", "bias"):
        for i in range(2):
            a, b = f"vision_model.encoder.layers.{i}.", f"visual.trunk.blocks.{i}."
            new[f"{b}attn.qkv.{end}"] = torch.cat([old[f"{a}self_attn.{n}_proj.{end}"] for n in "qkv"])
            pairs = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
            new |= {f"{b}{y}.{end}": old[f"{a}{x}.{end}"] for x, y in pairs.items()}
            new |= {f"{b}mlp.{n}.{end}": old[f"{a}mlp.{n}.{end}"] for n in ("fc1", "fc2")}
        q, kv = old[f"{head}attention.in_proj_{end}"].split([48, 96])
        new |= {f"visual.trunk.attn_pool.q.{end}": q.clone(), f"visual.trunk.attn_pool.kv.{end}": kv.clone()}
        new[f"visual.trunk.attn_pool.proj.{end}"] = old[f"{head}attention.out_proj.{end}"]
        new[f"visual.trunk.attn_pool.norm.{end}"] = old[f"{head}layernorm.{end}"]
        new |= {f"visual.trunk.attn_pool.mlp.{n}.{end}": old[f"{head}mlp.{n}.{end}"] for n in ("fc1", "fc2")}
        new[f"visual.trunk.norm.{end}"] = old[f"vision_model.post_layernorm.{end}"]
        new[f"visual.trunk.patch_embed.proj.{end}"] = old[f"vision_model.embeddings.patch_embedding.{end}"]
    new["visual.trunk.attn_pool.latent"] = old[f"{head}probe"]
    new["visual.trunk.pos_embed"] = old["vision_model.embeddings.position_embedding.weight"][None].clone()
    return new


def test_timm_tensors_give_the_features_of_hugging_face(siglip_folder, tmp_path):
    theirs = load_model(str(siglip_folder)).tower
    save_file(as_timm(siglip_folder), tmp_path / "model.safetensors")
    ours = VisionTower(read_architecture(siglip_folder).vision.__class__(**{**vars(theirs.config), "layout": "timm"}))
    with open_weights(find_weights(tmp_path, "timm")) as weights:
        require_all_read(weights, load_into(ours, weights, lambda name: vision_source(ours.config, name)))
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours(x), theirs(x))


def test_shards_half_precision_and_vision_only_files_are_read(clip_folder, tmp_path):
    whole = load_file(clip_folder / "model.safetensors")
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    expected = load_model(str(clip_folder)).tower(x)
    sharded = Path(shutil.copytree(clip_folder, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    parts = {f"model-{i}-of-3.safetensors": dict(list(whole.items())[i::3]) for i in range(3)}
    for name, tensors in parts.items():
        save_file(tensors, sharded / name)
    index = {"weight_map": {tensor: name for name, tensors in parts.items() for tensor in tensors}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_model(str(sharded))
    assert torch.equal(loaded.tower(x), expected)
    assert len(loaded.provenance["weights"]) == 3
    assert len(loaded.files.sha256()) == 3

    half = Path(shutil.copytree(clip_folder, tmp_path / "half"))
    save_file({n: t.half() for n, t in whole.items()}, half / "model.safetensors")
    tower = load_model(str(half)).tower
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
    torch.testing.assert_close(tower(x), expected, rtol=0.02, atol=0.02)

    (sharded / "model-1-of-3.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"index\.json lists model-1-of-3\.safetensors, which is not there"):
        load_model(str(sharded))


def test_a_folder_of_the_image_encoder_alone_is_read(tmp_path):
    from transformers import CLIPVisionModelWithProjection

    alone = CLIPVisionModelWithProjection(made_models.clip().config.vision_config)
    folder = made_models.save(made_models.seeded(alone), tmp_path / "alone")
    loaded = load_model(str(folder))
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.tower(x), alone(x).image_embeds, rtol=0, atol=1e-5)
    with pytest.raises(WeightsError, match="describes no text encoder"):
        load_model(str(folder), text=True)


def test_truncated_and_foreign_files_are_said(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        WeightsError, match=rf"{re.escape(str(file))} cannot be read: .*damaged or cut short \({len(whole) // 2} bytes"
    ):
        load_model(str(copy))
    file.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"cut short \(0 bytes\)"):
        load_model(str(copy))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 605\n")
    with pytest.raises(WeightsError, match="Git LFS pointer"):
        load_model(str(copy))


def test_pickles_are_never_opened(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(WeightsError, match=r"only pickled weights \(pytorch_model\.bin\).*weights_only=True"):
        load_model(str(copy))
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match="holds no weights"):
        load_model(str(copy))


def test_every_tensor_that_does_not_fit_is_listed_with_both_shapes(copy):
    file = copy / "model.safetensors"
    whole = load_file(file)
    bad = dict(whole)
    bad["vision_model.encoder.layers.1.mlp.fc1.weight"] = torch.zeros(81, 48)
    bad["visual_projection.weight"] = torch.zeros(48, 20)
    bad["vision_model.encoder.layers.0.self_attn.k_proj.bias"] = torch.zeros(47)
    del bad["vision_model.post_layernorm.bias"]
    save_file(bad, file)
    with pytest.raises(WeightsError) as caught:
        load_model(str(copy))
    said = str(caught.value)
    assert "(4 tensors)" in said
    assert "layers.1.mlp.fc1.weight (81, 48); the model needs (80, 48)" in said
    assert "visual_projection.weight (48, 20); the model needs (20, 48)" in said
    assert "k_proj.bias (47,)" in said
    assert "needs (144,)" in said
    assert "vision_model.post_layernorm.bias: missing" in said
    save_file({**whole, "vision_model.encoder.layers.0.ls_1.gamma": torch.ones(48)}, file)
    with pytest.raises(WeightsError, match=r"layers\.0\.ls_1\.gamma \(48,\): the model has no such tensor"):
        load_model(str(copy))


def test_empty_and_unknown_folders_are_said(tmp_path, copy):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsError, match=r"neither config\.json nor open_clip_config\.json \(it holds nothing\)"):
        load_model(str(empty))
    with pytest.raises(WeightsError, match="neither a folder nor a known key; the keys are clip_b32"):
        load_model("clip_b23")
    with pytest.raises(WeightsError, match=r"has no weights; give the local folder of openai/clip-vit-base-patch32"):
        load_model("clip_b32")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no preprocessor_config\.json"):
        load_model(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        load_model(str(copy))
    (copy / "preprocessor_config.json").write_text("{}")
    (copy / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(WeightsError, match="NaFlex"):
        load_model(str(copy))


def full_size(folder: Path, **changes) -> Path:
    """Write the configuration of CLIP ViT-B/32 as transformers does, without weights."""
    folder.mkdir()
    config = {"model_type": "clip", "projection_dim": 512, "vision_config": changes, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(made_models.clip_preprocessor(224)))
    return folder


def test_a_quick_gelu_mismatch_is_refused(tmp_path, clip_folder):
    fits = full_size(tmp_path / "fits")
    assert find_architecture("clip_b32", fits, random=False)[0].vision.activation == "quick_gelu"
    wrong = full_size(tmp_path / "wrong", hidden_act="gelu")
    with pytest.raises(WeightsError, match=r"QuickGELU mismatch: .* says gelu, and the weights of clip_b32"):
        find_architecture("clip_b32", wrong, random=False)
    folder = as_open_clip(clip_folder, tmp_path / "tiny_openai")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["model_cfg"]["quick_gelu"]
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"QuickGELU mismatch: .* OpenAI's"):
        load_model(str(folder))
    config["model_cfg"]["quick_gelu"] = False
    path.write_text(json.dumps(config))
    assert load_model(str(folder)).tower.config.activation == "gelu"


def test_another_model_under_a_key_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="is not model clip_l14: width 768 instead of 1024, layers 12 instead of 24"):
        find_architecture("clip_l14", full_size(tmp_path / "b32"), random=False)


def test_what_open_clip_configurations_hide_is_refused():
    model, preprocess = MODELS["siglip2_b16"].open_clip
    with pytest.raises(WeightsError, match="attentional_pool is not supported"):
        open_clip_architecture(
            {
                "embed_dim": 8,
                "vision_cfg": {"width": 64, "layers": 1, "patch_size": 8, "image_size": 32, "attentional_pool": True},
            },
            {},
            "x",
        )
    with pytest.raises(WeightsError, match="no preprocess_cfg"):
        open_clip_architecture(model, {}, "x")
    vision = {**model["vision_cfg"], "timm_model_name": "vit_base_patch16_siglip_gap_224"}
    with pytest.raises(WeightsError, match="timm model vit_base_patch16_siglip_gap_224"):
        open_clip_architecture({**model, "vision_cfg": vision}, preprocess, "x")
    assert open_clip_architecture(model, preprocess, "x").preprocess.interpolation == "bicubic"


def test_the_registry_has_the_sizes_of_the_released_models():
    """Parameters of the image encoders: counted in open_clip 3.3.0 and timm 1.0.31."""
    counted = {
        "clip_b32": 87_849_216,
        "clip_l14": 303_966_208,
        "siglip2_b16": 92_884_224,
        "siglip2_so400m": 428_225_600,
        "siglip2_g16": 1_163_659_776,
        "pe_core_b16": 93_673_984,
    }
    for key, expected in counted.items():
        with torch.device("meta"):
            tower = VisionTower(MODELS[key].architecture(key).vision)
        assert sum(p.numel() for p in tower.parameters()) == expected, key


def test_random_weights_say_so(copy):
    loaded = load_model(str(copy), init="random", seed=3)
    assert "RANDOM WEIGHTS" in loaded.remarks[0]
    assert loaded.provenance["init"] == "random"
    assert loaded.files is None
    assert load_model(str(copy)).remarks == ()


def test_logits_are_those_of_transformers(clip_folder, siglip_folder):
    for folder, made in ((clip_folder, made_models.clip()), (siglip_folder, made_models.siglip())):
        loaded = load_model(str(folder), text=True)
        x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
        words = loaded.tokenizer(["ab cd ef", "gg", "aa bb cc dd"])
        with torch.inference_mode():
            theirs = made(pixel_values=x, input_ids=words).logits_per_image
            image, text = (torch.nn.functional.normalize(f, dim=-1) for f in (loaded.tower(x), loaded.text(words)))
        scale = torch.tensor(loaded.logit_scale).exp()
        torch.testing.assert_close(image @ text.T * scale + loaded.logit_bias, theirs, rtol=1e-5, atol=1e-5)


def test_a_text_encoder_needs_its_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(TextError, match=r"tokenizer\.json does not exist"):
        load_model(str(copy), text=True)
    assert load_model(str(copy), init="random", text=True).tokenizer is None
