"""The command line from outside: help, version, verbs, mistakes, and what it must not import."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import hpc
from hpc.cli.main import main

CONF = Path(__file__).parent / "conf"
HEAVY = {"numpy", "scipy", "h5py", "mpi4py", "astropy", "matplotlib", "jax", "torch", "hydra", "omegaconf"}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_help_lists_verbs_choices_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("status", "resume", "report", "doctor", "cluster=local", "--cfg", "75 stopped"):
        assert word in text
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_help_of_a_job_shows_its_commented_keys(capsys):
    assert main(["job=toy", "--help", "--config-dir", str(CONF)]) == 0
    text = capsys.readouterr().out
    assert "units: 20 # number of units of the map" in text
    assert "checkpoint:" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tessera {hpc.__version__}\n"


def test_cfg_shows_the_configuration_and_its_parts(capsys):
    job = ["job=toy", "--config-dir", str(CONF), "--cfg"]
    assert main([*job, "job", "job.units=7"]) == 0
    shown = capsys.readouterr().out
    assert "units: 7" in shown
    assert "${job.name}" in shown
    assert main([*job, "job", "--package", "cluster"]) == 0
    assert capsys.readouterr().out.startswith("# @package cluster\nlauncher: local\n")
    assert main([*job, "job", "--resolve"]) == 0
    assert "${" not in capsys.readouterr().out
    assert main([*job, "all"]) == 0
    assert "hydra:" in capsys.readouterr().out
    assert main([*job, "hydra"]) == 0
    assert "checkpoint:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statsu"], "did you mean 'status'"),
        (["--hepl"], "did you mean '--help'"),
        (["status", "--jsno"], "did you mean '--json'"),
        (["job=toy", "--cfg", "jobs"], "'job', 'hydra', 'all'"),
        (["job=toy", "--cfg", "job", "-p", "nowhere"], "no such section"),
        (["job=toy", "--cfg", "job", "-m"], "leave out --multirun"),
        (["job=toy", "--resolve"], "add --cfg job"),
        (["job=toyy"], "did you mean 'toy'"),
        (["status", "/nowhere/run"], "/nowhere/run does not exist"),
        (["resume", "/nowhere/run"], "no run here"),
        (["report", "/nowhere/run"], "no run here"),
        (["resume"], "see tessera resume --help"),
    ],
)
def test_mistakes_exit_with_2_and_name_the_remedy(capsys, words, said):
    with_folder = words if "=" not in words[0] else [*words, "--config-dir", str(CONF)]
    assert main(with_folder) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert captured.out == ""


def test_completion_speaks_bash(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tessera"])
    assert main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion tessera")
    monkeypatch.setenv("COMP_LINE", "tessera job=toy cluster.r")
    assert main(["-sc", "query=bash", "--config-dir", str(CONF)]) == 0
    assert capsys.readouterr().out.split() == ["cluster.ranks="]


def test_a_workload_brings_its_own_verb(monkeypatch, capsys):
    from importlib.metadata import EntryPoint

    entry = EntryPoint("shout", "json:dumps", "hpc.verbs")
    monkeypatch.setattr("hpc.cli.main.entry_points", lambda group: [entry] if group == "hpc.verbs" else [])
    assert main(["shout", "x"]) == '["x"]'  # json.dumps stands for the verb's main
    assert main(["--help"]) == 0
    assert "from json" in capsys.readouterr().out


@pytest.fixture
def run(tmp_path):
    """A run directory with the two files that status reads."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("job: {name: toy}\nengine: {heartbeat: 2.0}\n")
    progress = {"state": "done", "attempt": 1, "stage": None, "stages": [], "rate": 0, "eta": None, "message": ""}
    progress |= {"started": 1.0, "updated": 2.0, "size": 1, "threads": 1, "ranks": []}
    (path / "progress.json").write_text(json.dumps(progress))
    return path


def test_status_answers_in_json(run, capsys):
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"
    assert main(["status", str(run.parent), "--json"]) == 0
    assert [r["job"] for r in json.loads(capsys.readouterr().out)] == ["toy"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["status", "RUN"], ["job=toy", "--help"]])
def test_quick_answers_import_nothing_heavy_and_take_under_half_a_second(run, words):
    program = "import sys; from hpc.cli.main import main; code = main(sys.argv[1:]); "
    program += "print('modules', *sorted({m.partition('.')[0] for m in sys.modules})); sys.exit(code)"
    words = [str(run) if word == "RUN" else word for word in words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[-1].split()) & HEAVY == set()
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.5


def test_settings_and_errors_import_no_numpy():
    program = "import sys, hpc.errors, hpc.options, hpc.settings; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_a_reader_that_goes_away_is_no_failure():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "hpc", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert "Traceback" not in done.stderr
