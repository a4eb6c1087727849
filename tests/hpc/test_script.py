"""The batch script: a pure function of the configuration, compared line by line with what was reviewed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpc.cli.compose import compose_config, resolved
from hpc.cli.folders import config_folders
from hpc.errors import ConfigError
from hpc.launch.defaults import with_users_defaults
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
    ("text", "minutes"),
    {
        "90": 90,
        "90:00": 90,
        "90:30": 91,
        "1:30:00": 90,
        "0:01:31": 2,
        "4:5:6": 246,
        "2-12": 3600,
        "2-12:30": 3630,
        "2-12:30:00": 3630,
        "2-12:30:01": 3631,
        "0-2:0": 120,
        "0": None,
        "UNLIMITED": None,
        "infinite": None,
    }.items(),
)
def test_time_limits_are_sbatchs(text, minutes):
    cluster = SlurmCluster(time=text)
    assert (cluster.minutes, cluster.unlimited) == (minutes, minutes is None)
    line = f"#SBATCH --time={minutes or 'UNLIMITED'}\n"
    assert line in script_text(cluster, ONE)


def test_no_time_is_the_partitions():
    assert (SlurmCluster().minutes, SlurmCluster().unlimited) == (None, False)
    assert "--time" not in script_text(SlurmCluster(), ONE)


def test_a_number_of_minutes_is_one_on_the_command_line_only(tmp_path):
    """In a file, YAML makes 14400 of 4:00:00: days instead of hours."""
    words = ["job=toy", "cluster=slurm", "cluster.signal_delay=30"]
    folders = config_folders([str(GOLDEN.parent / "conf")])
    wanted = (
        ("cluster.time=-1", None),
        ("cluster.time=90", 90),
        ("cluster.time=4:00:00", 240),
        ("cluster.time=2-12:30", 3630),
    )
    for word, minutes in wanted:
        section = resolved(compose_config([*words, word], folders), (), folders)["cluster"]
        assert build(SlurmCluster, section, "cluster").minutes == minutes
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "site.yaml").write_text("defaults: [slurm, _self_]\ntime: 4:00:00\n")
    folders = config_folders([str(tmp_path), str(GOLDEN.parent / "conf")])
    section = resolved(compose_config(["job=toy", "cluster=site"], folders), (), folders)["cluster"]
    with pytest.raises(ConfigError, match=r"time: 14400 is a number to YAML.*put the limit in quotes"):
        build(SlurmCluster, section, "cluster")


@pytest.mark.parametrize(
    "section",
    [
        {"comment": "x\n#SBATCH --uid=0"},
        {"job_name": "a\rb"},
        {"mail_user": "me@site.org\x00"},
        {"partition": "a\u2028b"},
        {"sbatch": {"licenses": "a\nb"}},
        {"sbatch": {"x y\nz": "a"}},
        {"srun": ["--a\n"]},
        {"dependency": "singleton\n"},
    ],
)
def test_nothing_begins_a_line_of_its_own(section):
    with pytest.raises(ConfigError, match=r"one line without control characters|is no name of a flag"):
        build(SlurmCluster, section, "cluster")


def run_setup(tmp_path: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run the lines before the ranks by a real bash."""
    head = script_text(SlurmCluster(setup=lines), ONE).partition("# setup\n")[2].partition("# command")[0]
    (tmp_path / "job.sh").write_text(f"{head}\necho went on")
    return subprocess.run(["bash", "job.sh"], cwd=tmp_path, capture_output=True, text=True)


def test_a_setup_line_that_fails_ends_the_job_with_its_words(tmp_path):
    (tmp_path / "site.sh").write_text("[ -n '' ]\nfalse\nexport FOUND=1\n")
    (tmp_path / "broken.sh").write_text("return 3\n")
    harmless = (
        "module() { false; return 0; }",
        "module load x",
        "source ./site.sh",
        "false || true",
        "if false; then",
        "x",
    )
    assert run_setup(tmp_path, *harmless, "fi", "for i in 1; do", "set -e", "done").stdout == "went on\n"
    for line, code in (("nosuchcommand --load x", 127), ("source ./broken.sh", 3), ("export A=1; (exit 5)", 5)):
        ended = run_setup(tmp_path, line, "echo after")
        assert (ended.returncode, ended.stdout) == (code, "")
        assert f"failed with exit code {code}; if that is harmless, add: || true" in ended.stderr
        assert any(said.startswith("tessera: cluster.setup: ") for said in ended.stderr.splitlines())


def test_the_environments_defaults_are_taken_where_nothing_else_is_said(capsys):
    environment = {
        "SBATCH_ACCOUNT": "astro",
        "SBATCH_PARTITION": "env",
        "SBATCH_TIMELIMIT": "2-12",
        "SBATCH_OUTPUT": "x",
    }
    cluster = with_users_defaults(SlurmCluster(partition="mine", sbatch={"account": "b"}), environment, say=True)
    assert (cluster.partition, cluster.account, cluster.minutes) == ("mine", None, 3600)
    said = capsys.readouterr().out
    assert "cluster.time=2-12" in said
    assert "not passed on to sbatch: SBATCH_OUTPUT" in said


def test_a_wrong_default_of_the_user_is_named_with_its_variable():
    with pytest.raises(ConfigError, match=r"SBATCH_TIMELIMIT\): time: 'soon' is no limit"):
        with_users_defaults(SlurmCluster(), {"SBATCH_TIMELIMIT": "soon"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": "1:2:3:4"}, "time: '1:2:3:4' is no limit; write '90' (minutes), '4:00:00'"),
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
