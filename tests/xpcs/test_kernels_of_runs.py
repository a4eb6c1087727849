"""Runs on other CPUs and without a C compiler: the first attempt's sums are kept, or it is said that they are not."""

from __future__ import annotations

import os
import subprocess

import pytest
from xpcs.test_job import bits, command, flow_file, words  # noqa: F401 - the fixture too

from hpc import cpu
from hpc.kernel_record import told
from tessera.xpcs import native

pytestmark = pytest.mark.mpi
LESS = {cpu.LEVELS[3]: cpu.LEVELS[2], cpu.LEVELS[2]: cpu.LEVELS[1]}.get(cpu.level(), "")
KILL = {"TESSERA_FAULT": "durable@gen-*.json:1:kill"}
SPARE = {"checkpoint.every": "1 steps"}


def run(*arguments: str, code: int | None = 0, **variables: str) -> str:
    done = subprocess.run(
        command(*arguments), env={**os.environ, **variables}, capture_output=True, text=True, timeout=200
    )
    output = done.stdout + done.stderr
    assert (done.returncode == code) if code is not None else done.returncode, output
    return output


@pytest.mark.skipif(not LESS, reason="needs a CPU with AVX2, to stand for one without as well")
def test_a_fit_goes_on_with_the_kernels_of_the_cpu_it_began_on(flow_file, tmp_path):  # noqa: F811
    here, there, resumed = (tmp_path / name for name in ("here", "there", "resumed"))
    run(*words(flow_file, here, **SPARE))
    run(*words(flow_file, there, **SPARE), **{cpu.LOWER: LESS})
    assert bits(here / "results") != bits(there / "results")  # else this test shows nothing
    run(*words(flow_file, resumed, **SPARE), code=None, **{cpu.LOWER: LESS}, **KILL)
    run("resume", str(resumed))
    assert bits(resumed / "results") == bits(there / "results")
    assert told(resumed) == ""


def test_without_a_compiler_it_runs_and_a_compiled_run_says_that_it_went_on_so(flow_file, tmp_path):  # noqa: F811
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    loud = "run in NumPy, several times slower"
    assert loud in run(*words(flow_file, plain), **{native.SUMS: native.PLAIN})
    assert loud in (plain / "logs" / "rank-00000.log").read_text()
    assert loud in (plain / "report" / "index.html").read_text()
    if native.level() == native.PLAIN:
        pytest.skip("there are no compiled sums here to begin with")
    run(*words(flow_file, mixed, **SPARE), code=None, **KILL)
    output = run("resume", str(mixed), **{native.SUMS: native.PLAIN})
    assert f"xpcs sums runs numpy, the run was started with {native.level()}" in told(mixed)
    assert "bits may differ from attempt 2 on" in " ".join(output.split())
