import numpy as np
import pytest

from tessera.photometry.frames import FrameSet
from tessera.photometry.stages import display_step
from tessera.photometry.white import row_chunks, white_rows


@pytest.fixture
def frames():
    rng = np.random.default_rng(1)
    shape = (3, 130, 40)
    variance = rng.uniform(1, 9, shape).astype(np.float32)
    variance[rng.uniform(size=shape) < 0.3] = np.inf
    variance[:, 17, 5] = np.inf
    image = rng.normal(0, 1, shape).astype(np.float32)
    return FrameSet(image, variance, np.zeros(shape, np.uint8), np.zeros((3, 4)))


def test_white_is_the_weighted_mean_of_the_good_bands(frames):
    white, sigma = white_rows(frames, 0, 130)
    weight = np.where(np.isfinite(frames.sky_variance), 1 / frames.sky_variance, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (weight * frames.image).sum(0) / weight.sum(0)
        expected_sigma = weight.sum(0) ** -0.5
    np.testing.assert_allclose(white, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(sigma, expected_sigma, rtol=1e-6)
    assert np.isnan(white[17, 5])
    assert np.isinf(sigma[17, 5])


def test_chunks_and_threads_change_no_bit(frames):
    whole = white_rows(frames, 0, 130)
    for workers in (1, 3):
        parts = [white_rows(frames, first, end, workers) for first, end in row_chunks(130)]
        for k in range(2):
            np.testing.assert_array_equal(np.concatenate([p[k] for p in parts]), whole[k])


@pytest.mark.parametrize("height", [1, 63, 64, 65, 1000, 6388, 20000])
def test_chunks_cover_every_row_once(height):
    rows = np.concatenate([np.arange(first, end) for first, end in row_chunks(height)])
    np.testing.assert_array_equal(rows, np.arange(height))


@pytest.mark.parametrize(
    ("setting", "shape", "step"), [("auto", (1500, 90), 1), ("auto", (900, 3001), 3), (4, (100, 100), 4)]
)
def test_the_display_has_at_most_1500_pixels_to_a_side(setting, shape, step):
    assert display_step(setting, shape) == step
