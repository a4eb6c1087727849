"""Cut the trials of an arm into units, and put what comes back into one table.

A unit is (arm, block of images, trial, block of passes). A trial that is one block of passes comes back reduced to
its columns; one that was cut comes back as moments, which are merged here in the order of the passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.mcdropout.experiments.design import Arm, ArmTable
from tessera.mcdropout.metrics import geometry, weighted_traces

if TYPE_CHECKING:
    from tessera.mcdropout.moments import Moments

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

_KEY: Final = re.compile(r"(?P<arm>.+)/i(?P<first>\d+)-(?P<end>\d+)/k(?P<trial>\d+)/t(?P<start>\d+)-(?P<stop>\d+)")
_COLUMN: Final = re.compile(r"T(\d+)\.(\w+)")
_BY_DIMENSION: Final = ("mean_pre", "variance_pre")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit lies: images ``first`` … ``end - 1`` of the arm's, a trial, passes ``start`` … ``stop - 1``."""

    arm: str
    first: int
    end: int
    trial: int
    start: int
    stop: int

    @property
    def key(self) -> str:
        """The name of the unit; sorted by name, units of the same images lie together."""
        images, passes = f"i{self.first:07d}-{self.end:07d}", f"t{self.start:05d}-{self.stop:05d}"
        return f"{self.arm}/{images}/k{self.trial:03d}/{passes}"

    @property
    def cost(self) -> float:
        """Forward passes of one image."""
        return float((self.end - self.first) * (self.stop - self.start))

    @classmethod
    def of(cls, key: str) -> Place:
        """Undo `key`."""
        found = _KEY.fullmatch(key)
        assert found is not None  # noqa: S101 - keys come from `key`
        return cls(found["arm"], *(int(found[name]) for name in ("first", "end", "trial", "start", "stop")))


def pass_blocks(arm: Arm, size: int | None) -> list[tuple[int, int]]:
    """Return the blocks of passes of an arm: cut every ``size`` passes and at every T, or not at all."""
    last = arm.passes[-1]
    if size is None or arm.geometry:
        return [(0, last)]
    cuts = sorted({0, *range(size, last, size), *arm.passes})
    return list(pairwise(cuts))


def places(arm: Arm, images: int, image_block: int, pass_block: int | None) -> Iterator[Place]:
    """List the units of an arm over some number of images."""
    for first in range(0, images, image_block):
        for trial in range(len(arm.seeds)):
            for start, stop in pass_blocks(arm, pass_block):
                yield Place(arm.key, first, min(first + image_block, images), trial, start, stop)


def columns(moments: Moments, reference: Floats) -> dict[str, Floats]:
    """Return the columns that follow from moments, each of shape (N,).

    ``trace_pre`` and ``trace_post`` are biased, divided by T, as the original's; ``…_unbiased`` by T - 1;
    ``rel_dist`` is the distance of the mean from the features without perturbation over their norm.
    """
    distance = np.linalg.norm(moments.mean() - reference, axis=1)
    return {
        "trace_pre": moments.trace("pre"),
        "trace_post": moments.trace("post"),
        "trace_pre_unbiased": moments.trace("pre", unbiased=True),
        "trace_post_unbiased": moments.trace("post", unbiased=True),
        "rel_dist": distance / np.maximum(np.linalg.norm(reference, axis=1), 1e-12),
        "passes": moments.passes.numpy().astype(np.float64),
    }


def reduced(snapshots: Mapping[int, Moments], reference: Floats, *, weighted: bool) -> dict[str, NDArray[Any]]:
    """Return a unit's result: columns ``T0064.trace_pre`` of every T; for weighted traces also mean and variance."""
    result = {f"T{t:04d}.{name}": v for t, m in snapshots.items() for name, v in columns(m, reference).items()}
    if weighted:
        last = snapshots[max(snapshots)]
        result |= {"mean_pre": last.mean(), "variance_pre": last.variance(unbiased=True)}
    return result


def shape_columns(features: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return the columns that need the features (T, N, D) of all passes."""
    kept = geometry(features)
    return {f"T{len(features):04d}.{name}": v for name, v in kept.items() if name not in _BY_DIMENSION}


def collect(arm: Arm, images: NDArray[np.int64], units: Iterable[tuple[Place, Arrays]]) -> ArmTable:
    """Put the results of an arm's units, in the order of their keys, into one table.

    Parameters
    ----------
    arm
        Which.
    images
        Shape (N,), the numbers of its images.
    units
        All of its units.
    """
    filled: dict[tuple[str, int], Floats] = {}
    per_dimension: dict[tuple[str, int], Floats] = {}
    reference: NDArray[Any] = np.zeros((images.size, 0), np.float32)
    for place, arrays in _whole_trials(arm, units):
        rows = slice(place.first, place.end)
        for name, values in arrays.items():
            found = _COLUMN.fullmatch(name)
            if found is not None:
                key = found[2], int(found[1])
                shape = (len(arm.seeds), images.size, *values.shape[1:])
                filled.setdefault(key, np.full(shape, np.nan))[place.trial, rows] = values
            elif name == "reference":
                reference = reference if reference.size else np.zeros((images.size, values.shape[1]), values.dtype)
                reference[rows] = values
            elif name in _BY_DIMENSION:
                whole = per_dimension.setdefault((name, place.trial), np.zeros((images.size, values.shape[1])))
                whole[rows] = values
    last = arm.passes[-1]
    for trial in range(len(arm.seeds)):
        if ("mean_pre", trial) in per_dimension:
            pair = (per_dimension.pop((name, trial)) for name in _BY_DIMENSION)
            made = filled["passes", last][trial]
            for name, values in weighted_traces(*pair).items():
                for column, kept in ((name, values), (f"{name}_biased", values * (made - 1) / made)):
                    filled.setdefault((column, last), np.full((len(arm.seeds), images.size), np.nan))[trial] = kept
    return ArmTable(arm, images, filled, reference)


def _whole_trials(arm: Arm, units: Iterable[tuple[Place, Arrays]]) -> Iterator[tuple[Place, Arrays]]:
    """Merge the moments of trials that were cut, in the order of their passes."""
    from tessera.mcdropout.moments import Moments

    running: Moments | None = None
    snapshots: dict[int, Moments] = {}
    for place, arrays in units:
        if "first_pre" not in arrays:
            yield place, arrays
            continue
        own = Moments.from_arrays({name: v for name, v in arrays.items() if name != "weighted"})
        running = own if place.start == 0 or running is None else running.merge(own)
        if place.stop in arm.passes:
            snapshots[place.stop] = running
        if place.stop == arm.passes[-1]:
            reference = running.pre.shift.numpy()
            result = reduced(snapshots, reference.astype(np.float64), weighted=bool(arrays["weighted"]))
            if place.trial == 0:
                result["reference"] = reference.astype(np.float32)
            yield place, result
            running, snapshots = None, {}
