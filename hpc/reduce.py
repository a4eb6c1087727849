"""Sums whose bits do not depend on how many ranks took part.

Floating-point addition is not associative, so an MPI reduction changes with the number of ranks. Here the
chunks are the leaves of one fixed binary tree; each rank adds up the subtrees that lie wholly in its share.
Then the ranks join their shares in pairs, adding what has become whole, until rank 0 has the root. Pairwise
summation also keeps the error at O(log n).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc.job import Arrays

if TYPE_CHECKING:
    from hpc.ranks import Ranks

_Node = tuple[int, int]
_Sums = dict[str, NDArray[Any]]
_Share = tuple[range, dict[_Node, _Sums]]
"""A contiguous range of chunks, and the sums of the largest tree nodes in it."""


def sum_chunks(ranks: Ranks, n: int, mine: range, contributions: Iterable[Arrays]) -> _Sums:
    """Add the contributions of chunks 0 … n-1 over all ranks in the fixed tree order. Collective.

    Parameters
    ----------
    ranks
        The communicator.
    n
        Number of chunks over all ranks (> 0).
    mine
        The contiguous chunks this rank holds.
    contributions
        One mapping of arrays per chunk of ``mine``, in order; consumed one at a time, so at most log2(n)
        partial sums are held.

    Returns
    -------
    dict
        The sums, the same bits on every rank and for every number of ranks.

    Raises
    ------
    ValueError
        If there are no chunks at all or fewer contributions than chunks.
    """
    if n < 1:
        msg = "there are no chunks to sum"
        raise ValueError(msg)
    leaves = iter(contributions)
    nodes = {node: _subtree(node, leaves) for node in _maximal((0, n), mine)}

    def join(left: _Share, right: _Share) -> _Share:
        both = range(left[0].start, right[0].stop)
        known = left[1] | right[1]
        return both, {node: _finish(node, known) for node in _maximal((0, n), both)}

    whole = ranks.fold((mine, nodes), join)
    return ranks.bcast_arrays(whole[1][0, n] if whole is not None else None)


def _split(node: _Node) -> tuple[_Node, _Node]:
    low, high = node
    middle = (low + high) // 2
    return (low, middle), (middle, high)


def _maximal(node: _Node, mine: range) -> Iterator[_Node]:
    """Yield, from left to right, the largest tree nodes whose chunks are all in ``mine``."""
    low, high = node
    if high <= mine.start or low >= mine.stop:
        return
    if mine.start <= low and high <= mine.stop:
        yield node
        return
    for half in _split(node):
        yield from _maximal(half, mine)


def _subtree(node: _Node, leaves: Iterator[Arrays]) -> _Sums:
    if node[1] - node[0] == 1:
        try:
            return {k: np.asarray(v) for k, v in next(leaves).items()}
        except StopIteration:
            msg = f"no contribution for chunk {node[0]}: one is needed for each chunk this rank holds"
            raise ValueError(msg) from None
    left, right = _split(node)
    return _add(_subtree(left, leaves), _subtree(right, leaves))


def _finish(node: _Node, known: dict[_Node, _Sums]) -> _Sums:
    if node in known:
        return known[node]
    left, right = _split(node)
    return _add(_finish(left, known), _finish(right, known))


def _add(left: _Sums, right: _Sums) -> _Sums:
    if left.keys() != right.keys():
        msg = f"chunks contribute different arrays: {sorted(left)} and {sorted(right)}"
        raise ValueError(msg)
    return {k: np.asarray(left[k] + right[k]) for k in left}
