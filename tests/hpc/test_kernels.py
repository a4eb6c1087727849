"""The kernels of the numeric libraries: pinned before they load, kept by every attempt, and said where they differ."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, Finished, output_of, rank_command, rank_environment, start_toy

from hpc import cpu, kernels
from hpc.cli.main import main
from hpc.kernel_record import NAME, told
from hpc.kernels import Kernels, Recorded, choose, loaded, pin, unlike_asked
from hpc.store.records import read_record

pytestmark = pytest.mark.mpi

V2, V3, V4 = cpu.LEVELS[1:]
BEST = cpu.level()
needs_two = pytest.mark.skipif(BEST not in (V3, V4), reason="needs a CPU with AVX2, to stand for one without as well")
LESS = V3 if BEST == V4 else V2
BLAS = {V4: "SkylakeX", V3: "Haswell", V2: "Nehalem"}


@pytest.fixture(autouse=True)
def unpinned(monkeypatch):
    for name in (cpu.LOWER, kernels.LEVEL, "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"):
        monkeypatch.delenv(name, raising=False)


def products(path: Path) -> bytes:
    return (path / "results" / "squares.txt").read_bytes()


def finish(path: Path, ranks: int = 1, **keywords) -> Finished:
    process = start_toy(path, ranks, numeric=True, units=12, **keywords)
    return Finished(process.wait(timeout=100), output_of(path).read_text(), path)


def stop_early(path: Path, **keywords) -> None:
    """Run a part of the units, and leave the run resumable."""
    process = start_toy(path, numeric=True, units=12, seconds=0.1, checkpoint={"every": 0.0}, **keywords)
    end = time.monotonic() + 60
    while time.monotonic() < end and not any((path / "checkpoints").glob("*/seg-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 76, output_of(path).read_text()


def go_on(path: Path, engine: dict | None = None) -> Finished:
    import yaml

    config = yaml.safe_load((path / "config.yaml").read_text())
    config["engine"].update(engine or {})
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    with output_of(path).open("w") as output:
        done = subprocess.run(
            rank_command(path, 1), env=rank_environment(1), stdout=output, stderr=subprocess.STDOUT, timeout=100
        )
    return Finished(done.returncode, output_of(path).read_text(), path)


def test_levels_are_those_of_the_abi():
    haswell = {"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm"}
    haswell |= {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
    assert cpu.level_of("x86_64", haswell) == V3
    assert cpu.level_of("x86_64", haswell - {"fma"}) == V2
    assert cpu.level_of("x86_64", haswell | {f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")}) == V4
    assert cpu.level_of("x86_64", haswell | {"avx512f", "avx512cd"}) == V3  # Knights Landing
    assert cpu.level_of("x86_64", {"sse2"}) == "x86-64"
    assert cpu.level_of("aarch64", set()) == "aarch64"
    assert cpu.lowest([V4, V2, V3]) == V2
    assert cpu.lowest([V4, "aarch64"]) == "aarch64+x86-64-v4"


def test_the_first_start_decides_and_later_ones_keep_it():
    first = Recorded(V3, pinned=True, cpu=V3, variables={})
    assert choose("auto", V4, None) == (V4, True)
    assert choose("auto", V4, first) == (V3, True)
    assert choose("auto", V2, first) == (V2, True)  # the highest that it has
    assert choose("portable", V4, None) == (V3, True)
    assert choose("portable", V2, None) == (V2, True)
    assert choose("native", V4, first) == (V4, False)
    assert choose("auto", V4, Recorded(V3, pinned=False, cpu=V3, variables={})) == (V4, False)
    assert choose("auto", "aarch64", None) == ("aarch64", False)


def test_variables_of_the_user_stay_and_are_recorded():
    environment = {"OPENBLAS_CORETYPE": "Zen", "DNNL_MAX_CPU_ISA": "SSE41", "XLA_FLAGS": "--xla_dump_to=there"}
    chosen = pin("auto", V3, None, environment)
    assert environment["OPENBLAS_CORETYPE"] == "Zen"
    assert "ONEDNN_MAX_CPU_ISA" not in environment  # oneDNN reads the other name too
    assert environment["XLA_FLAGS"].startswith("--xla_dump_to=there --xla_cpu_max_isa=AVX2")
    assert environment["MKL_CBWR"] == "AVX2"
    assert chosen.given == ("DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
    assert chosen.variables["OPENBLAS_CORETYPE"] == "Zen"
    later: dict[str, str] = {}
    pin("auto", V4, Recorded(chosen.level, chosen.pinned, chosen.cpu, chosen.variables), later)
    assert later["OPENBLAS_CORETYPE"] == "Zen"
    assert later[kernels.LEVEL] == V3
    assert environment["XLA_FLAGS"].endswith(later["XLA_FLAGS"])
    old_cpu: dict[str, str] = {}
    pin("auto", V2, Recorded(V3, pinned=True, cpu=V3, variables=chosen.variables), old_cpu)
    assert old_cpu["OPENBLAS_CORETYPE"] == "Nehalem"  # what the user chose for another CPU may not even run here


def test_native_sets_nothing():
    environment: dict[str, str] = {kernels.LEVEL: V3}
    assert not pin("native", V4, None, environment).pinned
    assert environment == {}


@needs_two
def test_every_library_here_runs_what_it_is_told():
    probe = (
        "import os, sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from hpc import kernels\n"
        "chosen = kernels.pin('auto', sys.argv[2], None)\n"
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy, torch, jax; jax.jit(lambda x: x @ x)(numpy.ones((3, 3)))\n"
        "found = kernels.loaded(chosen, {})\n"
        "print(json.dumps([found, kernels.unlike_asked(chosen, found)]))\n"
    )
    import json

    seen = {}
    for level in (BEST, LESS):
        done = subprocess.run(
            [sys.executable, "-c", probe, str(CHECKOUT), level], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        seen[level], wrong = json.loads(done.stdout)
        assert wrong == []
        assert seen[level]["openblas"] == BLAS[level]
    assert all(seen[BEST][name] != seen[LESS][name] for name in ("numpy", "torch", "mkl", "xla", "onednn"))


_SPY = """
import sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "h5py", "scipy", "torch", "jax") and not pinned:
            raise SystemExit(f"{name} was imported before the kernels were pinned")
pinned = []
sys.meta_path.insert(0, Spy())
import hpc.kernels
pin = hpc.kernels.pin
hpc.kernels.pin = lambda *a: (pinned.append(1), pin(*a))[1]
from hpc.rank import main
code = main([sys.argv[1]])
sys.exit(code or (0 if pinned else 99))
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_numeric_is_imported_before(toy, tmp_path, ranks):
    run = toy("run", ranks, units=2)
    (tmp_path / "spy.py").write_text(_SPY)
    command = [str(tmp_path / "spy.py") if part == "hpc.rank" else part for part in rank_command(run.path, ranks)]
    command.remove("-m")
    done = subprocess.run(
        command,
        env={**rank_environment(ranks), "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests/hpc")])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_two
def test_the_lowest_of_all_nodes_is_taken_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(cpu.LOWER, LESS)
    reference = finish(tmp_path / "low")
    monkeypatch.delenv(cpu.LOWER)
    best = finish(tmp_path / "best")
    assert products(best.path) != products(reference.path)  # else this test shows nothing

    mixed = tmp_path / "mixed"
    command = [sys.executable, "-m", "hpc.rank", str(mixed)]
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    stop_early(mixed)  # for the configuration only
    for leftover in (mixed / NAME, *mixed.glob("checkpoints/*/*")):
        leftover.unlink()
    # One of two ranks stands on a lesser node.
    environment = rank_environment(2)
    done = subprocess.run(
        [mpiexec, "-n", "1", *command, ":", "-n", "1", "-env", cpu.LOWER, LESS, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_record(mixed / NAME)["level"] == LESS
    assert products(mixed) == products(reference.path)
    assert told(mixed) == ""


@needs_two
def test_a_run_keeps_the_kernels_of_its_first_attempt_on_a_better_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv(cpu.LOWER, LESS)
    reference = finish(tmp_path / "low", seconds=0.1)
    stop_early(tmp_path / "run")
    monkeypatch.delenv(cpu.LOWER)
    resumed = go_on(tmp_path / "run")
    assert resumed.code == 0, resumed.output
    assert products(resumed.path) == products(reference.path)
    assert told(resumed.path) == ""


@needs_two
def test_what_the_user_chose_at_the_first_start_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", BLAS[LESS])
    reference = finish(tmp_path / "whole", seconds=0.1)
    stop_early(tmp_path / "run")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    resumed = go_on(tmp_path / "run")
    assert products(resumed.path) == products(reference.path)
    assert told(resumed.path) == ""


@needs_two
@pytest.mark.parametrize("cause", [{cpu.LOWER: LESS}, {"OPENBLAS_CORETYPE": BLAS[LESS]}])
def test_other_kernels_are_said_wherever_people_look(tmp_path, monkeypatch, capsys, cause):
    run = tmp_path / "run"
    stop_early(run)
    for name, value in cause.items():
        monkeypatch.setenv(name, value)
    refused = go_on(run, {"other_kernels": "refuse"})
    assert refused.code == 2, refused.output
    assert "engine.other_kernels=go_on" in refused.output
    assert "Traceback" not in refused.output
    resumed = go_on(run, {"other_kernels": "go_on"})
    assert resumed.code == 0, resumed.output
    said = f"openblas runs {BLAS[LESS]}, the run was started with {BLAS[BEST]}"
    assert said in resumed.output
    assert said in resumed.text("logs/rank-00000.log")
    assert said in resumed.text("report/index.html")
    assert main(["status", str(run)]) == 0
    assert "bits may differ from attempt" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(run)]) == 0
    verified = " ".join(capsys.readouterr().out.split())
    assert "all sound, but bits may differ from attempt" in verified
    assert "units may differ, from other kernels: u000" in verified
    for name in cause:
        monkeypatch.delenv(name)
    assert go_on(run).code == 0  # nothing left to compute, and the record stays
    assert said in told(run)


@needs_two
def test_portable_is_the_same_on_both(tmp_path, monkeypatch):
    if BEST != V4:
        pytest.skip("this CPU has no AVX-512 to be different with")
    here = finish(tmp_path / "here", engine={"kernels": "portable"})
    monkeypatch.setenv(cpu.LOWER, V3)
    there = finish(tmp_path / "there", engine={"kernels": "portable"})
    assert products(here.path) == products(there.path)


@needs_two
def test_an_attempt_with_nothing_left_to_compute_changes_no_bits(tmp_path, monkeypatch):
    finished = finish(tmp_path / "run")
    assert finished.code == 0
    monkeypatch.setenv(cpu.LOWER, LESS)
    assert go_on(finished.path).code == 0
    assert read_record(finished.path / NAME)["attempts"][-1]["differs"]
    assert told(finished.path) == ""


def test_portable_says_where_numpy_cannot_be_pinned():
    chosen = Kernels("portable", V3, pinned=True, cpu=V4)
    above = "X86_V4" if kernels._version("numpy") >= (2, 4) else "AVX512_SKX"
    (wrong,) = unlike_asked(chosen, {"numpy": f"AVX2 {above}"})
    assert above in wrong
    assert "cannot be pinned" in wrong
    assert unlike_asked(chosen, {"numpy": "AVX2"}) == []


def test_a_lost_or_damaged_record_is_said(tmp_path):
    run = tmp_path / "run"
    stop_early(run)
    (run / NAME).write_text((run / NAME).read_text().replace("libraries", "librarief"))
    resumed = go_on(run)
    assert resumed.code == 0
    assert "with which kernels earlier attempts ran is not known" in resumed.output
    assert (run / "damaged-kernels.json").exists()
    assert "bits may differ from attempt 2 on" in told(run)


def test_a_wrong_name_for_a_level_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(cpu.LOWER, "avx2")
    assert finish(tmp_path / "run").code == 2


def test_loaded_names_what_this_process_runs():
    import numpy as np

    assert np.ones((2, 2)) @ np.ones(2) is not None
    found = loaded(kernels.as_they_are(), {"sums": "v3"})
    assert found["sums"] == "v3"
    assert {"numpy", "libm"} <= found.keys()
