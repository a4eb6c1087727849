import numpy as np
import pytest
from photometry.fit_scenes import HALF, Moffat, draw

from tessera.photometry.profiles import shape_parameters
from tessera.photometry.psf import PsfField
from tessera.photometry.render import Renderer
from tessera.photometry.sources import DEV, EXP, STAR

SIZE = (80, 84)
NO_SHAPE = np.zeros(3)


def renderer(fields, x=40.0, y=40.0, size=SIZE, origin=(0, 0)):
    return Renderer(fields, np.array([x]), np.array([y]), *origin, size)


def on_frame(stamp, k=0, band=0, size=SIZE):
    frame = np.zeros(size)
    frame[stamp.rows, stamp.cols] = stamp.maps[band, k]
    return frame


@pytest.mark.parametrize(("fwhm", "oversampling"), [(3.2, 4), (4.8, 2), (1.4, 4), (1.4, 6), (3.6, 1)])
@pytest.mark.parametrize(("x", "y"), [(40.0, 40.0), (40.37, 39.51), (39.5, 40.5)])
def test_a_star_is_the_psf_at_the_pixels(fwhm, oversampling, x, y):
    psf = Moffat(fwhm)
    stamp = renderer([psf.field(oversampling)]).draw(0, STAR, x, y, NO_SHAPE, False)
    truth = draw(psf, x, y, SIZE)
    inside = np.abs(on_frame(stamp) - truth)[11:70, 11:70]
    # A native sampling at FWHM 3.6 leaves out what is beyond its Nyquist frequency.
    assert inside.max() < (2e-3 if oversampling == 1 else 2e-4) * truth.max()


@pytest.mark.parametrize("theta", [0.0, 35.0])
def test_a_galaxy_is_the_disk_seen_through_the_psf(theta):
    psf = Moffat(3.2)
    shape = shape_parameters(3.0, 0.4, theta)
    stamp = renderer([psf.field()]).draw(0, EXP, 40.3, 39.6, shape, False)
    truth = draw(psf, 40.3, 39.6, SIZE, (3.0, 0.4, theta))
    assert np.abs(on_frame(stamp) - truth)[12:69, 12:69].max() < 5e-4 * truth.max()
    assert on_frame(stamp).sum() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind", [STAR, EXP, DEV])
@pytest.mark.parametrize("fwhm", [1.6, 4.0])
def test_derivatives_are_those_of_the_picture(kind, fwhm):
    at = renderer([Moffat(fwhm).field()])
    shape = shape_parameters(2.5, 0.6, 25.0)
    stamp = at.draw(0, kind, 40.3, 39.6, shape, kind != STAR, 48)
    step = 2e-2

    def picture(values):
        return on_frame(at.draw(0, kind, values[0], values[1], values[2:], False, 48))

    start = np.array([40.3, 39.6, *shape])
    assert stamp.maps.shape[1] == (3 if kind == STAR else 6)
    for k in range(stamp.maps.shape[1] - 1):
        move = np.zeros(5)
        move[k] = step
        # Fourth order, so that a step can be large beside single-precision rounding.
        numeric = 8 * (picture(start + move) - picture(start - move))
        numeric -= picture(start + 2 * move) - picture(start - 2 * move)
        numeric /= 12 * step
        assert np.abs(on_frame(stamp, k + 1) - numeric).max() < 1e-3 * np.abs(numeric).max()


def test_the_edge_of_the_patch_cuts_the_picture():
    at = renderer([Moffat(3.5).field()])
    cut = renderer([Moffat(3.5).field()], size=(30, 25), origin=(30, 20))
    whole = on_frame(at.draw(0, STAR, 40.2, 39.9, NO_SHAPE, False))
    part = on_frame(cut.draw(0, STAR, 40.2, 39.9, NO_SHAPE, False), size=(30, 25))
    np.testing.assert_allclose(part, whole[20:50, 30:55], atol=1e-7)


def test_a_source_far_outside_covers_no_pixel():
    stamp = renderer([Moffat(3.5).field()], x=-200.0).draw(0, STAR, -200.0, 40.0, NO_SHAPE, False)
    assert stamp.maps.size == 0


class Halves:
    """Two stamps, mixed along x."""

    def weights(self, x, y):
        part = np.clip(np.atleast_1d(x) / 80, 0, 1)
        return np.column_stack([1 - part, part, 0 * part])


def test_a_varying_psf_is_mixed_at_the_source():
    stamps = np.concatenate([Moffat(f).field().stamps for f in (3.0, 4.0, 9.0)])
    at = renderer([PsfField(stamps, 4, Halves())], x=20.0)
    expected = 0.75 * draw(Moffat(3.0), 20.0, 40.0, SIZE) + 0.25 * draw(Moffat(4.0), 20.0, 40.0, SIZE)
    got = on_frame(at.draw(0, STAR, 20.0, 40.0, NO_SHAPE, False))
    assert np.abs(got - expected)[12:69, :49].max() < 2e-4 * expected.max()


def test_bands_of_different_sampling_and_size_are_drawn_together():
    fields = [Moffat(1.5).field(5, HALF), Moffat(4.0).field(1, 20), Moffat(3.0).field(3, 25)]
    stamp = renderer(fields).draw(0, STAR, 40.3, 39.6, NO_SHAPE, False)
    for band, fwhm in enumerate((1.5, 4.0, 3.0)):
        truth = draw(Moffat(fwhm), 40.3, 39.6, SIZE)
        inner = np.abs(on_frame(stamp, band=band) - truth)[24:56, 24:56]
        assert inner.max() < 1e-3 * truth.max()


def test_a_galaxys_box_never_shrinks_below_the_last_one():
    at = renderer([Moffat(3.5).field()])
    large = at.draw(0, EXP, 40.0, 40.0, shape_parameters(6.0, 0.9, 0.0), False)
    small = at.draw(0, EXP, 40.0, 40.0, shape_parameters(1.0, 0.9, 0.0), False, large.half)
    assert large.half == small.half > HALF
