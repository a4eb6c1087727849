"""Every workload on CPUs of two levels: the bits of the first attempt are kept, or it is said from where they differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photometry.made_frames import add_stars, image_list, noise, sky_catalog, tan_wcs, write_frame
from test_inputs_listed import mcdropout

from hpc import cpu

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

BEST = cpu.level()
LESS = cpu.LEVELS[2]


def photometry(folder: Path) -> list[str]:
    """A crowded field: blends solve systems of some size."""
    rng = np.random.default_rng(3)
    x, y = rng.uniform(10, 110, (2, 60))
    write_frame(folder / "r.fits", add_stars(noise((120, 120)), x, y, np.full(x.size, 2e4)))
    image_list(folder / "list.txt", "r.fits")
    sky_catalog(folder / "catalog.csv", tan_wcs((120, 120)), x, y)
    inputs = ("image_list_file=list.txt", "input_catalog=catalog.csv")
    return ["job=photometry", *(f"job.inputs.{word}" for word in inputs), "job.patches.patch_size=40"]


def lsq(folder: Path) -> list[str]:
    """A decay over enough points that sums are made in vectors."""
    model = "import jax.numpy as jnp\n\ndef decay(t, a, b, c):\n    return a * jnp.exp(-b * t) + c\n"
    (folder / "model.py").write_text(model)
    t = np.linspace(0, 3, 20_011)
    y = 2 * np.exp(-1.3 * t) + 0.5 + 0.01 * np.random.default_rng(1).standard_normal(t.size)
    np.savetxt(folder / "d.csv", np.column_stack([t, y]), delimiter=",", header="t,y", comments="")
    return ["job=lsq", "job.model=model.py:decay", "job.data={path: d.csv, x: [t], y: y}", "job.p0={a: 1, b: 1, c: 0}"]


WORKLOADS: dict[Callable[[Path], list[str]], tuple[str, tuple[str, ...]]] = {
    photometry: ("catalog.fits", ("checkpoint.every=0.0",)),
    lsq: ("fit.h5", ("checkpoint.every=1 steps",)),
    mcdropout: (
        "tiny/exp0_trials_T4.npz",
        ("job.experiment=exp0", "job.performance.image_block=1", "checkpoint.every=0.0"),
    ),
}
KILL = {photometry: "durable@seg-*.h5:2:kill", lsq: "durable@gen-*.json:2:kill", mcdropout: "durable@seg-*.h5:4:kill"}


@pytest.fixture(scope="module", params=WORKLOADS, ids=lambda make: make.__name__)
def runs(request, tmp_path_factory):
    """A job, and runs of it that nothing disturbed: on this CPU, on one that is taken for a lesser one, portable."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    runs = Runs(request.param, folder, request.param(folder))
    runs.go("here")
    runs.go("there", level=LESS)
    runs.go("portable", "engine.kernels=portable")
    return runs


class Runs:
    def __init__(self, make: Callable[[Path], list[str]], folder: Path, words: list[str]) -> None:
        self.make, self.folder, self.words = make, folder, words
        self.file, self.options = WORKLOADS[make]

    def go(self, name: str, *more: str, level: str = BEST, fault: str = "", code: int = 0) -> str:
        """Run, or with the words of ``resume`` go on; return what it said."""
        how = ["cluster.ranks=1", "cluster.threads_per_process=1", f"run.dir={name}"]
        words = ["resume", name, *more[1:]] if more[:1] == ("resume",) else [*self.words, *self.options, *how, *more]
        environment = {**os.environ, cpu.LOWER: level} | ({"TESSERA_FAULT": fault} if fault else {})
        command = [sys.executable, "-m", "hpc", *words]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=200)
        said = done.stdout + done.stderr
        assert (done.returncode != 0) if fault else (done.returncode == code), said
        return said

    def bits(self, name: str) -> bytes:
        return (self.folder / name / "results" / self.file).read_bytes()

    def tell(self, name: str) -> dict[str, str]:
        """Return what verbs and report say of a run."""
        said = {}
        for verb in ("status", "verify"):
            command = [sys.executable, "-m", "hpc", verb, name]
            said[verb] = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False).stdout
        return said | {"report": (self.folder / name / "report" / "index.html").read_text()}


@pytest.mark.skipif(cpu.LEVELS[3] != BEST, reason="needs a CPU with AVX-512, to stand for one without as well")
class TestTwoLevels:
    def test_the_level_of_the_first_attempt_is_kept_on_a_better_cpu(self, runs):
        runs.go("up", level=LESS, fault=KILL[runs.make])
        runs.go("up", "resume")
        assert runs.bits("up") == runs.bits("there")
        assert not any("bits may differ" in text for text in runs.tell("up").values())

    def test_a_lesser_cpu_goes_on_and_says_so_everywhere_or_is_refused(self, runs):
        if runs.make is not lsq:  # XLA's code for these few parameters adds in the same order on both
            assert runs.bits("here") != runs.bits("there")  # else this test shows nothing
        runs.go("down", fault=KILL[runs.make])
        refused = runs.go("down", "resume", "engine.other_kernels=refuse", level=LESS, code=2)
        assert "engine.other_kernels=go_on" in refused
        runs.go("down", "resume", "engine.other_kernels=go_on", level=LESS)
        for place, text in runs.tell("down").items():
            assert "bits may differ from attempt" in " ".join(text.split()), place

    def test_portable_kernels_give_equal_bits_on_both(self, runs):
        runs.go("moved", "engine.kernels=portable", fault=KILL[runs.make])
        runs.go("moved", "resume", level=LESS)
        assert runs.bits("moved") == runs.bits("portable") == runs.bits("there")
        assert not any("bits may differ" in text for text in runs.tell("moved").values())
        record = json.loads((runs.folder / "moved" / "kernels.json").read_text())
        assert [a["level"] for a in record["attempts"]] == [LESS, LESS]
