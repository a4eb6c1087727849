from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tessera.mcdropout import masks
from tessera.mcdropout.errors import DrawError
from tessera.mcdropout.masks import (
    DeviceKeys,
    Pairs,
    dense_kept,
    dense_normal,
    dropped_elements,
    host_normal,
    host_stream,
    philox4x32,
)

CPU = torch.device("cpu")
COUNT, P = 24_000, 0.02


def pairs(passes=(0,), images=(0,), *, seed=3, trial=1, shared=False) -> Pairs:
    return Pairs(seed, trial, np.array(passes, np.int64), np.array(images, np.int64), shared)


def sparse(keys: Pairs, site=7, count=COUNT, p=P) -> np.ndarray:
    """Which elements are dropped, (B, count) bool."""
    dropped = np.zeros((len(keys.images), count), bool)
    dropped.ravel()[dropped_elements(keys, site, count, p)] = True
    return dropped


def dense(keys: Pairs, site=7, count=COUNT, p=P) -> np.ndarray:
    return ~dense_kept(DeviceKeys.of(keys, CPU), site, count, p).numpy()


FORMS = pytest.mark.parametrize("draw", [sparse, dense])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_answers_as_its_authors_say(counter, key, expected):
    """The known answers of Random123's kat_vectors for philox4x32-10."""
    words = philox4x32(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@FORMS
@pytest.mark.parametrize("p", [0.001, 0.01, 0.5, 0.95])
def test_the_rate_is_p(draw, p):
    dropped = draw(pairs([0, 1, 2, 3], [0, 0, 9, 9]), p=p).sum()
    expected, sigma = 4 * COUNT * p, np.sqrt(4 * COUNT * p * (1 - p))
    assert abs(dropped - expected) < 4 * sigma


@FORMS
def test_gaps_are_geometric_and_every_place_is_as_likely(draw):
    dropped = draw(pairs(np.arange(24) // 8, np.arange(24) % 8))
    gaps = np.concatenate([np.diff(np.flatnonzero(row)) for row in dropped])
    counts = np.bincount(np.minimum(gaps, 151), minlength=152)[1:]
    probable = stats.geom(P).pmf(np.arange(1, 152))
    probable[-1] = stats.geom(P).sf(150)
    assert stats.chisquare(counts, counts.sum() * probable).pvalue > 1e-3
    by_place = dropped.reshape(24, 100, -1).sum((0, 2))
    assert stats.chisquare(by_place).pvalue > 1e-3


@FORMS
@pytest.mark.parametrize("other", ["seed", "trial", "pass", "image", "site"])
def test_masks_of_different_keys_are_independent(draw, other):
    keys = {
        "seed": pairs(seed=4),
        "trial": pairs(trial=2),
        "pass": pairs([1]),
        "image": pairs([0], [1]),
        "site": pairs(),
    }[other]
    both = (draw(pairs(), p=0.1) & draw(keys, site=8 if other == "site" else 7, p=0.1)).sum()
    assert abs(both - COUNT * 0.01) < 4 * np.sqrt(COUNT * 0.01)


@FORMS
def test_a_mask_depends_on_its_key_alone(draw):
    batch = draw(pairs([4, 2, 2, 0], [11, 3, 11, 7]))
    for row, (number, image) in enumerate([(4, 11), (2, 3), (2, 11), (0, 7)]):
        assert np.array_equal(draw(pairs([number], [image]))[0], batch[row])
    assert np.array_equal(draw(pairs([0, 2], [7, 3])), batch[[3, 1]])


@FORMS
@pytest.mark.parametrize("count", [1, 3, 50, 768])
def test_fewer_elements_are_the_beginning_of_the_same_mask(draw, count):
    keys = pairs([0, 5], [1, 2])
    assert np.array_equal(draw(keys, count=count, p=0.3), draw(keys, p=0.3)[:, :count])


@FORMS
def test_shared_masks_differ_between_passes_only(draw):
    dropped = draw(pairs([1, 1, 2, 2, 1], [0, 5, 0, 5, 9], shared=True))
    assert np.array_equal(dropped[[0, 2]], dropped[[1, 3]])
    assert np.array_equal(dropped[0], dropped[4])
    assert not np.array_equal(dropped[0], dropped[2])
    assert not np.array_equal(dropped[0], draw(pairs([1], [0]))[0])


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_drawing_goes_on_where_the_first_guess_was_too_short(monkeypatch, p):
    whole = sparse(pairs(range(5), range(5)), count=400, p=p)
    monkeypatch.setattr(masks, "_first_guess", lambda count, p: 1)
    assert np.array_equal(sparse(pairs(range(5), range(5)), count=400, p=p), whole)


@pytest.mark.parametrize(
    "normal", [lambda k: host_normal(k, 7, 9_001), lambda k: dense_normal(DeviceKeys.of(k, CPU), 7, 9_001).numpy()]
)
def test_normal_numbers_are_normal_and_keyed(normal):
    found = normal(pairs([0, 1, 1], [0, 0, 4]))
    assert stats.kstest(found.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(found) - np.eye(3)).max() < 0.05
    assert np.array_equal(normal(pairs([1], [4]))[0], found[2])


def test_the_stream_of_the_host_is_that_of_numpy():
    key = np.array([3, 1], np.uint64)
    expected = np.random.Philox(key=key, counter=np.array([0, 11, 7, 4], np.uint64)).random_raw(5)
    assert np.array_equal(host_stream(pairs(), 11, 4, 7).random_raw(5), expected)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"trial": 1 << 32}, {"images": [1 << 32]}, {"passes": [-1]}])
def test_keys_out_of_range_are_refused(wrong):
    with pytest.raises(DrawError, match=r"2\^32"):
        pairs(**wrong)
