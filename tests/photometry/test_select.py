import numpy as np
import pytest

from tessera.photometry.errors import PhotometryInputError
from tessera.photometry.frames import BAD, SATURATED, FrameSet
from tessera.photometry.select import Box, Selection, crop_box, near_saturated, require_sources
from tessera.photometry.sources import Sources


def sources_at(x, y):
    n, nan = len(x), np.full(len(x), np.nan)
    return Sources(
        np.asarray(x, float), np.asarray(y, float), np.zeros(n, int), np.full((n, 1), np.nan), nan, nan, nan,
        np.full(n, np.inf),
    )  # fmt: skip


def frames_with(flags):
    zeros = np.zeros(flags.shape, np.float32)
    return FrameSet(zeros, zeros, flags, np.zeros((len(flags), 4)))


def test_saturation_cut_is_exactly_any_saturated_pixel_within_the_radius():
    rng = np.random.default_rng(2)
    flags = np.zeros((2, 60, 70), np.uint8)
    flags[rng.uniform(size=flags.shape) < 0.003] = SATURATED
    flags[rng.uniform(size=flags.shape) < 0.05] |= BAD  # bad pixels are not saturated ones
    x, y = rng.uniform(-5, 75, 200), rng.uniform(-5, 65, 200)
    rows, columns = np.indices(flags.shape[1:])
    expected = np.array(
        [
            [((np.hypot(columns - a, rows - b) <= 6.0) & (f & SATURATED > 0)).any() for a, b in zip(x, y, strict=True)]
            for f in flags
        ]
    )
    frames, sources = frames_with(flags), sources_at(x, y)
    assert expected.any(0).any()
    assert not expected.any(0).all()
    np.testing.assert_array_equal(near_saturated(frames, sources, 6.0), expected.any(0))
    np.testing.assert_array_equal(near_saturated(frames, sources, 6.0, require_all_bands=True), expected.all(0))


def test_no_saturated_pixel_excludes_nothing():
    assert not near_saturated(frames_with(np.zeros((1, 9, 9), np.uint8)), sources_at([4, -np.inf], [4, 2]), 20).any()


def test_boxes_are_half_open_so_that_neighbours_share_no_position():
    left, right = Box(0, 0, 10, 10), Box(10, 0, 20, 10)
    x = np.array([-0.5, 9.49, 9.5, 19.49, 19.5])
    np.testing.assert_array_equal(left.holds(x, np.zeros(5)), [True, True, False, False, False])
    np.testing.assert_array_equal(right.holds(x, np.zeros(5)), [False, False, True, True, False])


def test_crop_that_leaves_nothing_says_so():
    assert crop_box((100, 80), 10) == Box(10, 10, 70, 90)
    with pytest.raises(PhotometryInputError, match=r"margin=40 leaves nothing of frames of 80x100 .* smaller"):
        crop_box((100, 80), 40)


def test_no_source_left_names_the_reason():
    none, all_ = np.zeros(3, bool), np.ones(3, bool)
    with pytest.raises(PhotometryInputError, match=r"none of the 3 sources of catalog c\.csv lies on the frame"):
        require_sources(Selection(all_, none), "c.csv", Box(0, 0, 9, 9))
    with pytest.raises(PhotometryInputError, match=r"0 are off the frame and 3 near saturated pixels"):
        require_sources(Selection(none, all_), "c.csv", Box(0, 0, 9, 9))
    require_sources(Selection(none, none), "c.csv", Box(0, 0, 9, 9))
