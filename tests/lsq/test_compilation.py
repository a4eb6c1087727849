"""Compiled code is kept between processes, in entries that are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys

from tessera.lsq import compilation

FIT = """
import numpy as np, jax, jax.numpy as jnp
from tessera.lsq import fit
x = np.linspace(0, 4, 50)
r = fit(lambda x, a, b: a * jnp.exp(-b * x), (x, 2 * np.exp(-x)), [1.0, 0.5])
assert r.success
print(jax.config.jax_compilation_cache_dir)
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    environment = {**os.environ, "TESSERA_JAX_CACHE": str(tmp_path)}
    seen = []
    for _ in range(2):
        used = subprocess.run([sys.executable, "-c", FIT], env=environment, check=True, capture_output=True, text=True)
        (folder,) = tmp_path.iterdir()  # one for each kind of processor
        entries = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
        assert used.stdout.strip().startswith(str(folder / ".process-"))
        assert entries
        assert all(name.endswith("-cache") for name in entries), "only whole entries are left"
        seen.append(entries)
    assert seen[0] == seen[1]


def test_folders_of_killed_processes_are_swept_when_they_are_old(tmp_path):
    old, new = tmp_path / ".process-old", tmp_path / ".process-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    compilation._sweep(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_an_empty_setting_keeps_nothing(monkeypatch):
    monkeypatch.setenv("TESSERA_JAX_CACHE", "")
    assert compilation.cache_folder() is None
