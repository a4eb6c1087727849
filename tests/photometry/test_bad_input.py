"""Every kind of bad input has an error of its own that names the file or key, the cause and the remedy."""

import numpy as np
import pytest
from astropy.io import fits
from photometry.made_frames import image_list, job_for, noise, small_field, tan_wcs, write_catalog, write_frame

from hpc.context import Context
from hpc.errors import ConfigError, InputError


@pytest.fixture
def field(tmp_path):
    small_field(tmp_path)
    return tmp_path


def complaint(folder, **sections):
    """Return the message of `check`, or, where only the pixels tell, of `setup`."""
    job = job_for(folder, **sections)
    try:
        job.check()
        job.setup(Context(results_dir=folder))
    except InputError as error:
        return str(error)
    return pytest.fail("the input was accepted")


def catalog(folder, text):
    write_catalog(folder / "catalog.csv", text)
    return complaint(folder)


def test_the_field_itself_is_good(field):
    job = job_for(field)
    job.check()
    job.setup(Context(results_dir=field))
    assert job.field.active.all()


def test_missing_image_list(field):
    (field / "list.txt").unlink()
    assert "list.txt does not exist; set job.inputs.image_list_file" in complaint(field)


def test_empty_image_list(field):
    image_list(field / "list.txt", "# nothing", "")
    assert "list.txt names no frame" in complaint(field)


def test_binary_image_list(field):
    (field / "list.txt").write_bytes(bytes(range(128, 256)))
    assert "must be a text file" in complaint(field)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("g.fits weigth=w.fits", ("line 2", "'weigth=w.fits'", "weight")),
        ("g.fits gain=high", ("line 2", "gain='high' is not a number", "job.headers")),
        ("g.fits gain=1_000", ("line 2", "gain='1_000' is not a number", "job.headers")),
        ("g.fits gain=٢", ("line 2", "is not a number", "job.headers")),
        ("g.fits ext=²", ("²",)),
        ("'g.fits", ("line 2", "quot")),
    ],
)
def test_mistakes_in_the_image_list(field, line, words):
    image_list(field / "list.txt", "r.fits", line)
    message = complaint(field)
    assert all(word in message for word in words)


def test_missing_frame(field):
    (field / "r.fits").unlink()
    assert "r.fits does not exist; correct its line in the image list" in complaint(field)


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_truncated_frame(field, keep):
    content = (field / "r.fits").read_bytes()
    (field / "r.fits").write_bytes(content[: int(len(content) * keep)])
    message = complaint(field)
    assert "r.fits cannot be read" in message
    assert "truncated" in message
    assert "write it again" in message


def test_truncated_gzip_frame(field):
    write_frame(field / "z.fits.gz", band="z")
    content = (field / "z.fits.gz").read_bytes()
    (field / "z.fits.gz").write_bytes(content[: len(content) // 2])
    image_list(field / "list.txt", "r.fits", "z.fits.gz")
    assert "z.fits.gz cannot be read" in complaint(field)


@pytest.mark.parametrize("content", [b"", b"not a FITS file at all\n" * 200])
def test_frame_that_is_no_fits_file(field, content):
    (field / "r.fits").write_bytes(content)
    message = complaint(field)
    assert "r.fits cannot be read" in message
    assert "no FITS file" in message


def test_frame_without_an_image(field):
    fits.HDUList([fits.PrimaryHDU()]).writeto(field / "r.fits", overwrite=True)
    message = complaint(field)
    assert "r.fits has no two-dimensional image; images found: none. Set job.inputs.extension" in message


def test_extension_that_does_not_exist(field):
    message = complaint(field, inputs={"extension": "SCI"})
    assert "no two-dimensional image in extension 'SCI'; images found: 0 (PRIMARY)" in message


@pytest.mark.parametrize(("key", "option"), [("ZP_AUTO", "zero_point"), ("EGAIN", "gain")])
def test_missing_header_value(field, key, option):
    write_frame(field / "r.fits", band="r", **{key: None})
    message = complaint(field)
    assert f"r.fits has no {key} for the {option}; set job.headers.{option}" in message


def test_missing_filter(field):
    write_frame(field / "r.fits", band=None, FILTER=None)
    assert "r.fits has no FILTER that names its band; set job.headers.filter" in complaint(field)


@pytest.mark.parametrize("value", [0.0, -3.0])
@pytest.mark.parametrize(("key", "option"), [("EGAIN", "gain"), ("SKYSIG", "sky_sigma"), ("SATURATE", "saturation")])
def test_values_that_must_be_above_zero(field, key, option, value):
    write_frame(field / "r.fits", band="r", **{key: value})
    message = complaint(field)
    assert f"the {option} (key {key}) of frame" in message
    assert f"r.fits is {value:g} but must be above zero; correct it, or set job.headers.{option}" in message


def test_header_value_that_is_no_number(field):
    write_frame(field / "r.fits", band="r", ZP_AUTO="none")
    assert "r.fits is 'none', not a number" in complaint(field)


def test_two_frames_of_one_band(field):
    write_frame(field / "r.fits", band="g")
    message = complaint(field)
    assert "both have band g" in message
    assert "g.fits" in message
    assert "r.fits" in message


def test_frames_of_different_shape(field):
    write_frame(field / "r.fits", noise((80, 91)), "r", tan_wcs())
    message = complaint(field)
    assert "r.fits has 91x80 pixels but" in message
    assert "resample them first" in message


def test_frames_off_by_half_a_pixel(field):
    wcs = tan_wcs()
    wcs.wcs.crpix += [0.5, 0]
    write_frame(field / "r.fits", band="r", wcs=wcs)
    message = complaint(field)
    assert "r.fits are 0.5 pixels off those of" in message
    assert "job.checks.wcs_tolerance_pix=0.05" in message
    job_for(field, checks={"require_wcs_alignment": False}).check()


def test_one_frame_without_wcs(field):
    write_frame(field / "r.fits", band="r", wcs=None)
    message = complaint(field)
    assert "r.fits has no WCS but" in message
    assert "job.checks.require_wcs_alignment=false" in message


def test_no_wcs_and_no_pixel_positions(field):
    for band in "gr":
        write_frame(field / f"{band}.fits", band=band, wcs=None)
    message = complaint(field)
    assert "the frames have no WCS, and it has no pixel positions" in message
    assert "catalog.csv" in message


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_real_frames_on_three_pixel_grids(shared, tmp_path):
    folder = shared / "data" / "decam_grz"
    frames = sorted(p for p in folder.glob("*_ooi_*.fits") if "psfex" not in p.name)
    image_list(tmp_path / "list.txt", *(f"'{p}' zero_point=25" for p in frames))
    write_catalog(tmp_path / "catalog.csv", "ID,RA,DEC\n1,9.12322,3.39757\n")
    headers = {"gain": "GAINA", "saturation": "SATURATA"}
    message = complaint(tmp_path, headers=headers)
    assert "pixel" in message
    assert "resample" in message
    assert any(p.name in message for p in frames)


def test_frame_of_nothing_but_nan(field):
    write_frame(field / "r.fits", np.full((80, 90), np.nan, np.float32))
    assert "r.fits holds nothing but NaN" in complaint(field)


def test_frame_without_a_usable_pixel(field):
    write_frame(field / "r.fits", band="r", SATURATE=1e-9, SKYSIG=2.0)
    write_frame(field / "r.fits", noise() + 100, band="r", SATURATE=50.0)
    assert "r.fits has no usable pixel" in complaint(field)


def test_missing_plane(field):
    image_list(field / "list.txt", "g.fits", "r.fits weight=w.fits")
    assert "w.fits of frame" in complaint(field)


def test_plane_of_another_shape(field):
    fits.PrimaryHDU(np.ones((9, 9), np.float32)).writeto(field / "w.fits")
    image_list(field / "list.txt", "g.fits", "r.fits weight=w.fits")
    message = complaint(field)
    assert "w.fits has 9x9 pixels but its frame has 90x80" in message


def test_plane_replacement_that_does_not_fit(field):
    message = complaint(field, planes={"weight_replace": ["_ooi_", "_oow_"]})
    assert "job.planes.weight_replace replaces '_ooi_'" in message


def test_missing_catalog(field):
    (field / "catalog.csv").unlink()
    assert "catalog.csv does not exist; set job.inputs.input_catalog" in complaint(field)


def test_catalog_without_rows(field):
    assert "catalog.csv holds no source" in catalog(field, "ID,RA,DEC\n")


def test_catalog_without_positions(field):
    message = catalog(field, "ID,MAG\na,1\n")
    assert "it has neither RA, DEC nor x_pix, y_pix" in message
    assert "its columns are ID, MAG" in message


def test_catalog_that_is_no_table(field):
    assert "catalog.csv cannot be read" in catalog(field, "ID,RA,DEC\n1,2,3,4,5\n6\n")


def test_catalog_column_of_text(field):
    assert "column RA of catalog" in catalog(field, "ID,RA,DEC\n1,150h,2\n2,x,2\n")


@pytest.mark.parametrize("row", ["b,,2.0", "b,nan,2.0", "b,150.0,91", "b,150.0,"])
def test_positions_that_are_no_positions_name_the_row(field, row):
    message = catalog(field, f"ID,RA,DEC\na,150.0,2.0\n{row}\nc,150.0,2.0\n")
    assert "RA, DEC is missing or no valid number in 1 of 3 rows (row 2)" in message


def test_duplicate_ids(field):
    message = catalog(field, "ID,RA,DEC\na,150.0,2.0\nb,150.0,2.0\na,150.001,2.0\n")
    assert "1 IDs come more than once, e.g. 'a' in rows 1, 3" in message


def test_empty_id(field):
    assert "ID is missing" in catalog(field, 'ID,RA,DEC\na,150.0,2.0\n"",150.0,2.0\n')


def test_column_mapping_to_nowhere(field):
    message = complaint(field, inputs={"columns": {"RA": "alpha"}})
    assert "no column 'alpha', which job.inputs.columns.RA names; it has ID, RA, DEC, TYPE" in message


def test_all_sources_off_the_frame(field):
    message = catalog(field, "ID,RA,DEC\na,10.0,2.0\nb,150.0,-60.0\nc,330.0,-2.0\n")
    assert "none of the 3 sources of catalog" in message


def test_some_sources_off_the_frame_are_flagged_not_fatal(field):
    with (field / "catalog.csv").open("a") as file:
        file.write("far,330.0,-2.0,STAR\nnear,150.0,2.3,STAR\n")
    job = job_for(field)
    job.check()
    job.setup(Context(results_dir=field))
    assert job.field.selection.excluded_crop.tolist() == [False] * 3 + [True] * 2


def test_crop_that_leaves_nothing(field):
    assert "job.crop.margin=500 leaves nothing" in complaint(field, crop={"margin": 500})


def test_psf_file_that_is_missing(field):
    files = {"g": str(field / "g.psf"), "r": str(field / "r.psf")}
    assert "g.psf does not exist" in complaint(field, epsf={"source": "file", "files": files})


def test_band_without_a_psf_file(field):
    message = complaint(field, epsf={"source": "file"})
    assert "epsf.source is file but band g has no PSF file" in message


def test_psf_file_for_a_band_that_no_frame_has(field):
    message = complaint(field, epsf={"source": "file", "files": {"i": "x.psf"}})
    assert "names bands i, which no frame has; the bands are g, r" in message


def test_psf_file_of_another_kind(field):
    files = {band: str(field / "r.fits") for band in "gr"}
    assert "is no PSF model that can be read" in complaint(field, epsf={"source": "file", "files": files})


def test_options_that_contradict_each_other(field):
    with pytest.raises(ConfigError, match="cutout_size must be odd"):
        job_for(field, epsf={"cutout_size": 60})
    with pytest.raises(ConfigError, match="final_psf_size 71 is larger than cutout_size 61"):
        job_for(field, epsf={"final_psf_size": 71})
    with pytest.raises(ConfigError, match="files are given but source is 'build'"):
        job_for(field, epsf={"source": "build", "files": {"g": "x"}})


def test_a_missing_truth(field):
    message = complaint(field, inputs={"truth": str(field / "nowhere.csv")})
    assert "job.inputs.truth names" in message
    assert "nowhere.csv" in message
