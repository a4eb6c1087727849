"""Text towers are those of transformers, and tokenizers cut, pad and clean as the models expect."""

import pytest
import torch
from mcdropout import made_models

from tessera.mcdropout.errors import TextError
from tessera.mcdropout.models import load_model
from tessera.mcdropout.tokens import clean, read_tokenizer


def text_features(model, ids):
    features = model.get_text_features(input_ids=ids)
    return features if isinstance(features, torch.Tensor) else features.pooler_output


@pytest.mark.parametrize("made", ["clip", "siglip"])
def test_features_are_those_of_transformers(made, tmp_path):
    model = getattr(made_models, made)()
    loaded = load_model(str(made_models.save(model, tmp_path)), text=True)
    ids = torch.randint(1, 58, (4, loaded.text.config.context), generator=torch.Generator().manual_seed(1))
    ids[0, 3] = ids[0, 7] = ids[1, -1] = ids[2, 1] = ids[3, 5] = 59
    with torch.inference_mode():
        ours, theirs = loaded.text(ids), text_features(model, ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()) + 1e-6)
    assert theirs.abs().mean() > 0.1


@pytest.mark.parametrize("made", ["clip", "siglip"])
def test_resuming_from_a_cached_prefix_is_the_whole_pass(made, tmp_path):
    loaded = load_model(str(made_models.save(getattr(made_models, made)(), tmp_path)), text=True)
    tower, ids = loaded.text, loaded.tokenizer(["ab cd", "ef gg aa", "bb"])
    before, rows, fired = tower.embed(ids), tower.pooled_rows(ids), []

    def perturb(site, x):
        fired.append(site)
        return x * 1.5 if site.id == "text.blocks.01.mlp.fc2" else x

    whole = tower(ids, perturb)
    assert fired == list(tower.sites())
    site = next(s for s in tower.sites() if s.id == "text.blocks.01.mlp.fc2")
    resumed = tower.head(tower.resume(tower.enter(before, 0, site), perturb), rows, perturb)
    assert torch.equal(resumed, whole)
    assert not torch.equal(whole, tower(ids))


def test_texts_are_cut_padded_and_end_with_their_end_token(tmp_path):
    loaded = load_model(str(made_models.save(made_models.clip(), tmp_path)), text=True)
    ids = loaded.tokenizer(["ab cd", "aa " * 40])
    assert ids.shape == (2, 12)
    assert ids[0].tolist() == [58, 2, 18, 59] + [59] * 8
    assert ids[1].tolist() == [58] + [1] * 10 + [59]
    assert loaded.text.pooled_rows(ids).tolist() == [3, 11]
    # What follows the end token is not seen.
    other = ids.clone()
    other[0, 5:] = 7
    assert torch.equal(loaded.text(ids)[0], loaded.text(other)[0])


def test_siglip_pools_its_last_token_and_sees_padding(tmp_path):
    loaded = load_model(str(made_models.save(made_models.siglip(), tmp_path)), text=True)
    ids = loaded.tokenizer(["AB CD"])
    assert ids[0].tolist() == [2, 18, 59] + [0] * 7
    assert loaded.text.pooled_rows(ids).tolist() == [9]


def test_cleaning():
    assert clean("A photo_of: a  Cat!", "canonicalize") == "a photo of a cat"
    assert clean("A Cat!", "lower") == "a cat!"
    assert clean("A Cat!", "none") == "A Cat!"


def test_what_cannot_be_encoded_is_said(tmp_path):
    made_models.tokenizer(tmp_path, clip=True)
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json", 8, "canonicalize", 0)
    with pytest.raises(TextError, match="nothing to encode in '!!'"):
        tokenizer(["ab", "!!"])
    with pytest.raises(TextError, match="an empty list of texts"):
        tokenizer([])
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(TextError, match="names a padding token, which this model sees"):
        read_tokenizer(tmp_path / "tokenizer.json", 8, "none", None)
    assert read_tokenizer(tmp_path / "tokenizer.json", 8, "none", 0)(["ab"])[0].tolist() == [58, 2, 59] + [0] * 5
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TextError, match=r"tokenizer .* cannot be read"):
        read_tokenizer(tmp_path / "tokenizer.json", 8, "none", 0)
