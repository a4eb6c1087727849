"""From files to planes: every way in which a frame's numbers reach the fit."""

import numpy as np
import pytest
from astropy.io import fits
from photometry.made_frames import header, noise, tan_wcs, write_frame

from tessera.photometry.frames import BAD, SATURATED, FrameSet, Preparation, prepare_frame, reference_gains, sky_of
from tessera.photometry.headers import read_header
from tessera.photometry.image_list import FrameEntry, read_image_list
from tessera.photometry.options import BackgroundOptions, HeaderOptions, PlaneOptions

SHAPE = (80, 90)


def prepared(entry, headers=None, planes=None, background=None, zp_ref=25.0):
    head = read_header(entry, headers or HeaderOptions())
    memory = np.zeros(FrameSet.nbytes(1, head.shape), np.uint8)
    frames = FrameSet.over(memory, 1, head.shape)
    prepare_frame(
        head, 0, frames, Preparation(planes or PlaneOptions(), background or BackgroundOptions(), zp_ref, 1.3)
    )
    return frames, head


@pytest.mark.parametrize("how", ["float32", "float64", "int16 scaled", "rice", "gzip file", "extension"])
def test_pixel_values_survive_every_storage(tmp_path, how):
    image = np.round(noise() * 100) / 100 + 50
    path = tmp_path / ("a.fits.gz" if how == "gzip file" else "a.fits")
    head, wcs = header(wcs=tan_wcs()), tan_wcs()
    if how == "int16 scaled":
        hdu = fits.PrimaryHDU(image.copy(), head)
        hdu.scale("int16", bscale=0.01, bzero=60.0)
        hdu.writeto(path)
    elif how == "rice":
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, head, quantize_level=-0.01)]).writeto(path)
    elif how == "extension":
        other = fits.ImageHDU(np.zeros((5, 5)), name="OTHER")
        fits.HDUList([fits.PrimaryHDU(), other, fits.ImageHDU(image, head, name="SCI")]).writeto(path)
    else:
        write_frame(path, image.astype("f8" if how == "float64" else "f4"), wcs=wcs)
    frames, found = prepared(FrameEntry(path, extension="sci" if how == "extension" else None))
    np.testing.assert_allclose(frames.image[0], image, atol=0.011)
    assert frames.image.dtype.isnative
    assert found.shape == SHAPE


def test_scale_and_noise_go_to_the_reference_zero_point(tmp_path):
    image = noise()
    path = write_frame(tmp_path / "a.fits", image, ZP_AUTO=26.5, EGAIN=3.0, SKYSIG=2.0)
    frames, head = prepared(FrameEntry(path), zp_ref=24.0)
    scale = 10 ** (-0.4 * 2.5)
    np.testing.assert_allclose(frames.image[0], image * scale, rtol=1e-6)
    np.testing.assert_allclose(frames.sky_variance[0], (2.0 * scale) ** 2, rtol=1e-6)
    np.testing.assert_allclose(reference_gains([head], 24.0), 3.0 / scale)
    # Electrons are the same whatever the zero point: counts x gain.
    np.testing.assert_allclose(frames.image[0] * reference_gains([head], 24.0)[0], image * 3.0, rtol=1e-5)


def test_nan_and_saturated_pixels_are_marked_and_cost_only_themselves(tmp_path):
    image = noise()
    image[3, 4] = np.nan
    image[10, 12] = 800.0
    image[11, 12] = 760.0
    path = write_frame(tmp_path / "a.fits", image, SATURATE=1000.0)
    frames, _ = prepared(FrameEntry(path))
    assert frames.flags[0, 3, 4] == BAD
    assert frames.flags[0, 10, 12] == SATURATED
    assert frames.flags[0, 11, 12] == 0  # below 1000 / 1.3
    assert np.argwhere(~np.isfinite(frames.sky_variance[0])).tolist() == [[3, 4], [10, 12]]
    assert np.isfinite(frames.image).all()
    assert frames.measures[0].tolist() == [2.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["inverse_variance", "variance", "sigma"])
def test_weight_planes_of_every_kind_mean_the_same(tmp_path, kind):
    sigma = np.linspace(1, 3, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    plane = {"inverse_variance": sigma**-2.0, "variance": sigma**2, "sigma": sigma}[kind].astype(np.float32)
    plane[5, 6] = 0.0
    plane[7, 8] = -1e-12
    fits.PrimaryHDU(plane).writeto(tmp_path / "w.fits")
    entry = FrameEntry(write_frame(tmp_path / "a.fits", ZP_AUTO=27.5), weight=tmp_path / "w.fits")
    frames, _ = prepared(entry, planes=PlaneOptions(weight_kind=kind))
    good = np.isfinite(frames.sky_variance[0])
    assert np.argwhere(~good).tolist() == [[5, 6], [7, 8]]
    np.testing.assert_allclose(frames.sky_variance[0][good], (sigma[good] * 0.1) ** 2, rtol=1e-5)


def test_mask_bits(tmp_path):
    mask = np.zeros(SHAPE, np.int32)
    mask[1, 1], mask[2, 2], mask[3, 3] = 1, 2, 6
    fits.PrimaryHDU(mask).writeto(tmp_path / "m.fits")
    entry = FrameEntry(write_frame(tmp_path / "a.fits"), mask=tmp_path / "m.fits")
    everything, _ = prepared(entry)
    assert np.argwhere(everything.flags[0]).tolist() == [[1, 1], [2, 2], [3, 3]]
    some, _ = prepared(entry, planes=PlaneOptions(mask_bits=4))
    assert np.argwhere(some.flags[0]).tolist() == [[3, 3]]


def test_sky_is_measured_and_subtracted(tmp_path):
    ny, nx = 300, 320
    rows, columns = np.indices((ny, nx))
    sky = 500 + 0.05 * columns - 0.03 * rows
    rng = np.random.default_rng(3)
    image = (sky + rng.normal(0, 5, (ny, nx))).astype(np.float32)
    image[100:106, 100:106] += 4000  # a source that must not raise the sky
    image[0, 0] = np.nan
    path = write_frame(tmp_path / "a.fits", image, SKYSIG=None)
    frames, _ = prepared(FrameEntry(path), background=BackgroundOptions(subtract=True))
    # The mean of 64 x 64 pixels is known to 5 / 64 = 0.08; the median filter and spline add some at the edges.
    residual = frames.image[0] - (image - sky)
    residual[0, 0] = 0
    assert np.abs(residual).max() < 1.0
    assert abs(residual.mean()) < 0.1
    assert frames.sky_sigma[0] == pytest.approx(5, rel=0.03)
    assert frames.measures[0, 1] == pytest.approx(sky.mean(), rel=0.02)


def test_sky_of_a_field_full_of_light_is_still_finite():
    rng = np.random.default_rng(4)
    image = rng.gamma(1.0, 50.0, (100, 100)).astype(np.float32)
    level, sky, sigma = sky_of(image, np.zeros(image.shape, bool), 32, 3)
    assert np.isfinite(sky).all()
    assert level > 0
    assert sigma > 0


def test_header_values_by_key_by_number_and_by_the_list(tmp_path):
    path = write_frame(tmp_path / "a.fits", FILTER="r DECam SDSS", GAINA=3.7, ZP_AUTO=None, PEEING=None, SEEING=1.5)
    options = HeaderOptions(gain="GAINA", zero_point=26.0)
    head = read_header(FrameEntry(path), options)
    assert (head.band, head.gain, head.zero_point) == ("r", 3.7, 26.0)
    assert head.fwhm_pix == pytest.approx(1.5 / 0.5)  # arcsec through the pixel scale, not taken for pixels
    head = read_header(FrameEntry(path, values={"zero_point": 27.0, "band": "R2", "gain": 2.0}), options)
    assert (head.band, head.gain, head.zero_point) == ("R2", 2.0, 27.0)
    head = read_header(FrameEntry(path), HeaderOptions(gain=None, zero_point=None))
    assert (head.gain, head.zero_point) == (np.inf, None)


def test_image_list_reads_paths_planes_and_values(tmp_path):
    (tmp_path / "list.txt").write_text(
        "# frames\n\n one_ooi_r.fits zero_point=26.1 band=r # comment\n'two frames_ooi_.fits' mask=m.fits ext=2\n"
    )
    first, second = read_image_list(tmp_path / "list.txt", weight_replace=("_ooi_", "_oow_"))
    assert first.image == tmp_path / "one_ooi_r.fits"
    assert first.weight == tmp_path / "one_oow_r.fits"
    assert dict(first.values) == {"zero_point": 26.1, "band": "r"}
    assert second.image == tmp_path / "two frames_ooi_.fits"
    assert (second.mask, second.extension) == (tmp_path / "m.fits", 2)
