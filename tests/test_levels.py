"""Every workload on two kinds of CPU: a stopped run keeps the bits of the kind it began on, or says where they may differ.

One kind is this machine's, the other a lesser one that it is made to pass for.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import CHECKOUT
from mcdropout.serial_run import picture_folder, tiny_model
from xpcs.test_job import bits as xpcs_bits
from xpcs.test_job import flow
from xpcs.test_job import words as xpcs_words

from hpc import cpu, kernels
from hpc.cli.main import main
from hpc.kernel_record import told
from tessera.xpcs.write_files import write_aps_u

pytestmark = pytest.mark.mpi

V2, V3, V4 = cpu.LEVELS[1:]
BEST = cpu.level()
LESS = {V4: V3, V3: V2}.get(BEST, "")
if not LESS:
    pytest.skip("needs a CPU with AVX2, to stand for one without as well", allow_module_level=True)
needs_v4 = pytest.mark.skipif(BEST != V4, reason="portable is the best of this CPU: it cannot be kept on a lesser one")

Words = list[str]


def photometry(folder: Path) -> Words:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "scripts")
        demo = importlib.import_module("demo_scene")
        for name, value in {"SIZE": 200, "STARS": 20, "GALAXIES": 6, "BAD_PIXELS": 40}.items():
            patch.setattr(demo, name, value)
        demo.main([str(folder), "--seed", "3"])
    inputs = [f"job.inputs.image_list_file={folder}/frames.txt", f"job.inputs.input_catalog={folder}/catalog.csv"]
    return ["job=photometry", *inputs, "job.epsf.source=moffat", "job.patches.patch_size=40"]


def lsq(folder: Path) -> Words:
    (folder / "model.py").write_text(
        "import jax.numpy as jnp\n\ndef decay(x, a, b, c):\n    return a * jnp.exp(-b * x) + c\n"
    )
    x = np.linspace(0, 10, 40_000)
    with h5py.File(folder / "d.h5", "w") as file:
        file["x"], file["y"] = x, 3 * np.exp(-x / 2) + 1 + np.random.default_rng(0).normal(0, 0.1, x.size)
    return ["job=lsq", f"job.model={folder}/model.py:decay", f"job.data.path={folder}/d.h5", "job.p0=[1,1,0]"]


def xpcs(folder: Path) -> Words:
    from xpcs.test_job import NOISE, PHI, Q

    write_aps_u(folder / "flow.h5", flow(100).noisy(NOISE, seed=5), PHI, np.array([Q]))
    return [word for word in xpcs_words(folder / "flow.h5", folder) if not word.startswith(("run.", "cluster."))]


def mcdropout(folder: Path) -> Words:
    weights = f"+job.model.weights.tiny={tiny_model(folder / 'model', layers=1, patch=4)}"
    images = f"job.data_dir={picture_folder(folder / 'images', 4)}"
    cut = ["job.trials=3", "job.passes=[4]", "job.dropout=0.1", "job.device=cpu"]
    return ["job=mcdropout", images, "job.models=[tiny]", "job.model.init=random", weights, *cut]


def files(*names: str) -> Callable[[Path], object]:
    return lambda results: [(results / name).read_bytes() for name in names]


@dataclass(frozen=True)
class Workload:
    """A small job, what is compared of its results, and the save after which it is killed."""

    words: Callable[[Path], Words]
    results: Callable[[Path], object]
    stage: str
    kind: str
    save: str


WORKLOADS = {
    "photometry": Workload(photometry, files("catalog.ecsv", "white.fits"), "patches", "unit", "seg-*:8"),
    "lsq": Workload(lsq, files("fit.h5", "parameters.json"), "fit", "step", "gen-*.json:1"),
    "xpcs": Workload(xpcs, xpcs_bits, "fit", "step", "gen-*.json:1"),
    "mcdropout": Workload(mcdropout, files("tiny/exp0_trials_T4.npz"), "trials", "unit", "seg-*:2"),
}


class Field:
    """Runs of one workload that are started together, each on a kind of CPU."""

    refusal = ""
    """What a resume said that was to refuse other kernels."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self.workload, self.folder = workload, folder
        (folder / "data").mkdir()
        self.words = [*workload.words(folder / "data"), "cluster.ranks=1", "cluster.threads_per_process=1"]

    def begin(self, name: str, level: str, *words: str, kill: bool = False) -> subprocess.Popen:
        fault = {"TESSERA_FAULT": f"durable@{self.workload.save}:kill"} if kill else {}
        every = "checkpoint.every=1 steps" if self.workload.kind == "step" else "checkpoint.every=0"
        return self._start([*self.words, f"run.dir={self.folder / name}", every, *words], level, fault)

    def resume(self, name: str, level: str, *words: str) -> subprocess.Popen:
        return self._start(["resume", str(self.folder / name), *words], level, {})

    def results(self, name: str) -> object:
        return self.workload.results(self.folder / name / "results")

    def end(self, process: subprocess.Popen, code: int | None = 0) -> str:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == code if code is not None else process.returncode, output
        return output

    def _start(self, words: Words, level: str, more: dict[str, str]) -> subprocess.Popen:
        pins = {kernels.LEVEL, cpu.LOWER, "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"}
        rest = {name: value for name, value in os.environ.items() if name not in pins}
        return subprocess.Popen(
            [sys.executable, "-m", "hpc", *words],
            env={**rest, cpu.LOWER: level, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module", params=WORKLOADS)
def field(request, tmp_path_factory) -> Field:
    """Undisturbed runs, and others that were killed midway; some of these have gone on."""
    made = Field(WORKLOADS[request.param], tmp_path_factory.mktemp(request.param))
    whole = [made.begin("low", LESS), made.begin("portable", BEST, "engine.kernels=portable")]
    killed = [
        made.begin("raised", LESS, kill=True),
        made.begin("lowered", BEST, kill=True),
        made.begin("moved", BEST, "engine.kernels=portable", kill=True),
    ]
    for process in whole:
        made.end(process)
    for process in killed:
        made.end(process, None)
    for name in ("raised", "lowered", "moved"):
        stage = made.folder / name / "checkpoints" / made.workload.stage
        assert any(stage.glob("seg-*.h5" if made.workload.kind == "unit" else "gen-*.h5")), "it was not killed midway"
        assert not (stage / "complete.json").exists()
    again = [made.resume("raised", BEST), made.resume("moved", LESS)]
    refused = made.resume("lowered", LESS, "engine.other_kernels=refuse")
    made.refusal = made.end(refused, 2)
    again.append(made.resume("lowered", LESS, "engine.other_kernels=go_on"))
    for process in again:
        made.end(process)
    return made


def test_a_better_cpu_goes_on_with_the_bits_of_the_first(field):
    assert field.results("raised") == field.results("low")
    assert told(field.folder / "raised") == ""


@needs_v4
def test_portable_is_the_same_wherever_it_begins_and_ends(field):
    assert field.results("portable") == field.results("low")
    assert field.results("moved") == field.results("low")
    assert told(field.folder / "moved") == ""


def test_a_lesser_cpu_is_refused_if_asked(field):
    assert f"was started with kernels of level {BEST}" in " ".join(field.refusal.split())
    assert "Traceback" not in field.refusal


def test_a_lesser_cpu_says_from_where_on_bits_may_differ(field, capsys):
    assert field.results("lowered") != field.results("low")  # else the other tests show nothing
    workload, run = field.workload, field.folder / "lowered"
    where = f"bits may differ from attempt 2 on, in stage {workload.stage} from {workload.kind} "
    first = told(run).partition(where)[2].split()[0]
    assert int(first) > 1
    said = [(run / "report" / "index.html").read_text()]
    for verb in ("status", "verify"):
        assert main([verb, str(run)]) == 0
        said.append(capsys.readouterr().out)
    assert all(f"{where}{first}" in " ".join(text.split()) for text in said)
    of_stage = "units may differ, from other kernels" if workload.kind == "unit" else f"from step {first} on"
    assert of_stage in " ".join(said[-1].split())
