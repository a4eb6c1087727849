"""Files of points: what is not there, cut off, damaged or in too large chunks."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from lsq.points import X, Y, whole, write_hdf5

from tessera.lsq.errors import DataError
from tessera.lsq.files import Columns, Hdf5Source, csv_source, npy_source, open_source
from tessera.lsq.guard import Guarded


def test_hdf5_without_the_dataset_lists_what_is_there(tmp_path):
    path = write_hdf5(tmp_path / "d.h5")
    with pytest.raises(DataError, match=r"no z, q; it holds: a/u \(1037,\), a/v") as caught:
        Hdf5Source(path, Columns(("a/u", "z"), "y", "q"))
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="a is a group"):  # a group is no dataset
        Hdf5Source(path, Columns(("a",), "y"))


def test_hdf5_truncated_missing_or_none(tmp_path):
    path = write_hdf5(tmp_path / "d.h5")
    content = path.read_bytes()
    (tmp_path / "short.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"short.h5 cannot be read .*truncated .*copy it again"):
        open_source(tmp_path / "short.h5", Columns(("a/u",), "y"))
    (tmp_path / "none.h5").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="no HDF5 file"):
        open_source(tmp_path / "none.h5", Columns(("a/u",), "y"))
    with pytest.raises(DataError, match=r"absent.h5 does not exist; .* holds: d.h5"):
        open_source(tmp_path / "absent.h5", Columns(("a/u",), "y"))


def test_a_chunk_of_hdf5_larger_than_its_cache_is_decoded_once(tmp_path, bytes_read):
    path, m = tmp_path / "d.h5", 1_200_000
    noise = np.random.default_rng(4).normal(size=(m, 2))
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=noise, chunks=(m, 2), compression="lzf")
        file.create_dataset("y", data=noise[:, 0], chunks=(m,), compression="lzf")
    source, before = Hdf5Source(path, Columns(("x",), "y")), bytes_read()
    for index in range(source.n_chunks):
        chunk = source.read(index)
        np.testing.assert_array_equal(chunk.x[0], chunk.y)
    assert bytes_read() - before < 1.1 * path.stat().st_size


def test_hdf5_damaged_within_names_the_chunk(tmp_path):
    path = tmp_path / "d.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X[0], chunks=(100,), fletcher32=True)
        file.create_dataset("y", data=Y, chunks=(100,), fletcher32=True)
        place = file["y"].id.get_chunk_info(6).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 8] ^= 255
    path.write_bytes(bytes(content))
    source = Hdf5Source(path, Columns(("x",), "y"), chunk_size=100)
    source.read(5)
    with pytest.raises(DataError, match="chunk 6"):
        source.read(6)


def test_hdf5_with_a_filter_that_is_not_installed_names_it(tmp_path, store_with_filter):
    path = write_hdf5(tmp_path / "d.h5")
    store_with_filter(path, "y", 32999)
    with pytest.raises(DataError, match=r"d\.h5: y is compressed by filter 32999 .*HDF5_PLUGIN_PATH"):
        Hdf5Source(path, Columns(("a/u",), "y"))


def test_csv_says_what_is_wrong(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("t, y\n1,2\n2,oops\n")
    with pytest.raises(DataError, match=r"no q; it holds: t, y"):
        csv_source(path, Columns(("t",), "q"))
    with pytest.raises(DataError, match=r"not made of numbers .*oops"):
        csv_source(path, Columns(("t",), "y"))
    path.write_text("t,y\n1,2\n2,\n3,4\n")
    with pytest.raises(DataError, match=r"chunk 0 holds 1 points .* y at point 1"):
        whole(Guarded(csv_source(path, Columns(("t",), "y"))))


def test_npy_lists_what_is_there(tmp_path):
    np.save(tmp_path / "t.npy", Y)
    with pytest.raises(DataError, match="no y; it holds: t"):
        npy_source(tmp_path, Columns(("t",), "y"))
    np.save(tmp_path / "y.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"numpy.save"):
        npy_source(tmp_path, Columns(("t",), "y"))
