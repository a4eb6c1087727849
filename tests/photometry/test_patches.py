import numpy as np
import pytest

from tessera.photometry.frames import FrameSet
from tessera.photometry.patches import cell_keys, cells_per_side, cut_patches, grid, patch_pixels
from tessera.photometry.select import Box
from tessera.photometry.sources import Sources


def sources_at(x, y):
    n, nan = len(x), np.full(len(x), np.nan)
    return Sources(x, y, np.zeros(n, int), np.full((n, 1), np.nan), nan, nan, nan, np.full(n, np.inf))


@pytest.mark.parametrize(("size", "margin"), [(160, 0), (37, 11), (1000, 0)])
def test_every_measured_source_is_owned_exactly_once(size, margin):
    rng = np.random.default_rng(1)
    shape = (310, 405)
    # Half of them on pixel borders, where a source could fall to two patches or to none.
    x = np.concatenate([rng.uniform(-20, 425, 2000), rng.integers(0, 405, 500) - 0.5])
    y = np.concatenate([rng.uniform(-20, 330, 2000), rng.integers(0, 310, 500) - 0.5])
    box = Box(margin, margin, shape[1] - margin, shape[0] - margin)
    measured = box.holds(x, y) & (rng.uniform(size=x.size) < 0.9)
    patches = cut_patches(box, size, 20, 29, sources_at(x, y), measured, shape)
    owned = np.concatenate([p.own for p in patches])
    np.testing.assert_array_equal(np.sort(owned), np.flatnonzero(measured))
    assert len({p.key for p in patches}) == len(patches)


def test_halo_holds_all_others_that_the_patch_sees_also_those_not_measured():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 300, 800), rng.uniform(0, 200, 800)
    box = Box(20, 20, 280, 180)
    measured = box.holds(x, y) & (rng.uniform(size=800) < 0.5)
    for patch in cut_patches(box, 60, 25, 10, sources_at(x, y), measured, (200, 300)):
        roi = patch.roi
        seen = np.flatnonzero(Box(roi.x0 - 10, roi.y0 - 10, roi.x1 + 10, roi.y1 + 10).holds(x, y))
        np.testing.assert_array_equal(np.sort(np.concatenate([patch.own, patch.halo])), seen)
        assert patch.roi.x0 == max(0, patch.base.x0 - 25)
        assert patch.roi.y1 == min(200, patch.base.y1 + 25)


def test_empty_patches_are_left_out_and_crowded_ones_cost_more():
    x = np.concatenate([np.full(30, 50.0), [350.0]])
    y = np.full(31, 50.0)
    patches = cut_patches(Box(0, 0, 400, 100), 100, 15, 5, sources_at(x, y), np.ones(31, bool), (100, 400))
    assert [p.key for p in patches] == ["r00_c00", "r00_c03"]
    assert patches[0].cost > 5 * patches[1].cost


def test_grid_tiles_the_box():
    boxes = grid(Box(3, 5, 104, 66), 7, 4)
    cover = np.zeros((66, 104), int)
    for row in boxes:
        for b in row:
            cover[b.y0 : b.y1, b.x0 : b.x1] += 1
    assert (cover[5:, 3:] == 1).all()
    assert cover.sum() == 101 * 61
    assert {b.width for row in boxes for b in row} == {14, 15}


def test_cells():
    assert cells_per_side(Box(0, 0, 1024, 1024), "auto") == 2
    assert cells_per_side(Box(0, 0, 9576, 6388), "auto") == 7
    assert cells_per_side(Box(0, 0, 100, 100), "auto") == 1
    assert cells_per_side(Box(0, 0, 100, 100), 5) == 5
    keys = cell_keys(["g", "r"], grid(Box(0, 0, 20, 20), 2, 2))
    assert len(keys) == 8
    assert keys["r/r01_c00"] == (1, Box(0, 10, 10, 20))


def test_pixels_of_a_patch_are_those_of_the_frame():
    image = np.arange(2 * 30 * 40, dtype=np.float32).reshape(2, 30, 40)
    frames = FrameSet(image, image + 1, np.zeros(image.shape, np.uint8), np.zeros((2, 4)))
    pixels = patch_pixels(frames, np.array([2.0, 3.0]), Box(5, 7, 12, 20))
    assert (pixels.x0, pixels.y0, pixels.image.shape) == (5, 7, (2, 13, 7))
    assert pixels.image[1, 0, 0] == image[1, 7, 5]
    assert np.shares_memory(pixels.image, image)
