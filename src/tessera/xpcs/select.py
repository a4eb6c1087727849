"""Which wavevector, frames and angles of a file are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tessera.xpcs.errors import SelectionError

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class AngleRange:
    """A range of angles, deg, both ends included; ``min_angle > max_angle`` after wrapping means across ±180."""

    min_angle: float
    max_angle: float
    description: str = ""


DEFAULT_RANGES = (AngleRange(-10.0, 10.0), AngleRange(170.0, 190.0))
"""homodyne's: parallel and antiparallel to the flow."""


def wrap(angle: ArrayLike) -> NDArray[np.float64]:
    """Return angles in (-180, 180] deg."""
    turned = np.asarray(angle, np.float64) % 360.0
    return np.where(turned > 180.0, turned - 360.0, turned)


def in_ranges(phi: ArrayLike, ranges: Sequence[AngleRange]) -> NDArray[np.bool_]:
    """Say which angles lie in any of the ranges, all wrapped to (-180, 180] first.

    A range of 360 deg or more holds every angle.
    """
    angles = wrap(phi)
    chosen = np.zeros(angles.shape, bool)
    for given in ranges:
        if given.max_angle - given.min_angle >= 360.0:
            return np.ones(angles.shape, bool)
        low, high = float(wrap(given.min_angle)), float(wrap(given.max_angle))
        if low <= high:
            chosen |= (angles >= low) & (angles <= high)
        else:
            chosen |= (angles >= low) | (angles <= high)
    return chosen


def choose_angles(
    phi: NDArray[np.float64], ranges: Sequence[AngleRange], source: str, *, fallback: bool
) -> tuple[Indices, str]:
    """Return the indices of the angles in the ranges, and what is to be said about it.

    Parameters
    ----------
    phi
        Angles in the file, deg.
    ranges
        An angle in any of them is taken.
    source
        The file, for messages.
    fallback
        Whether all angles are taken if none lies in a range (homodyne's default).

    Raises
    ------
    SelectionError
        If no angle is left and ``fallback`` is false; the message lists the angles there are.
    """
    chosen = np.flatnonzero(in_ranges(phi, ranges))
    if chosen.size:
        return chosen, f"{chosen.size} of {phi.size} angles lie in the ranges of phi_filtering"
    wanted = ", ".join(f"{r.min_angle:g} … {r.max_angle:g}" for r in ranges) or "(none)"
    if fallback:
        note = f"no angle lies in {wanted} deg; all {phi.size} are used (phi_filtering.fallback_to_all_angles)"
        return np.arange(phi.size), note
    msg = (
        f"{source}: no angle lies in {wanted} deg; there are {_listed(phi)} deg. Change phi_filtering.target_ranges, "
        "or set phi_filtering.enabled to false"
    )
    raise SelectionError(msg)


def choose_wavevector(q_list: NDArray[np.float64], q: float, tolerance: float, source: str) -> Indices:
    """Return the indices of the wavevectors within a relative tolerance of the one nearest to ``q``.

    Parameters
    ----------
    q_list
        Wavevector of each matrix, 1/Å.
    q
        The one that is asked for, 1/Å.
    tolerance
        Relative; also how far the nearest may be from ``q``. With 0 only exactly equal ones are taken together.
    source
        The file, for messages.

    Raises
    ------
    SelectionError
        If the nearest is further away than 10 % (or the tolerance, if that is larger).
    """
    nearest = float(q_list[np.argmin(np.abs(q_list - q))])
    far = abs(nearest - q) / q
    if not far <= max(tolerance, _FAR):
        msg = (
            f"{source}: no wavevector near {q:g} 1/Å; the nearest is {nearest:g} 1/Å ({100 * far:.0f} % off). There "
            f"are {_listed(np.unique(q_list))} 1/Å: set job.analyzer_parameters.scattering.wavevector_q to one of them"
            f"{_unit_hint(q, nearest)}"
        )
        raise SelectionError(msg)
    return np.flatnonzero(np.abs(q_list - nearest) <= max(tolerance * nearest, _EXACT))


_FAR = 0.1
_EXACT = 1e-10
"""1/Å, below which wavevectors are the same (homodyne's)."""


def choose_frames(start_frame: int, end_frame: int, n_frames: int, source: str) -> tuple[int, int]:
    """Return the first frame and the one after the last, 0-based, of a 1-based inclusive range.

    Parameters
    ----------
    start_frame, end_frame
        1-based, both included; ``end_frame=-1`` is the last one.
    n_frames
        In the file.
    source
        The file, for messages.

    Raises
    ------
    SelectionError
        If the range leaves the file (homodyne cuts it off in silence) or holds fewer than four frames.
    """
    end = n_frames if end_frame == -1 else end_frame
    if not (1 <= start_frame <= n_frames and end <= n_frames):
        msg = (
            f"{source}: frames {start_frame} … {end_frame} are asked for and there are 1 … {n_frames}; correct "
            "job.analyzer_parameters.start_frame and end_frame (-1: the last)"
        )
        raise SelectionError(msg)
    if end - start_frame + 1 < _FEWEST:
        msg = (
            f"{source}: frames {start_frame} … {end} are {max(0, end - start_frame + 1)}; at least {_FEWEST} are "
            "needed: widen job.analyzer_parameters.start_frame … end_frame"
        )
        raise SelectionError(msg)
    return start_frame - 1, end


_FEWEST = 4
"""Frames: the first is dropped (t=0), and three make three independent pairs."""


def _listed(values: NDArray[np.float64], most: int = 12) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:most])
    return shown if values.size <= most else f"{shown}, … ({values.size} in all)"


def _unit_hint(q: float, nearest: float) -> str:
    """Name the usual mistake if that is what the numbers look like."""
    for factor, unit in ((10.0, "1/nm"), (1e10, "1/m")):
        if abs(q / factor / nearest - 1) < _FAR:
            return f". {q:g} looks like {unit}; wavevectors are in 1/Å here"
        if abs(q * factor / nearest - 1) < _FAR:
            return f". The file's list looks like {unit}; wavevectors must be in 1/Å"
    return ""
