"""Which sites of a tower are perturbed, how, and how strongly.

A recipe is resolved against the sites of one tower into a schedule, the list of what is really done; the schedule is
stored with the results. Blocks are counted by number, never by the spelling of their names.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from tessera.mcdropout.errors import DrawError, SiteError
from tessera.mcdropout.sites import Layout, Site, wrapped_by_original

Action: TypeAlias = Literal["dropout", "gaussian", "scale"]
Selection: TypeAlias = Literal[
    "uniform", "attention", "mlp", "stochastic_depth", "projection", "late", "groups", "sites", "uniform_linear"
]

_LINEAR = ("attention", "mlp")


@dataclass(frozen=True, slots=True)
class Strength:
    """What is done at a site.

    Attributes
    ----------
    action
        ``dropout``: each element is zero with probability `magnitude`, else divided by 1 - `magnitude`; a site of kind
        ``stochastic_depth`` drops its whole residual branch for an image and does not rescale, as in the original.
        ``gaussian``: adds normal noise with `magnitude` times the standard deviation of the site's activations of
        that image. ``scale``: multiplies by 1 + normal noise of standard deviation `magnitude`.
    magnitude
        Probability in [0, 1), or a non-negative factor.
    """

    action: Action
    magnitude: float

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            msg = f"{self.action!r} is no perturbation; valid: {', '.join(get_args(Action))}"
            raise SiteError(msg)
        if self.action == "dropout" and not 0 <= self.magnitude < 1:
            msg = f"dropout probability p = {self.magnitude} is outside [0, 1); 0.01 is the usual one"
            raise DrawError(msg)
        if not 0 <= self.magnitude < math.inf:
            msg = f"magnitude {self.magnitude} of the {self.action} perturbation is not a number from 0 on"
            raise DrawError(msg)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which sites to perturb, in words.

    Attributes
    ----------
    select
        ``uniform``: every linear layer of the blocks and of the attention pool. ``attention``, ``mlp``: those of one
        type. ``stochastic_depth``: whole blocks are skipped. ``projection``: one linear layer, the only one in `sites`,
        or the last MLP output if `sites` is empty. ``late``: the layers `linears` of the last `blocks` blocks.
        ``groups``: consecutive groups of whole blocks, a probability for each in `schedule`. ``sites``: the ids or
        patterns (``blocks.0?.mlp.*``) in `sites`. ``uniform_linear``: what the original's wrapper of linear layers
        really reaches in this layout of weights, its re-enabled dropouts included.
    p
        Probability, or magnitude of another `action`.
    action
        See `Strength`.
    blocks, linears
        Of ``late``.
    sites
        Of ``sites`` and ``projection``.
    schedule
        Of ``groups``.
    """

    select: Selection = "uniform"
    p: float = 0.01
    action: Action = "dropout"
    blocks: int = 3
    linears: tuple[str, ...] = ("mlp.fc2",)
    sites: tuple[str, ...] = ()
    schedule: tuple[float, ...] = ()


class Schedule:
    """What is done at each site of one tower.

    Parameters
    ----------
    sites
        All sites of the tower, in forward order.
    strengths
        What to do, by site id. A magnitude of 0 is kept in the table but not drawn.
    """

    def __init__(self, sites: Sequence[Site], strengths: Mapping[str, Strength]) -> None:
        for name in strengths:
            _find(sites, name)
        for site in sites:
            if site.kind == "stochastic_depth" and strengths.get(site.id, Strength("dropout", 0)).action != "dropout":
                msg = f"site {site.id} is a residual branch, which can only be dropped; choose another site or action"
                raise SiteError(msg)
        self.requested = tuple((site, strengths[site.id]) for site in sites if site.id in strengths)
        self.active = {site.id: strength for site, strength in self.requested if strength.magnitude > 0}
        if not self.active:
            msg = "no site is perturbed with a magnitude above 0, so all passes would be equal; select sites or raise p"
            raise SiteError(msg)

    @property
    def first(self) -> Site:
        """The first site that is perturbed: all before it is a function of the image alone."""
        return next(site for site, _ in self.requested if site.id in self.active)

    def table(self) -> list[dict[str, str | int | float]]:
        """Return a row for each requested site: what is stored with the results."""
        return [
            {
                "index": site.index,
                "id": site.id,
                "kind": site.kind,
                "block": site.block,
                "tokens": site.shape[0],
                "width": site.shape[1],
                "action": strength.action,
                "magnitude": strength.magnitude,
            }
            for site, strength in self.requested
        ]

    def elements(self) -> int:
        """Return how many elements of one image are drawn in a pass."""
        return sum(math.prod(site.shape) for site, _ in self.requested if site.id in self.active)


def resolve(recipe: Recipe, sites: Sequence[Site], layout: Layout = "hf") -> Schedule:
    """Resolve a recipe against the sites of a tower.

    Parameters
    ----------
    recipe
        What to perturb.
    sites
        `Tower.sites()`.
    layout
        `TowerConfig.layout`: whose implementation ``uniform_linear`` reproduces.

    Raises
    ------
    SiteError
        An unknown site (with the nearest ones), nothing selected, or a schedule that does not fit the blocks.
    DrawError
        A probability outside [0, 1).
    """
    if recipe.select == "groups":
        return Schedule(sites, _by_group(sites, recipe))
    strength = Strength(recipe.action, recipe.p)
    chosen = _chosen(recipe, sites, layout)
    if not chosen:
        msg = f"the recipe {recipe.select!r} selects no site of this tower; its sites: {', '.join(s.id for s in sites)}"
        raise SiteError(msg)
    return Schedule(sites, {site.id: strength for site in chosen})


def _chosen(recipe: Recipe, sites: Sequence[Site], layout: Layout) -> list[Site]:
    match recipe.select:
        case "uniform":
            return [s for s in sites if s.kind in _LINEAR]
        case "attention" | "mlp" | "stochastic_depth":
            return [s for s in sites if s.kind == recipe.select]
        case "projection":
            return [_projection(recipe, sites)]
        case "late":
            return _late(recipe, sites)
        case "sites":
            return [site for name in recipe.sites for site in matching(sites, name)]
        case "uniform_linear":
            return list(wrapped_by_original(layout, sites))
    msg = f"{recipe.select!r} is no selection of sites; valid: {', '.join(get_args(Selection))}"
    raise SiteError(msg)


def block_count(sites: Iterable[Site]) -> int:
    """Return the number of transformer blocks that the sites belong to."""
    return 1 + max((s.block for s in sites if _in_block(s)), default=-1)


def _in_block(site: Site) -> bool:
    return "blocks." in site.id


def _projection(recipe: Recipe, sites: Sequence[Site]) -> Site:
    if len(recipe.sites) > 1:
        msg = f"the recipe 'projection' perturbs one site, and {len(recipe.sites)} are given; use the recipe 'sites'"
        raise SiteError(msg)
    if recipe.sites:
        return _find(sites, recipe.sites[0])
    outputs = [s for s in sites if _in_block(s) and s.id.endswith(".mlp.fc2")]
    if not outputs:
        msg = "the tower has no MLP output to perturb; name one site in sites"
        raise SiteError(msg)
    return max(outputs, key=lambda s: s.block)


def _late(recipe: Recipe, sites: Sequence[Site]) -> list[Site]:
    depth = block_count(sites)
    if not 1 <= recipe.blocks <= depth:
        msg = f"the last {recipe.blocks} blocks are asked for, and the tower has {depth}; choose 1 … {depth}"
        raise SiteError(msg)
    late = [s for s in sites if _in_block(s) and s.block >= depth - recipe.blocks]
    last = [s for s in late if s.block == depth - 1]
    names = {s.id.rpartition("blocks.")[2].partition(".")[2]: s for s in last}
    for linear in recipe.linears:
        if linear not in names:
            raise SiteError(_unknown(linear, names, "layer of a block"))
    return [s for s in late if s.id.rpartition("blocks.")[2].partition(".")[2] in recipe.linears]


def _by_group(sites: Sequence[Site], recipe: Recipe) -> dict[str, Strength]:
    """Cut the blocks into consecutive groups of whole blocks; what lies behind the last block belongs to the last."""
    count, depth = len(recipe.schedule), block_count(sites)
    if not 1 <= count <= depth:
        msg = f"a schedule of {count} groups does not fit a tower of {depth} blocks; give 1 … {depth} magnitudes"
        raise SiteError(msg)
    strengths = [Strength(recipe.action, p) for p in recipe.schedule]
    return {s.id: strengths[group_of(s.block, depth, count)] for s in sites if s.kind in _LINEAR}


def group_of(block: int, depth: int, groups: int) -> int:
    """Return the group of a block when `depth` blocks are cut into `groups` consecutive groups of almost equal size."""
    return min(max(block, 0), depth - 1) * groups // depth


def matching(sites: Sequence[Site], name: str) -> list[Site]:
    """Return the sites that an id or a pattern with ``*`` and ``?`` names.

    Raises
    ------
    SiteError
        There is none; the nearest ids are listed.
    """
    found = [site for site in sites if fnmatchcase(site.id, name)]
    if not found:
        raise SiteError(_unknown(name, [s.id for s in sites], "site of this tower"))
    return found


def _find(sites: Sequence[Site], name: str) -> Site:
    for site in sites:
        if site.id == name:
            return site
    raise SiteError(_unknown(name, [s.id for s in sites], "site of this tower"))


def _unknown(name: str, valid: Iterable[str], what: str) -> str:
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return f"{name!r} is no {what}; the nearest are {', '.join(near)} (of {len(names)})"
