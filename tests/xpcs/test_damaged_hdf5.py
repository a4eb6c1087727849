"""HDF5 files that declare more than they hold, or whose data lie in other files, are refused before anything is read."""

import h5py
import numpy as np
import pytest

from tessera.hdf5_sound import sound_dataset
from tessera.lsq.errors import DataError
from tessera.lsq.files import Columns, open_source
from tessera.xpcs.errors import XpcsFileError
from tessera.xpcs.load import Selection, load


def other_file(file, name):
    with h5py.File(file.filename.replace("a.h5", "b.h5"), "w") as other:
        other["x"] = np.ones(4)
    file[name] = h5py.ExternalLink("b.h5", "/x")


def external_storage(file, name):
    path = file.filename.replace("a.h5", "x.bin")
    np.ones(4).tofile(path)
    file.create_dataset(name, (4,), "f8", external=[(path, 0, 32)])


def view_of_another(file, name):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("b.h5", "x", (4,))
    file.create_virtual_dataset(name, layout)


def ring(file, name):
    file[name], file["z"] = h5py.SoftLink("/z"), h5py.SoftLink(f"/{name}")


REFUSED = {
    "a link to another file": other_file,
    "stored in another file": external_storage,
    "a view of other files": view_of_another,
    "lead in a ring": ring,
    "is not there": lambda file, name: file.__setitem__(name, h5py.SoftLink("/nowhere")),
    "is a group": lambda file, name: file.create_group(name),
    "no dataspace": lambda file, name: file.__setitem__(name, h5py.Empty("f8")),
    "real numbers are needed": lambda file, name: file.__setitem__(name, np.array([b"a"] * 4)),
    "declares": lambda file, name: file.create_dataset(name, (1 << 50,), "f8", chunks=(1 << 20,)),
    "never written": lambda file, name: file.create_dataset(name, (4,), "f8", chunks=(4,)),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_trusted_is_named(tmp_path, said):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        REFUSED[said](file, "x")
        file["y"] = np.ones(4)
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(XpcsFileError, match=rf"a\.h5: x .*{said}"):
        sound_dataset(file, "x", XpcsFileError)
    with pytest.raises(DataError, match=f"x .*{said}"):
        open_source(tmp_path / "a.h5", Columns(("x",), "y"))


def test_links_within_a_file_are_followed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/x"], file["deep/y"] = np.arange(4.0), np.ones(4)
        file["here"] = h5py.SoftLink("/deep")
        file["deep/also"] = h5py.SoftLink("x")
    source = open_source(tmp_path / "a.h5", Columns(("here/also",), "here/y"))
    np.testing.assert_array_equal(source.read(0).x, np.arange(4.0))


def test_matrices_of_exabytes_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["xpcs/dqlist"], file["xpcs/dphilist"] = np.full(1, 0.01), np.zeros(1)
        file.create_dataset("exchange/C2T_all/g2_00000", (1 << 31, 1 << 31), "f8", chunks=(64, 64))
    with pytest.raises(XpcsFileError, match="32 EiB, in a file of"):
        load(tmp_path / "a.h5", Selection(dt=0.1))
