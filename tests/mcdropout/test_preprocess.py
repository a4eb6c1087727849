"""Pictures are prepared bit for bit as transformers and OpenCLIP prepare them."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from mcdropout.made_models import clip_preprocessor, siglip_preprocessor
from PIL import Image

from tessera.mcdropout.errors import WeightsError
from tessera.mcdropout.preprocess import (
    OPENAI_MEAN,
    OPENAI_STD,
    Preprocess,
    from_hugging_face,
    from_open_clip,
    normalise,
)

SIZES = [(500, 375), (375, 500), (227, 224), (451, 223), (301, 97), (224, 224), (50, 81), (640, 427)]
CLIP = Preprocess(224, "crop", "bicubic", OPENAI_MEAN, OPENAI_STD, "down")


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_transformers(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for processor in (CLIPImageProcessorPil(), *(SiglipImageProcessorPil(resample=r, **half) for r in (2, 3))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = processor(picture(*size), return_tensors="np")["pixel_values"][0]
        ours = from_hugging_face(processor.to_dict(), "x").apply(picture(*size))
        assert ours.dtype == np.float32
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("spare", "begin"), [(1, {"down": 0, "even": 0}), (3, {"down": 1, "even": 2}), (5, {"down": 2, "even": 2})]
)
def test_an_odd_margin_is_cut_as_each_library_does(spare, begin):
    """What torchvision's CenterCrop, ``int(round(spare / 2))``, and transformers, ``spare // 2``, do; seen in open_clip 3.3.0."""
    image = picture(224 + spare, 224)
    whole = np.asarray(image).transpose(2, 0, 1)
    for rule, left in begin.items():
        assert np.array_equal(replace(CLIP, odd_crop=rule).levels(image), whole[:, :, left : left + 224])


def test_levels_and_table_are_torchvisions_arithmetic_for_every_level():
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (CLIP.mean, CLIP.std))
    expected = (levels.float().div(255) - mean) / std
    assert torch.equal(normalise(levels, torch.from_numpy(CLIP.table())), expected)
    image = picture(301, 250)
    batch = normalise(torch.from_numpy(CLIP.levels(image))[None], torch.from_numpy(CLIP.table()))
    assert np.array_equal(batch[0].numpy(), CLIP.apply(image))


def test_the_key_changes_with_every_field():
    others = [
        replace(CLIP, size=225),
        replace(CLIP, mode="squash"),
        replace(CLIP, interpolation="bilinear"),
        replace(CLIP, mean=(0.5, 0.5, 0.5)),
        replace(CLIP, std=(0.5, 0.5, 0.5)),
        replace(CLIP, odd_crop="even"),
    ]
    assert len({CLIP.key(), *(other.key() for other in others)}) == 7
    assert CLIP.key() == Preprocess(**json.loads(json.dumps(CLIP.record()))).key()


def test_configurations_are_read_as_released():
    assert from_hugging_face(clip_preprocessor(224), "x") == CLIP
    siglip2 = from_hugging_face(siglip_preprocessor(384), "x")
    assert (siglip2.mode, siglip2.interpolation, siglip2.size, siglip2.mean) == ("squash", "bilinear", 384, (0.5,) * 3)
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "resample": 3,
        "size": 224,
        "feature_extractor_type": "CLIPFeatureExtractor",
    }
    assert from_hugging_face(old, "x") == CLIP
    assert from_open_clip({}, 224, "x") == replace(CLIP, odd_crop="even")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_normalize": False}, "do_normalize is off"),
        ({"resample": 1}, "resample is 1"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"crop_size": {"height": 200, "width": 200}}, "crop_size"),
        ({"size": {"height": 224, "width": 200}}, "expected a number"),
    ],
)
def test_another_preprocessing_is_refused(change, said):
    with pytest.raises(WeightsError, match=said):
        from_hugging_face({**clip_preprocessor(224), **change}, "x")


def test_an_unknown_resize_mode_is_refused():
    with pytest.raises(WeightsError, match="resize_mode 'longest'"):
        from_open_clip({"resize_mode": "longest"}, 224, "x")
