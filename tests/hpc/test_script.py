"""The batch script: a pure function of the configuration, compared line by line with what was reviewed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpc.cli.compose import compose_config, resolved
from hpc.cli.folders import config_folders
from hpc.errors import ConfigError
from hpc.launch.script import Batch, script_text
from hpc.options import build
from hpc.settings import Settings, SlurmCluster

GOLDEN = Path(__file__).parent / "golden"
ONE = Batch("tessera-toy", Path("/runs/a b/slurm/1"), Path("/runs/a b/logs/slurm-%j.log"), 1, "/env/bin/python")
MANY = Batch("tessera-toy", Path("/runs/s/slurm/1"), Path("/runs/s/logs/slurm-%A_%a.log"), 12, "/env/bin/python")


def site(name: str) -> SlurmCluster:
    """The settings that a file of conf/cluster stands for."""
    folders = config_folders()
    section = resolved(compose_config([], folders, config_name=f"cluster/{name}"), (), folders)["cluster"]
    return build(SlurmCluster, section, "cluster")


FULL = SlurmCluster(
    nodes=3,
    ranks_per_node=8,
    threads_per_process=4,
    mem="60G",
    gres="gpu:a100:2",
    partition="long",
    account="astro",
    qos="normal",
    constraint="ib",
    reservation="night",
    exclude="n[1-2]",
    nodelist="n3",
    nice=100,
    time="1-12:00:00",
    mail_user="me@site.org",
    mail_type="END,FAIL",
    comment="it's mine",
    signal_delay=300,
    max_requeues=0,
    array_parallelism=3,
    setup=("module load gcc", "export OMP_NUM_THREADS=64"),
    sbatch={"exclusive": True, "licenses": "idl:1", "overcommit": False},
    srun=("--cpu-bind=cores",),
)

CASES = {
    "plain": (SlurmCluster(nodes=2, ranks_per_node=2), ONE),
    "full": (FULL, ONE),
    "array": (SlurmCluster(array_parallelism=3), MANY),
    "mpiexec": (SlurmCluster(nodes=2, ranks_per_node=3, mpi="mpiexec"), ONE),
    "cray": (site("example_cray_gpu"), ONE),
    "pmix": (site("example_pmix"), ONE),
}


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_reviewed_one(name):
    """Set TESSERA_GOLDEN=1 to write the files anew after a change on purpose, and review the difference."""
    text = script_text(*CASES[name])
    file = GOLDEN / f"{name}.sbatch"
    if os.environ.get("TESSERA_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_understands_the_script(name):
    subprocess.run(["bash", "-n"], input=script_text(*CASES[name]), text=True, check=True)


def test_the_thread_budget_has_the_last_word_before_python():
    lines = script_text(FULL, ONE).splitlines()
    budget = next(i for i, line in enumerate(lines) if "OMP_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4" in line)
    theirs = lines.index("export OMP_NUM_THREADS=64")
    srun = next(i for i, line in enumerate(lines) if line.startswith("srun "))
    assert theirs < budget < srun
    assert "--cpus-per-task=4" in lines[srun]


def test_a_failing_rank_decides_the_exit_code(tmp_path):
    """The lines after srun, run by a real bash: the ranks' code comes out, and only a failure asks about coming back."""
    tail = script_text(SlurmCluster(), ONE).partition("# teardown\n")[2].replace("/env/bin/python", "asked")
    (tmp_path / "asked").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "asked").chmod(0o755)
    for code, said in ((0, ""), (75, "-P -m hpc.launch.comeback /runs/a b/slurm/1 75\n")):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", "-c", f"(exit {code})\n{tail}"], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (code, said)


@pytest.mark.parametrize(
    ("text", "minutes"), [("4:00:00", 240), ("2-12:00:00", 3600), ("90:00", 90), ("0:01:31", 2), (None, None)]
)
def test_time_limits(text, minutes):
    assert SlurmCluster(time=text).minutes == minutes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": "30"}, "time: '30' is no limit; write '4:00:00'"),
        ({"time": "tomorrow"}, "is no limit"),
        ({"time": "0:01:00"}, "must be longer than signal_delay (90 s)"),
        ({"mem": "1G", "mem_per_cpu": "1G"}, "exclude each other"),
        ({"mpi": "pmi3"}, "did you mean 'pmix' or 'pmi2'"),
        ({"launcher": "slrum"}, "launcher: there is no 'slrum'; did you mean 'slurm'"),
        ({"ranks": 3}, "cluster.ranks: unknown key"),
    ],
)
def test_wrong_values_are_refused_with_a_hint(changes, said):
    section = {"launcher": "slurm", **changes}
    with pytest.raises(ConfigError) as caught:
        build(Settings, {"job": {}, "run": {"dir": "/r"}, "cluster": section}, "config")
    assert said in str(caught.value)


def test_the_grace_period_leaves_time_to_save():
    def grace(**cluster):
        values = {"job": {}, "run": {"dir": "/r"}, "cluster": cluster, "engine": {"grace": 60}}
        return build(Settings, values, "config").grace

    assert grace(launcher="local") == 60
    assert grace(launcher="slurm", signal_delay=30) == 15
    assert grace(launcher="slurm", signal_delay=600) == 60
