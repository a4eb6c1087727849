"""What readers raise on damaged files becomes an error of the workload; what ends the process passes."""

import os

import pytest

from tessera.input_files import explained, require_file
from tessera.xpcs.errors import SelectionError, XpcsFileError, XpcsInputError


class GaveUpError(BaseException):
    """As of a library in Rust."""


GaveUpError.__module__ = "pyo3_runtime"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("NAXIS1"), "a.fits cannot be read (KeyError: 'NAXIS1'); copy it"),
        (FileNotFoundError(2, "no"), "a.fits does not exist; copy it"),
        (MemoryError("8 TiB"), "a.fits asks for more memory than there is (8 TiB); copy it"),
        (
            UnicodeDecodeError("utf-8", b"a\xe9", 1, 2, "x"),
            "a.fits is no UTF-8 text (byte 0xe9; save it as UTF-8: iconv",
        ),
        (GaveUpError("no entry"), "a.fits cannot be read (GaveUpError: no entry); copy it"),
    ],
)
def test_whatever_a_reader_raises_names_the_file(error, said):
    with pytest.raises(XpcsFileError) as caught, explained("a.fits", "copy it", XpcsFileError):
        raise error
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("error", [SelectionError("said"), XpcsInputError("said"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_of_ours_and_the_end_of_the_process_pass(error):
    with pytest.raises(type(error)) as caught, explained("a.fits", "copy it", XpcsFileError):
        raise error
    assert caught.value is error


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(XpcsFileError, match=r"it is a named pipe, not a file\); give a file"):
        require_file(tmp_path / "pipe", "data", "give a file", XpcsFileError)
    with pytest.raises(XpcsFileError, match=r"data .*x… cannot be read|File name too long"):
        require_file(tmp_path / ("x" * 300), "data", "give a file", XpcsFileError)
