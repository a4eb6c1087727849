"""Every file that a workload opens is one of the inputs that it names: what it does not name may change unnoticed.

The kernel reports what is opened below the folder of inputs, also by libraries that are not Python.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc.cli.compose import compose_run
from hpc.cli.folders import config_folders
from hpc.identity import read_identity
from hpc.rundir import RunDir

pytestmark = pytest.mark.slow

_OPENED, _EVENT = 0x20, struct.Struct("iIII")


@contextmanager
def opened_below(folder: Path) -> Iterator[set[Path]]:
    """Collect every file below a folder that any process opens."""
    kernel = ctypes.CDLL(None, use_errno=True)
    watch = kernel.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    places = {}
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        places[kernel.inotify_add_watch(watch, os.fsencode(place), _OPENED)] = place
    opened: set[Path] = set()
    try:
        yield opened
        while True:
            try:
                content = os.read(watch, 1 << 16)
            except BlockingIOError:
                break
            at = 0
            while at < len(content):
                number, _, _, length = _EVENT.unpack_from(content, at)
                name = content[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                opened.add(places[number] / os.fsdecode(name))
                at += _EVENT.size + length
        opened -= set(places.values())
    finally:
        os.close(watch)


def photometry(folder: Path) -> list[str]:
    from photometry.made_frames import image_list, small_field, write_frame
    from photometry.test_psf_files import psfex_file

    small_field(folder)
    for name in "weight_g", "mask_r":
        write_frame(folder / f"{name}.fits", np.full((80, 90), "w" in name, np.float32))
    image_list(folder / "list.txt", "g.fits weight=weight_g.fits", "r.fits mask=mask_r.fits psf=psf_r.fits")
    for band in "gr":
        psfex_file(folder / f"psf_{band}.fits", degree=0)
    (folder / "truth.csv").write_text("ID,x,y,FLUX_g,FLUX_r\n0000,20.0,30.0,4000,4000\n")
    inputs = ("image_list_file=list.txt", "input_catalog=catalog.csv", "truth=truth.csv")
    words = [f"job.inputs.{word}" for word in inputs]
    return ["job=photometry", *words, "job.epsf.source=file", "job.epsf.files={g: psf_g.fits}"]


def lsq(folder: Path) -> list[str]:
    (folder / "model.py").write_text(
        "import jax.numpy as jnp\n\ndef decay(t, a, b, c):\n    return a * jnp.exp(-b * t) + c\n"
    )
    t = np.linspace(0, 3, 500)
    with h5py.File(folder / "d.h5", "w") as file:  # links and views to other files are refused, see tessera.hdf5_sound
        file["t"] = t
        file["y"] = 2 * np.exp(-1.3 * t) + 0.5 + 0.01 * np.random.default_rng(1).standard_normal(t.size)
        file["sigma"] = np.full(t.size, 0.01)
    data = "job.data={path: d.h5, x: [t], y: y, sigma: sigma}"
    return ["job=lsq", "job.model=model.py:decay", data, "job.p0={a: 1, b: 1, c: 0}"]


def lsq_arrays(folder: Path) -> list[str]:
    words = lsq(folder)
    (folder / "arrays").mkdir()
    with h5py.File(folder / "d.h5") as file:
        for name in "t", "y", "sigma":
            np.save(folder / "arrays" / f"{name}.npy", file[name])
    return [word.replace("d.h5", "arrays") for word in words]


def xpcs(folder: Path) -> list[str]:
    from tessera.xpcs.generate import Truth
    from tessera.xpcs.write_files import write_aps_u

    flow = {"D0": 1500.0, "alpha": -0.4, "D_offset": 200.0}
    truth = Truth("static_isotropic", flow, np.array([0.0, 40.0]), 40, 0.5, 0.0054, 2e6, contrast=0.3, offset=1.0)
    write_aps_u(folder / "c2.h5", truth.noisy(0.02, seed=5), truth.phi, np.array([0.0054]))
    words = ("experimental_data.file_path=c2.h5", "analyzer_parameters.dt=0.5", "analysis_mode=static_isotropic")
    return ["job=xpcs", *(f"job.{word}" for word in words)]


def mcdropout(folder: Path) -> list[str]:
    from mcdropout import made_models
    from mcdropout.serial_run import picture_folder

    picture_folder(folder / "pictures", 4)
    made_models.save(made_models.clip(), folder / "model")
    (folder / "classes.json").write_text('{"cat": "a cat", "red_fox": "a fox"}')
    words = ("data_dir=pictures", "models=[tiny]", "+model.weights.tiny=model", "ambiguity.class_map=classes.json")
    words = (*words, "experiment=exp5", "trials=2", "passes=4", "dropout=0.1", "device=cpu")
    return ["job=mcdropout", *(f"job.{word}".replace("job.+", "+job.") for word in words)]


@pytest.mark.parametrize("make", [photometry, lsq, lsq_arrays, xpcs, mcdropout])
def test_whatever_a_job_opens_is_named(make: Callable[[Path], list[str]], tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    words = [*make(folder), f"run.dir={tmp_path / 'run'}", "cluster.threads_per_process=1"]
    composed = compose_run(words, config_folders([]), folder)
    run = RunDir.prepare(composed.settings.run.dir, composed.mapping)
    with opened_below(folder) as opened:
        command = [sys.executable, "-B", "-m", "hpc.rank", str(run.path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    identity = read_identity(run)
    assert identity is not None
    named = {Path(name) for name in identity.inputs.files}
    named |= {folder / name for name in identity.code.files}  # a model file
    assert opened
    assert not opened - named
