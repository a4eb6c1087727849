"""Files of the XPCS fit: HDF5 of both layouts, homodyne's caches and configurations."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path

import numpy as np

N, T = 3, 16


def formats():
    from mutation.formats import Format

    made = {f"XPCS {kind}": Format(partial(_hdf5, kind), _read) for kind in ("old", "APS-U", "chunked")}
    made["XPCS NPZ"] = Format(partial(_cache, compression=True), _read)
    made["XPCS NPZ stored"] = Format(partial(_cache, compression=False), _read)
    made["homodyne YAML"] = Format(_homodyne, _read_homodyne)
    return made


def _matrices():
    raw = np.random.default_rng(2).uniform(1, 1.3, (N, T, T))
    return (raw + raw.transpose(0, 2, 1)) / 2


def _hdf5(kind: str, folder: Path) -> Path:
    from tessera.xpcs.write_files import write_aps_old, write_aps_u

    path, phi = folder / "c.h5", np.arange(N) * 10.0
    if kind == "old":
        write_aps_old(path, _matrices(), phi, np.full(N, 0.01))
    else:
        write_aps_u(path, _matrices(), phi, np.array([0.01]), compression="gzip" if kind == "chunked" else None)
    return path


def _cache(folder: Path, *, compression: bool) -> Path:
    from tessera.xpcs.npz_cache import write_cache

    path = folder / "c.npz"
    write_cache(path, _matrices(), np.arange(N) * 10.0, np.arange(T) * 0.1, 0.01, compression=compression)
    return path


def _read(path: Path) -> None:
    from tessera.xpcs.load import Selection, load

    data = load(path, Selection(dt=None if path.suffix == ".npz" else 0.1))
    for angle in range(data.rows.n_phi):
        data.matrix(angle)
    assert data.rows.n_t >= 3


HOMODYNE = """
metadata: {version: "2.0"}
analysis_mode: laminar_flow
analyzer_parameters:
  dt: 0.1
  start_frame: 1
  end_frame: -1
  scattering: {wavevector_q: 0.0054}
  geometry: {stator_rotor_gap: 2000000}
experimental_data: {file_path: "a.h5", data_type: aps}
initial_parameters:
  parameter_names: [D0, alpha, D_offset, gamma_dot_t0, beta, gamma_dot_t_offset, phi0]
  values: [100.0, -0.5, 10.0, 0.001, 0.5, 0.0, 0.0]
  active_parameters: [D0, alpha]
parameter_space:
  bounds:
    - {name: D0, min: 1.0, max: 1.0e+6}
    - {name: alpha, min: -2.0, max: 2.0}
phi_filtering: {enabled: true, target_ranges: [{min_angle: -10.0, max_angle: 10.0}]}
optimization: {method: nlsq, nlsq: {max_iterations: 100, tolerance: 1.0e-8}, hybrid_streaming: {enable: true}}
"""


def _homodyne(folder: Path) -> Path:
    path = folder / "h.yaml"
    path.write_text(HOMODYNE)
    return path


def _read_homodyne(path: Path) -> None:
    from hpc.cli.main import main
    from hpc.errors import InputError

    target = path.parent / "conf" / "job" / "h.yaml"
    target.unlink(missing_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["import-config", str(path), "--to", str(path.parent / "conf")])
    if code:
        raise InputError(said.getvalue())
