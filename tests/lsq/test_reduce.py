"""Fits over a real MPI communicator: the same bits on any number of ranks, and no rank left waiting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FIT = """
import hashlib, sys
import jax.numpy as jnp, numpy as np
from mpi4py import MPI
from tessera.lsq import HybridStreamingConfig, fit
from tessera.lsq.errors import DataError

comm = MPI.COMM_WORLD
x = np.linspace(0, 4, 5000)
y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * np.random.default_rng(1).standard_normal(5000)
if sys.argv[1] == "bad":
    y[4990] = np.nan
try:
    r = fit(lambda x, a, b, c: a * jnp.exp(-b * x) + c, (x, y), [1.0, 0.5, 0.0], comm=comm, threads=1,
            config=HybridStreamingConfig(chunk_size=700))
    said = hashlib.sha256(r.x.tobytes() + r.covariance.tobytes()).hexdigest()
except DataError as error:
    said = str(error)
for line in comm.gather(said) or []:
    print(line)
"""


def ranks(n: int, what: str) -> list[str]:
    command = [sys.executable, "-c", FIT, what]
    if n > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(n), *command]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.split("\n")[:n]


@pytest.mark.mpi
def test_one_two_and_three_ranks_give_the_same_bits():
    one = ranks(1, "good")
    assert ranks(2, "good") == one * 2
    assert ranks(3, "good") == one * 3


@pytest.mark.mpi
def test_a_chunk_that_one_rank_cannot_use_ends_the_fit_on_all():
    first, last = ranks(2, "bad")
    assert "another rank" in first
    assert "chunk 7" in last
