"""Angles wrap at ±180 deg; the diagonal is replaced as homodyne does it."""

import numpy as np
import pytest

from tessera.xpcs.diagonal import corrected
from tessera.xpcs.errors import SelectionError
from tessera.xpcs.select import DEFAULT_RANGES, AngleRange, choose_angles, in_ranges, wrap


def test_angles_wrap_to_one_turn():
    np.testing.assert_array_equal(wrap([210, -210, 180, -180, 360, 540, 0]), [-150, 150, 180, 180, 0, 180, 0])


@pytest.mark.parametrize(
    ("low", "high", "inside"),
    [
        (85, 95, [90]),
        (-10, 10, [-5, 0]),
        (170, 190, [175, -175, 180]),
        (350, 370, [-5, 0]),
        (170, -170, [175, -175, 180]),
        (-180, 180, [90, -5, 0, 175, -175, 180]),
        (0, 360, [90, -5, 0, 175, -175, 180]),
    ],
)
def test_a_range_may_cross_the_cut(low, high, inside):
    angles = np.array([90, -5, 0, 175, -175, 180])
    np.testing.assert_array_equal(angles[in_ranges(angles, [AngleRange(low, high)])], inside)


def test_default_ranges_are_along_the_flow():
    angles = np.arange(-180.0, 180.0, 5)
    chosen, note = choose_angles(angles, DEFAULT_RANGES, "file", fallback=False)
    np.testing.assert_array_equal(angles[chosen], [-180, -175, -170, -10, -5, 0, 5, 10, 170, 175])
    assert note.startswith("10 of 72")


def test_nothing_left_is_an_error_unless_all_are_wanted_then():
    angles = np.array([40.0, 60.0])
    with pytest.raises(SelectionError, match="there are 40, 60 deg"):
        choose_angles(angles, DEFAULT_RANGES, "file", fallback=False)
    chosen, note = choose_angles(angles, DEFAULT_RANGES, "file", fallback=True)
    assert chosen.tolist() == [0, 1]
    assert "all 2 are used" in note


def homodyne_diagonal(c2: np.ndarray, method: str) -> np.ndarray:
    """homodyne's loops, element by element (core/diagonal_correction.py)."""
    n = len(c2)
    out = c2.copy()
    for i in range(n):
        if method == "statistical":
            offsets = range(1, min(4, n))
            near = [c2[i - o, i] for o in offsets if i >= o] + [c2[i, i - o] for o in offsets if i >= o]
            near += [c2[i + o, i] for o in offsets if i + o < n] + [c2[i, i + o] for o in offsets if i + o < n]
            out[i, i] = np.median(near)
        else:
            near = [c2[i - 1, i]] if i > 0 else []
            near += [c2[i + 1, i]] if i + 1 < n else []
            out[i, i] = np.mean(near)
    return out


@pytest.mark.parametrize("method", ["basic", "statistical", "interpolation"])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_diagonal_is_replaced_as_in_homodyne(method, n):
    c2 = np.random.default_rng(n).normal(size=(n, n))
    c2 += c2.T
    np.testing.assert_allclose(corrected(c2, method), homodyne_diagonal(c2, method), rtol=1e-14)
