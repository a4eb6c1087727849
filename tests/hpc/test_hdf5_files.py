"""Every HDF5 file is opened by the engine's helpers: a full disk is an error there, and no lock is asked for."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import CHECKOUT

from hpc import changed_hdf5, existing_hdf5, input_hdf5, new_hdf5

HELPERS = {"hpc/store/guarded.py": 2, "src/tessera/xpcs/hdf5_files.py": 1}
"""The only files that open HDF5 themselves, and in how many places; XPCS sets buffers that h5py does not offer."""

NO_FLOCK = r"""
#include <errno.h>
int flock(int fd, int op) { (void)fd; (void)op; errno = ENOLCK; return -1; }
"""


def openings(tree: ast.AST) -> int:
    """Count calls that open a file: of ``File`` with a path, and of ``h5f.open`` and ``h5f.create``."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            count += name == "File" and owner in ("", "h5py")
            count += name in ("open", "create") and owner in ("h5f", "h5py.h5f")
            inner = node.args[0] if node.args else None
            # File(h5f.open(...)) is one opening, not two.
            count -= name == "File" and isinstance(inner, ast.Call) and ast.unparse(inner.func).endswith("h5f.open")
    return count


def test_nobody_opens_hdf5_but_the_helpers():
    found = {}
    for root in ("hpc", "src"):
        for path in sorted((CHECKOUT / root).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "h5py" in text and (count := openings(ast.parse(text))):
                found[path.relative_to(CHECKOUT).as_posix()] = count
    assert found == HELPERS, "open HDF5 files with hpc.new_hdf5, changed_hdf5, existing_hdf5 or input_hdf5"


def test_the_search_finds_what_it_should():
    assert openings(ast.parse("import h5py\nh5py.File(p)\nh5py.File(p, 'w')")) == 2
    assert openings(ast.parse("from h5py import File\nFile(p)")) == 1
    assert openings(ast.parse("h5py.h5f.create(p); h5py.File(h5f.open(p))")) == 2
    assert openings(ast.parse("f: h5py.File\nopen(p)")) == 0


def fill(file):
    file.attrs["what"] = "test"
    file["group/numbers"] = np.arange(70_000.0)
    file.create_dataset("packed", data=np.ones((300, 300)), compression="gzip", fletcher32=True)


def test_content_and_format_are_what_h5py_itself_writes(tmp_path):
    with new_hdf5(tmp_path / "ours.h5") as file:
        fill(file)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        fill(file)
    versions = [(tmp_path / name).read_bytes()[:16] for name in ("ours.h5", "theirs.h5")]
    assert versions[0] == versions[1]  # the superblock: who reads h5py's files reads ours
    with changed_hdf5(tmp_path / "ours.h5") as file:
        del file["packed"]
        file["more"] = 3
    with existing_hdf5(tmp_path / "ours.h5") as file, h5py.File(tmp_path / "theirs.h5") as other:
        assert sorted(file) == ["group", "more"]
        assert file["group/numbers"][()].tobytes() == other["group/numbers"][()].tobytes()
    with input_hdf5(tmp_path / "theirs.h5") as file:
        assert file.attrs["what"] == "test"


WRITERS = {
    "fit.h5": """
from tessera.lsq.output import write_fit, read_fit
write = lambda path, arrays: write_fit(path, arrays, {"model": "m"})
""",
    "photometry.h5": """
from tessera.photometry.output import write_diagnostics
write = lambda path, arrays: write_diagnostics(path, {}, [("g", arrays)])
""",
    "xpcs.h5": """
from tessera.xpcs.fit_file import write_fit, read_fit
write = lambda path, arrays: write_fit(path, arrays, {})
""",
}

CHILD = """
import errno, resource, signal, sys
import numpy as np
from pathlib import Path
from hpc.store.atomic import write_atomically
from hpc.store import patience
{writer}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
patience._PASSING |= {{errno.EFBIG}}  # the answer to a file beyond the limit; it stands for the full disk
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
arrays = {{f"a{{k}}": np.random.default_rng(k).random(40_000) for k in range(12)}}
said = []
def full(text):
    said.append(text)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # somebody makes room
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), most))
path = Path(sys.argv[1])
patience.insist(lambda: write_atomically(path, lambda p: write(p, arrays)), 5.0, full)
print(len(said), path.stat().st_size)
"""


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("room", [700, 400_000])
def test_results_on_a_full_disk_are_written_when_there_is_room(tmp_path, name, room):
    child = CHILD.format(writer=WRITERS[name])
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path / name), str(room)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith("1 "), done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_no_file_is_locked(tmp_path):
    """On Lustre without -o flock, or NFS without lockd, a lock that is asked for is an error."""
    (tmp_path / "noflock.c").write_text(NO_FLOCK)
    library = tmp_path / "noflock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "noflock.c"], check=True)
    child = """
import sys, numpy as np
from pathlib import Path
from hpc import changed_hdf5, existing_hdf5, input_hdf5, new_hdf5
from tessera.xpcs.hdf5_files import open_file
path = Path(sys.argv[1])
with new_hdf5(path) as file: file["a"] = 1
with changed_hdf5(path) as file: file["b"] = 2
with existing_hdf5(path) as file: assert file["b"][()] == 2
with input_hdf5(path) as file: assert file["a"][()] == 1
with open_file(path) as file: assert file["a"][()] == 1
import h5py
try: h5py.File(path, "r")
except OSError: print("locks fail here")
"""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path / "a.h5")], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "locks fail here\n", done.stderr
