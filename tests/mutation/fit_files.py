"""Files of the lsq job: columns in HDF5, NPY and CSV."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

POINTS = 300


def formats():
    from mutation.formats import Format

    made = {f"lsq HDF5{kind}": Format(partial(_hdf5, kind), _read) for kind in ("", " chunked", " new")}
    made["lsq NPY"] = Format(_npy, lambda path: _read(path.parent))
    made["lsq CSV"] = Format(_csv, _read)
    return made


def _columns():
    x = np.linspace(0, 1, POINTS)
    return {"x": x, "y": 2 * x + 1, "sigma": np.full(POINTS, 0.1)}


def _hdf5(kind: str, folder: Path) -> Path:
    import h5py

    path = folder / "d.h5"
    how = {"chunks": (64,), "compression": "gzip", "fletcher32": True} if kind == " chunked" else {}
    with h5py.File(path, "w", libver="latest" if kind == " new" else "earliest") as file:
        for name, values in _columns().items():
            file.create_dataset(name, data=values, **how)
    return path


def _npy(folder: Path) -> Path:
    (folder / "npy").mkdir()
    for name, values in _columns().items():
        np.save(folder / "npy" / f"{name}.npy", values)
    return folder / "npy" / "x.npy"


def _csv(folder: Path) -> Path:
    path = folder / "d.csv"
    rows = zip(*_columns().values(), strict=True)
    path.write_text("x,y,sigma\n" + "".join(",".join(f"{v:.6g}" for v in row) + "\n" for row in list(rows)[:40]))
    return path


def _read(path: Path) -> None:
    from tessera.lsq.files import Columns, open_source
    from tessera.lsq.guard import Guarded

    source = open_source(path, Columns(("x",), "y", "sigma"), chunk_size=100)
    if source.n_points < 3 * POINTS:
        guarded = Guarded(source, "omit")
        for chunk in range(guarded.n_chunks):
            guarded.read(chunk)
    if hasattr(source, "close"):
        source.close()
