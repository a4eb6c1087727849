"""The batch scripts that are shipped for copying, run by a real bash with made-up commands."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((CHECKOUT / "slurm").glob("*.sbatch"))
UNCHANGED = "# From here on nothing needs to be changed."


@pytest.fixture
def start(tmp_path):
    """Start a script as SLURM would, with commands that note how they were called; srun sleeps and ends as told."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f'export PATH="{folder}:$PATH"\n')
    for name, line in {"srun": "sleep ${SLEEP:-0}; exit $CODE", "tessera": "exit ${PREPARED:-0}", "python": ""}.items():
        script = f'#!/bin/bash\necho "{name} $TESSERA_RANKS $OMP_NUM_THREADS $@" >> {tmp_path}/called\n{line}\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    def run(script: Path, **environment: str) -> subprocess.Popen:
        slurm = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"}
        variables = {"PATH": "/usr/bin:/bin", "TESSERA_VENV": str(tmp_path / "venv"), "SLURM_CPUS_PER_TASK": "5"}
        return subprocess.Popen(["bash", script], env={**variables, **slurm, **environment}, cwd=tmp_path)

    return run


def called(folder: Path) -> list[str]:
    return (folder / "called").read_text().splitlines()


def test_there_is_one_for_every_workload():
    names = {script.stem for script in SCRIPTS}
    assert names == {"template", *(file.stem for file in (CHECKOUT / "conf" / "job").glob("*.yaml"))}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_they_differ_in_what_is_to_be_changed_only(script):
    template = (CHECKOUT / "slurm" / "template.sbatch").read_text()
    assert script.read_text().partition(UNCHANGED)[2] == template.partition(UNCHANGED)[2] != ""


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.stem != "template"], ids=lambda s: s.stem)
def test_every_key_is_one_of_the_workload(script):
    options = yaml.safe_load((CHECKOUT / "conf" / "job" / f"{script.stem}.yaml").read_text())
    text = script.read_text()
    assert f"job={script.stem}" in text
    for key in re.findall(r"\bjob\.([\w.]+)=", text):
        section = options
        for part in key.split("."):
            assert part in section, key
            section = section[part]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_ranks_decide_and_comeback_is_asked(start, tmp_path, script):
    run = tmp_path / "runs" / "x"
    for code in (0, 75, 76, 137):
        (tmp_path / "called").unlink(missing_ok=True)
        assert start(script, CODE=str(code)).wait(20) == code
        prepare, srun, *asked = called(tmp_path)
        assert prepare.startswith("tessera 6 5 prepare job=")
        assert prepare.endswith(f" run.dir={run}")
        assert srun.startswith("srun 6 5 --mpi=pmi2 --ntasks=6 --ntasks-per-node=2 --cpus-per-task=5 ")
        assert srun.endswith(f" --kill-on-bad-exit=1 --wait=60 python -P -m hpc.rank {run}")
        assert asked == ([f"python 6 5 -P -m hpc.launch.comeback {run} {code} 20"] if code else [])


def test_wrong_input_ends_before_the_ranks_start(start, tmp_path):
    assert start(CHECKOUT / "slurm" / "template.sbatch", CODE="0", PREPARED="2").wait(20) == 2
    assert len(called(tmp_path)) == 1


def test_a_cancelled_job_waits_for_its_ranks_and_does_not_come_back(start, tmp_path):
    process = start(CHECKOUT / "slurm" / "template.sbatch", CODE="75", SLEEP="1")
    end = time.monotonic() + 20
    while not (tmp_path / "called").exists() or len(called(tmp_path)) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert len(called(tmp_path)) == 2
