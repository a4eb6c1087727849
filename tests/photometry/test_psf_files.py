import numpy as np
import pytest
from astropy.io import fits

from tessera.photometry.errors import PsfFileError
from tessera.photometry.psf import PsfField
from tessera.photometry.psf_files import read_psf, write_grid
from tessera.photometry.psf_grids import Bilinear, Polynomial, gaussian, moffat_field, stamp_offsets
from tessera.photometry.psf_shape import width_of


def test_own_grid_reads_back_identically(tmp_path):
    rng = np.random.default_rng(1)
    field = PsfField(rng.normal(size=(6, 11, 11)), 3, Bilinear(np.array([1.5, 9.0, 77.25]), np.array([-2.0, 4.0])))
    write_grid(tmp_path / "p.fits", field, "r")
    back = read_psf(tmp_path / "p.fits")
    np.testing.assert_array_equal(back.stamps, field.stamps)
    assert back.oversampling == 3
    assert isinstance(back.basis, Bilinear)
    np.testing.assert_array_equal(back.basis.x, [1.5, 9.0, 77.25])
    np.testing.assert_array_equal(back.at(20, 1), field.at(20, 1))


def test_only_grids_are_written(tmp_path):
    with pytest.raises(ValueError, match="on a grid"):
        write_grid(tmp_path / "p.fits", moffat_field(3, 3, 21))


def test_stdpsf_reads_as_photutils_reads_it(tmp_path):
    from photutils.psf import GriddedPSFModel

    rng = np.random.default_rng(2)
    hdu = fits.PrimaryHDU(rng.uniform(0, 1, (6, 13, 13)))
    hdu.header["NXPSFS"], hdu.header["NYPSFS"] = 3, 2
    for i, x in enumerate((1, 101, 201), 1):
        hdu.header[f"IPSFX{i:02d}"] = x
    for i, y in enumerate((1, 51), 1):
        hdu.header[f"JPSFY{i:02d}"] = y
    hdu.writeto(tmp_path / "STDPSF_made.fits")
    ours = read_psf(tmp_path / "STDPSF_made.fits")
    theirs = GriddedPSFModel.read(tmp_path / "STDPSF_made.fits", format="stdpsf")
    np.testing.assert_allclose(ours.stamps, theirs.data)
    assert ours.oversampling == theirs.oversampling[0]
    np.testing.assert_allclose(np.unique(theirs.grid_xypos[:, 0]), ours.basis.x)
    np.testing.assert_allclose(np.unique(theirs.grid_xypos[:, 1]), ours.basis.y)


def psfex_file(path, samp=1.0, degree=1, size=25):
    step = stamp_offsets(size) * samp
    base = gaussian(step[None, :], step[:, None], 3.0)
    masks = np.stack([base * 7] + [0.05 * base * k for k in range(1, (degree + 1) * (degree + 2) // 2)])
    column = fits.Column("PSF_MASK", f"{masks.size}E", dim=f"({size},{size},{len(masks)})", array=masks[None])
    table = fits.BinTableHDU.from_columns([column])
    cards = {
        "POLNAXIS": 2, "POLNGRP": 1, "POLNAME1": "X_IMAGE", "POLNAME2": "Y_IMAGE", "POLZERO1": 101.0, "POLZERO2": 51.0,
        "POLSCAL1": 50.0, "POLSCAL2": 25.0, "POLDEG1": degree, "PSF_SAMP": samp,
    }  # fmt: skip
    table.header.update(cards)
    table.writeto(path)
    return masks


def test_psfex_positions_are_one_based_and_flux_is_normalised(tmp_path):
    masks = psfex_file(tmp_path / "a.psf").astype(np.float32)
    field = read_psf(tmp_path / "a.psf")
    assert isinstance(field.basis, Polynomial)
    # The constant term alone at 1-based (101, 51), which is 0-based (100, 50).
    expected = masks[0] / masks[0].sum(dtype=float)
    np.testing.assert_allclose(field.at(100, 50)[0], expected, rtol=1e-5)
    u, v = (130 + 1 - 101) / 50, (20 + 1 - 51) / 25
    expected = masks[0] + u * masks[1] + v * masks[2]
    np.testing.assert_allclose(field.at(130, 20)[0], expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("samp", [0.5, 0.7, 1.0])
def test_psfex_sampling_becomes_whole_oversampling(tmp_path, samp):
    psfex_file(tmp_path / "a.psf", samp, degree=0, size=41)
    field = read_psf(tmp_path / "a.psf")
    assert field.oversampling == round(1 / samp)
    half = field.stamps.shape[1] // 2
    offsets = np.arange(-half, half + 1) / field.oversampling
    truth = gaussian(offsets[None, :], offsets[:, None], 3.0)
    np.testing.assert_allclose(field.at(0, 0)[0], truth, atol=2e-3 * truth.max())


@pytest.mark.shared
def test_real_psfex_model_of_a_survey(shared):
    path = next((shared / "data" / "decam_r").glob("*psfex.fits"))
    field = read_psf(path)
    stamps = field.at([0, 140, 279], [0, 190, 374])
    np.testing.assert_allclose(stamps.sum(axis=(1, 2)), 1)
    assert field.stamps.shape == (6, 63, 63)
    rows, columns = np.indices((63, 63)) - 31
    for stamp in stamps:
        core = stamp * (np.hypot(rows, columns) < 12)
        # Round to a few per cent, centred, and of the width the survey's table gives (3.8 to 4.6 pixels).
        assert abs((core * columns).sum()) < 0.1
        assert abs((core * rows).sum()) < 0.1
        assert 3.6 < width_of(PsfField(stamp[None])) < 4.7


@pytest.mark.parametrize("damage", ["absent", "text", "image", "nan", "count"])
def test_files_that_are_no_psf_say_so(tmp_path, damage):
    path = tmp_path / "p.fits"
    if damage == "text":
        path.write_text("no PSF\n" * 500)
    elif damage == "image":
        fits.PrimaryHDU(np.zeros((5, 5))).writeto(path)
    elif damage in {"nan", "count"}:
        stamps = np.ones((2, 5, 5))
        stamps[1, 2, 2] = np.nan if damage == "nan" else 1
        x = np.array([0.0, 1.0])
        write_grid(path, PsfField(stamps if damage == "nan" else stamps[:1], 1, Bilinear(x, np.array([0.0]))))
    words = {
        "absent": "does not exist",
        "text": "cannot be read",
        "image": "no PSF model",
        "nan": "NaN",
        "count": "nodes",
    }
    with pytest.raises(PsfFileError, match=words[damage]) as caught:
        read_psf(path)
    assert str(path) in str(caught.value)
