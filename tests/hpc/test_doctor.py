"""The doctor: what it says about this machine, and about machines that are worse."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc.cli.main import main
from hpc.doctor import filesystem, gpu, mpi, nodes, packages, slurm, slurm_mpi, threads
from hpc.settings import SlurmCluster


def command(folder: Path, name: str, script: str) -> Path:
    """Put a shell script on a folder of commands."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.mark.mpi
def test_this_machine_is_healthy(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in ("packages: tessera", "threads: ", "MPI: ", "two ranks met", "fsync takes", "GPU: ", "SLURM: "):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(packages, "requires", lambda _: ["numpy>=2", "notthere>=1", "torch; extra == 'torch'"])
    finding = packages.check()
    assert (finding.status, finding.text, finding.remedy) == ("fail", "missing: notthere", "pip install notthere")


def test_ranks_that_do_not_meet_fail(tmp_path):
    lonely = command(tmp_path, "mpiexec", f'shift 2; "$@"; exec "$@"  # {sys.executable}')
    finding = mpi.check(str(lonely))
    assert finding.status == "fail"
    assert "worlds of 1 rank(s) instead of one of 2" in finding.text


def test_a_broken_mpiexec_is_quoted(tmp_path):
    finding = mpi.check(str(command(tmp_path, "mpiexec", "echo no fabric >&2; exit 4")))
    assert (finding.status, "no fabric" in finding.text) == ("fail", True)
    assert mpi.check(str(tmp_path / "absent")).status == "fail"


def test_a_folder_that_cannot_be_written_fails(tmp_path):
    assert filesystem.check(tmp_path).status == "ok"
    missing = filesystem.check(tmp_path / "absent")
    assert missing.status == "fail"
    assert "No such file" in missing.text


def test_file_systems_without_exclusive_links_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: None)
    finding = filesystem.check(tmp_path)
    assert finding.status == "fail"
    assert "two runs could work in one directory" in finding.text


def test_little_space_and_slow_disks_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, "_LITTLE_SPACE", 2**62)
    assert "free space" in filesystem.check(tmp_path).remedy
    monkeypatch.setattr(filesystem, "_LITTLE_SPACE", 0)
    monkeypatch.setattr(filesystem, "_SLOW_FSYNC", -1.0)
    assert "checkpoint.every" in filesystem.check(tmp_path).remedy


def test_libraries_that_ignore_the_budget_are_named(monkeypatch):
    assert threads.check().status == "ok"
    monkeypatch.setattr(threads, "_PROBE", "print('[[\"libmkl\", 64]]')")
    finding = threads.check()
    assert finding.status == "warn"
    assert "libmkl uses 64" in finding.text


SLURM_COMMANDS = {
    "sbatch": "echo slurm 22.05.8",
    "scontrol": 'echo "ClusterName = x"; echo "MpiDefault              = ${MPI:-none}"',
    "srun": "echo MPI plugin types are... >&2; echo none >&2; echo pmi2 >&2; echo cray_shasta >&2",
}


def test_slurm_is_described_with_what_own_scripts_need(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.check().status == "skipped"
    for name, script in SLURM_COMMANDS.items():
        command(tmp_path, name, script)
    finding = slurm.check()
    assert finding.status == "ok"
    assert "slurm 22.05.8, MpiDefault=none, plugins: pmi2, cray_shasta" in finding.text
    assert "in your own scripts say srun --mpi=pmi2" in finding.text
    assert "arrays of up to 1000 runs" in finding.text
    monkeypatch.setenv("MPI", "pmi2")
    assert "own scripts" not in slurm.check().text
    command(tmp_path, "scontrol", 'echo "MpiDefault = pmi2"; echo "JobRequeue = 0"; echo "MaxArraySize = 51"')
    finding = slurm.check()
    assert (finding.status, "arrays of up to 50 runs" in finding.text) == ("warn", True)
    assert "resume them or ask the site" in finding.remedy
    command(tmp_path, "scontrol", "exit 1")
    assert slurm.check().status == "fail"


def test_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.check().status == "skipped"
    command(tmp_path, "nvidia-smi", "echo NVIDIA H200, 143771 MiB")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda _: None)
    assert "torch is not installed" in gpu.check().text
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(gpu, "_PROBE", "print('2.6.0 12.4 1')")
    assert gpu.check().text == "NVIDIA H200, 143771 MiB; torch 2.6.0 (CUDA 12.4) sees 1"
    monkeypatch.setattr(gpu, "_PROBE", "print('2.6.0 None 0')")
    assert "does not see it" in gpu.check().text
    command(tmp_path, "nvidia-smi", "exit 9")
    assert gpu.check().status == "warn"


def test_a_failed_check_fails_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hpc.doctor.packages.requires", lambda _: ["notthere"])
    monkeypatch.setattr("hpc.doctor.mpi.rank_command", lambda *_: ["true"])
    assert main(["doctor", str(tmp_path)]) == 1
    assert "→ pip install notthere" in capsys.readouterr().out


PROBED = '{"node": "n%s", "time": %s, "sees": %s, "cpus": 1, "gpus": "", "fsync": 0.002, "trouble": "%s"}'


def fake_srun(folder: Path, *lines: str, complaint: str = "", code: int = 0) -> None:
    text = "".join(f"echo 'facts {line}'\n" for line in lines)
    command(
        folder, "srun", f'[ "$1" = --mpi=list ] && echo pmi2 >&2 && exit 0\n{text}echo "{complaint}" >&2\nexit {code}'
    )


@pytest.fixture
def commands(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_flavours_are_judged_by_what_the_ranks_see(commands):
    fake_srun(commands, '[2, 2, true, "MPICH"]')
    assert slurm_mpi.check(SlurmCluster(), 2).text == "pmi2 works; cluster.mpi=pmi2"
    finding = slurm_mpi.check(SlurmCluster(mpi="pmix"), 2)
    assert (finding.status, finding.remedy) == ("fail", "cluster.mpi=pmi2")
    fake_srun(commands, '[1, 1, true, "MPICH"]', '[1, 1, true, "MPICH"]')
    finding = slurm_mpi.check(SlurmCluster(), 2)
    assert finding.text == "pmi2 started 2 lonely worlds of 1 rank"
    assert "cluster.mpi=mpiexec" in finding.remedy
    fake_srun(commands, complaint="srun: error: can not load PMIx library", code=1)
    assert "can not load PMIx" in slurm_mpi.check(SlurmCluster(), 2).text
    busy = "srun: error: Unable to allocate resources: Requested nodes are busy"
    fake_srun(commands, complaint=busy, code=1)
    assert slurm_mpi.check(SlurmCluster(), 2).status == "skipped"


def test_nodes_that_do_not_share_the_directory_or_the_time_are_named(commands, tmp_path):
    now = time.time()
    fake_srun(commands, PROBED % (1, now + 1, "true", ""), PROBED % (2, now + 3600, "false", ""))
    shared, clocks, devices = nodes.check(SlurmCluster(), tmp_path, 2)
    assert (shared.status, clocks.status, devices.status) == ("fail", "warn", "ok")
    assert "not the same on n2" in shared.text
    assert clocks.text.startswith("n2 is 3")
    assert clocks.text.endswith("s ahead")
    fake_srun(commands, PROBED % (1, now + 1, "true", ""), PROBED % (2, now + 1, "true", "no hard links"))
    assert next(nodes.check(SlurmCluster(), tmp_path, 2)).text == "n2: no hard links"
    fake_srun(commands, complaint="srun: error: Invalid account", code=1)
    (only,) = nodes.check(SlurmCluster(), tmp_path, 2)
    assert (only.status, only.text) == ("fail", "srun: error: Invalid account")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin"]


def test_the_probe_tells_what_its_node_sees(tmp_path):
    (tmp_path / "token").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "hpc.doctor.probe", str(tmp_path), "token"], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout.removeprefix("facts "))
    assert (facts["sees"], facts["trouble"], facts["fsync"] > 0) == (True, "", True)


def test_doctor_takes_one_folder_and_cluster_words(tmp_path, capsys):
    assert main(["doctor", str(tmp_path), "elsewhere"]) == 2
    assert "one folder at a time" in capsys.readouterr().err
    assert main(["doctor", "cluster=slrum"]) == 2
    assert "did you mean 'slurm'" in capsys.readouterr().err
