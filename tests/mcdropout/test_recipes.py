from __future__ import annotations

import pytest
from mcdropout.small_towers import clip, siglip

from tessera.mcdropout.errors import DrawError, SiteError
from tessera.mcdropout.recipes import Recipe, Schedule, Strength, group_of, resolve

DEPTH = 12


@pytest.fixture(scope="module")
def sites():
    """Twelve blocks, so that numbers and spelling sort differently."""
    return clip(layers=DEPTH, width=16).sites()


def chosen(recipe: Recipe, sites, layout="hf") -> list[str]:
    return [row["id"] for row in resolve(recipe, sites, layout).table()]


def test_uniform_reaches_every_linear_layer_of_the_blocks(sites):
    ids = chosen(Recipe(), sites)
    assert len(ids) == 6 * DEPTH
    assert ids[:6] == [f"blocks.00.{name}" for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.fc1", "mlp.fc2")]
    assert chosen(Recipe("attention"), sites) + chosen(Recipe("mlp"), sites) != ids
    assert sorted(chosen(Recipe("attention"), sites) + chosen(Recipe("mlp"), sites)) == sorted(ids)


def test_stochastic_depth_reaches_both_branches(sites):
    assert len(chosen(Recipe("stochastic_depth"), sites)) == 2 * DEPTH


def test_late_blocks_are_the_last_by_number(sites):
    assert chosen(Recipe("late"), sites) == ["blocks.09.mlp.fc2", "blocks.10.mlp.fc2", "blocks.11.mlp.fc2"]
    both = chosen(Recipe("late", blocks=1, linears=("mlp.fc2", "attn.out")), sites)
    assert both == ["blocks.11.attn.out", "blocks.11.mlp.fc2"]


def test_the_one_projection_is_that_of_the_last_block_or_the_one_named(sites):
    assert chosen(Recipe("projection"), sites) == ["blocks.11.mlp.fc2"]
    assert chosen(Recipe("projection", sites=("blocks.09.mlp.fc2",)), sites) == ["blocks.09.mlp.fc2"]
    with pytest.raises(SiteError, match="'sites'"):
        chosen(Recipe("projection", sites=("head.proj", "blocks.09.mlp.fc2")), sites)


def test_groups_are_whole_blocks_and_a_pool_belongs_to_the_last():
    sites = siglip(layers=5).sites()
    table = resolve(Recipe("groups", schedule=(0.0, 0.01, 0.2)), sites).table()
    by_block = {(row["block"], row["magnitude"]) for row in table}
    assert by_block == {(0, 0.0), (1, 0.0), (2, 0.01), (3, 0.01), (4, 0.2), (5, 0.2)}
    assert [group_of(b, 12, 4) for b in range(12)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_groups_without_dropout_stay_in_the_table_and_are_not_drawn(sites):
    schedule = resolve(Recipe("groups", schedule=(0.0, 0.1)), sites)
    assert len(schedule.table()) == 6 * DEPTH
    assert schedule.first.id == "blocks.06.attn.q"
    assert schedule.elements() == 6 * 17 * (5 * 16 + 48)


def test_sites_may_be_named_by_patterns(sites):
    assert chosen(Recipe("sites", sites=("blocks.0[12].mlp.fc1", "head.*")), sites) == [
        "blocks.01.mlp.fc1",
        "blocks.02.mlp.fc1",
        "head.proj",
    ]


@pytest.mark.parametrize(("layout", "count"), [("hf", 6 * DEPTH), ("open_clip", 2 * DEPTH)])
def test_the_originals_wrapper_reaches_other_sites_in_each_layout(sites, layout, count):
    """The census of the original: 72 of 72 in Hugging Face's CLIP, 24 of 36 in open_clip's."""
    assert len(chosen(Recipe("uniform_linear"), sites, layout)) == count


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe("sites", sites=("blocks.9.mlp.fc2",)), r"blocks\.09\.mlp\.fc2"),
        (Recipe("sites"), "selects no site"),
        (Recipe("late", blocks=13), "tower has 12"),
        (Recipe("late", linears=("mlp.c_proj",)), r"nearest are .*mlp\.fc"),
        (Recipe("groups", schedule=(0.1,) * 13), "13 groups"),
        (Recipe("groups", schedule=(0.0, 0.0)), "no site is perturbed"),
        (Recipe(p=0.0), "no site is perturbed"),
        (Recipe("lat"), "valid: uniform"),  # type: ignore[arg-type]
        (Recipe("stochastic_depth", action="scale"), "only be dropped"),
        (Recipe(action="noise"), "valid: dropout"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_perturbed_is_named(sites, recipe, says):
    with pytest.raises(SiteError, match=says):
        resolve(recipe, sites)


@pytest.mark.parametrize(
    ("action", "size"),
    [("dropout", 1.0), ("dropout", -0.1), ("dropout", float("nan")), ("scale", -1), ("gaussian", float("inf"))],
)
def test_magnitudes_out_of_range_are_refused(action, size):
    with pytest.raises(DrawError, match=str(size)):
        Strength(action, size)


def test_a_schedule_of_an_unknown_site_names_the_nearest(sites):
    with pytest.raises(SiteError, match=r"blocks\.11\.mlp\.fc1"):
        Schedule(sites, {"blocks.11.mlp.fc9": Strength("dropout", 0.1)})
