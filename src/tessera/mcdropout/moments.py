"""First and second moments of the features of one image over passes, and what follows from them.

Features are summed relative to the feature x0 with dropout off: with z_t = x_t - x0 the variance
``sum(z^2)/T - (sum(z)/T)^2`` cancels nothing even where the mean is thousands of standard deviations from zero (Chan,
Golub & LeVeque 1983, "Algorithms for computing the sample variance"), and x0 is itself wanted: the mean over passes is
compared with it. Sums of pass blocks add up, so work can be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Space: TypeAlias = Literal["pre", "post"]


@dataclass(slots=True)
class Sums:
    """Sums over passes of one kind of feature, relative to a shift.

    Attributes
    ----------
    shift
        (N, D), what every feature is taken relative to.
    first, second
        (N, D), sums of z and of z squared, z = feature - shift.
    """

    shift: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def empty(cls, shift: Tensor) -> Sums:
        """Start from nothing."""
        return cls(shift, torch.zeros_like(shift), torch.zeros_like(shift))

    def add(self, rows: Tensor | slice, features: Tensor) -> None:
        """Add one pass of the images `rows` (each at most once): (len(rows), D)."""
        z = features - self.shift[rows]
        self.first[rows] += z
        self.second[rows] += z * z

    def relative_to(self, shift: Tensor, passes: Tensor) -> Sums:
        """Return the same sums relative to another shift; passes (N,) is how many went in."""
        if torch.equal(shift, self.shift):
            return self
        step, count = self.shift - shift, passes[:, None].to(shift.dtype)
        return Sums(shift, self.first + count * step, self.second + 2 * step * self.first + count * step * step)

    def cpu(self) -> Sums:
        """Return a copy in host memory."""
        return Sums(*(part.detach().to("cpu", copy=True) for part in (self.shift, self.first, self.second)))


@dataclass(slots=True)
class Moments:
    """Moments of N images over the passes made so far.

    Attributes
    ----------
    passes
        (N,) int64: passes of each image; unequal where an image was stopped early.
    pre, post
        Of the features x as they come, and of x / |x|.
    """

    passes: Tensor
    pre: Sums
    post: Sums

    @classmethod
    def empty(cls, reference: Tensor, *, shifted: bool = True) -> Moments:
        """Start from nothing.

        Parameters
        ----------
        reference
            (N, D) features with dropout off; their dtype and device are those of the sums.
        shifted
            Sum relative to the reference; else to zero, as the original does.
        """
        pre, post = reference, functional.normalize(reference, dim=-1)
        if not shifted:
            pre, post = torch.zeros_like(pre), torch.zeros_like(post)
        return cls(torch.zeros(len(reference), dtype=torch.int64), Sums.empty(pre), Sums.empty(post))

    def add(self, rows: NDArray[np.int64], features: Tensor) -> None:
        """Add one pass.

        Parameters
        ----------
        rows
            Which of the N images, each at most once.
        features
            (len(rows), D), on the device of the sums.
        """
        features = features.to(self.pre.shift.dtype)
        where = torch.from_numpy(rows)
        self.passes[where] += 1
        places: Tensor | slice = where.to(features.device, non_blocking=True)
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
            places = slice(int(rows[0]), int(rows[-1]) + 1)
        self.pre.add(places, features)
        self.post.add(places, functional.normalize(features, dim=-1))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of passes; merge in a fixed order for equal bits.

        The references may differ, as they do by rounding between machines: the sums of `other` are moved to this one's.
        """
        passes = self.passes + other.passes
        parts = []
        for mine, others in ((self.pre, other.pre), (self.post, other.post)):
            moved = others.relative_to(mine.shift, other.passes)
            parts.append(Sums(mine.shift, mine.first + moved.first, mine.second + moved.second))
        return Moments(passes, *parts)

    def cpu(self) -> Moments:
        """Return a copy in host memory: a snapshot that further passes do not change."""
        return Moments(self.passes.clone(), self.pre.cpu(), self.post.cpu())

    def mean(self, space: Space = "pre") -> NDArray[np.float64]:
        """Return the mean over passes (N, D)."""
        sums = self._sums(space)
        return (sums.shift.double() + sums.first.double() / self._count()).numpy()

    def variance(self, space: Space = "pre", *, unbiased: bool = False) -> NDArray[np.float64]:
        """Return the variance of each dimension over passes (N, D).

        Parameters
        ----------
        space
            ``pre``: the features as they come. ``post``: normalised to length 1.
        unbiased
            Divide by T - 1; else by T, as the original's traces do. NaN for an image with too few passes.
        """
        return self._variance(space, unbiased=unbiased).numpy()

    def trace(self, space: Space = "pre", *, unbiased: bool = False) -> NDArray[np.float64]:
        """Return the mean over dimensions of `variance` (N,): the original's ``trace_pre`` and ``trace_post``."""
        variance = self._variance(space, unbiased=unbiased)
        # torch sums a row in the order in which the original does, so that traces can be compared bit for bit.
        return (variance.sum(dim=1) / float(variance.shape[1])).numpy()

    def _variance(self, space: Space, *, unbiased: bool) -> Tensor:
        sums, count = self._sums(space), self._count()
        mean = sums.first.double() / count
        variance = sums.second.double() / count - mean * mean
        return variance * (count / (count - 1)) if unbiased else variance

    def _sums(self, space: Space) -> Sums:
        return self.pre if space == "pre" else self.post

    def _count(self) -> Tensor:
        return self.passes[:, None].double()

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return everything as named arrays, for a checkpoint."""
        named: dict[str, NDArray[np.generic]] = {"passes": self.passes.numpy()}
        for space, sums in (("pre", self.pre), ("post", self.post)):
            for part in ("shift", "first", "second"):
                named[f"{part}_{space}"] = getattr(sums, part).cpu().numpy()
        return named

    @classmethod
    def from_arrays(cls, named: Mapping[str, NDArray[np.generic]]) -> Moments:
        """Undo `arrays`."""
        parts = [
            Sums(*(torch.from_numpy(np.array(named[f"{part}_{space}"])) for part in ("shift", "first", "second")))
            for space in ("pre", "post")
        ]
        return cls(torch.from_numpy(np.array(named["passes"])), *parts)


def effective_rank(features: Tensor) -> Tensor:
    """Estimate the effective rank (sum of eigenvalues)^2 / (sum of their squares) of each image's covariance.

    Parameters
    ----------
    features
        (T, N, D), T > 2 passes.

    Returns
    -------
    Tensor
        (N,) float64, inside [1, D]. The sum of squares is the unbiased one for normal features (Srivastava 2005, "Some
        tests concerning the covariance matrix in high dimensional data"): the plain one of T samples cannot show a
        rank above T - 1.
    """
    passes, _, width = features.shape
    z = features.double() - features.double().mean(0)
    gram = torch.einsum("tnd,snd->nts", z, z) / (passes - 1)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    squares = (gram * gram).sum((1, 2)) - trace * trace / (passes - 1)
    squares *= (passes - 1) ** 2 / ((passes - 2) * (passes + 1))
    rank = trace * trace / squares.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(squares > 0, rank, torch.full_like(rank, width)).clamp(1, width)


def trace_spread(rank: Tensor, passes: int) -> Tensor:
    """Return the relative standard deviation of a trace from T passes, ``sqrt(2 / ((T - 1) r))``.

    For normal features: the trace is a sum of chi-squared variables weighted with the eigenvalues of the covariance.
    """
    return torch.sqrt(2 / ((passes - 1) * rank))
