"""The local launcher: what ranks are started with, and how their end is told. Real ranks, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hpc.errors import LaunchError
from hpc.launch.environment import Crew, find_mpiexec, rank_command, rank_environment, share_cpus
from hpc.settings import LocalCluster

HERE = Path(__file__).parent


def cpus(monkeypatch, number):
    monkeypatch.setattr("hpc.launch.environment.usable_cpus", lambda: frozenset(range(number)))


@pytest.mark.parametrize(
    ("ranks", "threads", "crew"),
    [
        (2, "auto", Crew(2, 4)),
        (3, "auto", Crew(3, 2)),
        (16, "auto", Crew(16, 1)),
        ("auto", "auto", Crew(8, 1)),
        ("auto", 3, Crew(2, 3)),
        ("auto", 9, Crew(1, 9)),
        (5, 7, Crew(5, 7)),
    ],
)
def test_cpus_are_shared(monkeypatch, ranks, threads, crew):
    cpus(monkeypatch, 8)
    assert share_cpus(LocalCluster(ranks=ranks, threads_per_process=threads)) == crew


def test_an_outer_job_does_not_reach_the_ranks():
    outer = {"PMI_RANK": "3", "SLURM_NTASKS": "8", "OMPI_X": "1", "HYDRA_LAUNCHER": "slurm", "SLURM_CONF": "/c"}
    inner = rank_environment(Crew(2, 3), {**outer, "PATH": "/bin", "OMP_NUM_THREADS": "64"})
    assert inner.keys() & outer.keys() == {"SLURM_CONF"}
    assert inner["PATH"] == "/bin"
    assert inner["OMP_NUM_THREADS"] == inner["OPENBLAS_NUM_THREADS"] == inner["MKL_NUM_THREADS"] == "3"
    assert inner["TESSERA_RANKS"] == "2"


def test_an_empty_part_of_the_python_path_is_not_the_working_folder():
    assert rank_environment(Crew(1, 1), {"PYTHONPATH": ":/a::/b:"})["PYTHONPATH"] == "/a:/b"
    assert rank_environment(Crew(1, 1), {}).get("PYTHONPATH") is None


def test_mpiexec_is_found_or_named(monkeypatch):
    assert find_mpiexec(None) == [str(Path(sys.executable).with_name("mpiexec"))]
    assert find_mpiexec("env -i") == ["env", "-i"]
    assert rank_command(["-m", "x"], 1, "absent") == [sys.executable, "-P", "-u", "-m", "x"]
    with pytest.raises(LaunchError, match=r"cluster\.mpiexec: there is no command 'absent'"):
        find_mpiexec("absent")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="pip install mpich"):
        find_mpiexec(None)


class Tessera:
    """The command line as a process of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hpc", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def toy(self, *words: str) -> subprocess.Popen:
        return self.start("--config-dir", str(HERE / "conf"), "job=toy", "run.dir=run", "engine.heartbeat=0.1", *words)

    def progress(self) -> dict:
        try:
            return json.loads((self.run / "progress.json").read_text())
        except (OSError, ValueError):
            return {"stages": [], "ranks": []}

    def wait_until_some_are_done(self, number: int = 1) -> None:
        end = time.monotonic() + 30
        while sum(s["done"] for s in self.progress()["stages"]) < number:
            assert time.monotonic() < end, "the run does not get anywhere"
            time.sleep(0.05)


@pytest.fixture
def tessera(tmp_path):
    return Tessera(tmp_path)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def living(pids) -> list[int]:
    """Which processes are there and not just waiting to be reaped."""
    return [p for p in pids if Path(f"/proc/{p}/stat").exists() and " Z " not in Path(f"/proc/{p}/stat").read_text()]


@pytest.mark.mpi
def test_a_run_from_start_to_report(tessera):
    code, output = ended(tessera.toy("cluster.ranks=2", "cluster.threads_per_process=1", "job.units=6", "job.steps=2"))
    assert code == 0, output
    assert f"results  {tessera.run / 'results'}" in output
    assert f"report   {tessera.run / 'report' / 'index.html'}" in output
    assert "hpc" in json.loads((tessera.run / "provenance.json").read_text())["attempts"][0]["command"]
    page = tessera.run / "report" / "index.html"
    page.unlink()
    code, output = ended(tessera.start("report", "run"))
    assert (code, output.strip()) == (0, str(page))
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.mpi
def test_files_of_the_working_folder_are_no_modules_of_the_ranks(tessera):
    for name in ("signal", "socket", "logging", "numpy", "hpc"):
        (tessera.folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder')\n")
    code, output = ended(tessera.toy("cluster.ranks=2", "job.units=4"))
    assert code == 0, output


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_printed_line_goes_on(tessera, number):
    process = tessera.toy("cluster.ranks=2", "job.units=14", "job.seconds=0.7")  # longer than the screen looks away
    tessera.wait_until_some_are_done(4)
    process.send_signal(number)
    code, output = ended(process)
    assert code == 75, output
    assert "stopping: saving" in output
    words = output.split("go on with:")[1].split()
    assert words[:2] == ["tessera", "resume"]
    done = sum(s["done"] for s in tessera.progress()["stages"])
    assert done >= 4
    code, output = ended(tessera.start(*words[1:], "cluster.ranks=1", "engine.heartbeat=0.5"))
    assert code == 0, output
    assert tessera.progress()["stages"][0]["restored"] == done
    config = yaml.safe_load((tessera.run / "config.yaml").read_text())
    assert (config["cluster"]["ranks"], config["engine"]["heartbeat"], config["job"]["units"]) == (1, 0.5, 14)


@pytest.mark.mpi
def test_a_second_signal_kills_and_leaves_no_ranks(tessera):
    process = tessera.toy("cluster.ranks=2", "job.units=4", "job.seconds=30")
    end = time.monotonic() + 30
    # Ranks that are asked before their first unit have nothing to finish, and stop at once.
    while sum(r["unit"] is not None for r in tessera.progress()["ranks"]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 75
    assert "killed without saving" in output
    assert "tessera resume" in output
    end = time.monotonic() + 5
    while living(r["pid"] for r in tessera.progress()["ranks"]):
        assert time.monotonic() < end, "ranks survive their launcher"
        time.sleep(0.05)


@pytest.mark.mpi
def test_a_killed_rank_is_told_with_the_units_in_flight(tessera):
    process = tessera.toy("cluster.ranks=2", "job.units=60", "job.seconds=0.5")
    tessera.wait_until_some_are_done(2)
    os.kill(tessera.progress()["ranks"][1]["pid"], signal.SIGKILL)
    code, output = ended(process)
    assert code == 1, output
    assert "signal 9 (SIGKILL" in output
    assert "these units were being computed: u000" in output
    assert "BAD TERMINATION" in output
    code, output = ended(tessera.start("status", "run"))
    assert "failed" in output
    assert "go on with:  tessera resume" in output


@pytest.mark.mpi
def test_a_failed_rank_is_told_with_its_traceback(tessera):
    code, output = ended(tessera.toy("cluster.ranks=2", "job.fail_setup_on=1"))
    assert code == 1
    assert "failed: rank 1 (" in output
    assert "in stage setup: RuntimeError: this rank cannot set up" in output
    assert "toyjob.py" in output
    assert "logs/rank-00001.log" in output


@pytest.mark.mpi
def test_quarantined_units_are_named_and_tried_again_on_request(tessera):
    code, output = ended(tessera.toy("job.units=5", "job.fail=[u00003]", "engine.retries=0"))
    assert code == 3, output
    assert "squares u00003: ValueError: poisoned u00003" in output
    assert "--retry-failed" in output
    code, output = ended(tessera.start("resume", "run", "--retry-failed"))
    assert "1 quarantined units will be tried again" in output
    assert code == 3


@pytest.mark.mpi
def test_bad_input_and_changed_configuration_exit_with_2(tessera):
    assert ended(tessera.toy("job.units=2"))[0] == 0
    code, output = ended(tessera.toy("job.units=3"))
    assert code == 2
    assert "job.units" in output


@pytest.mark.mpi
def test_a_sweep_checks_all_before_it_runs_any(tessera):
    toy = ["--config-dir", str(HERE / "conf"), "-m", "job=toy", "run.sweep_dir=sweep"]
    code, output = ended(tessera.start(*toy, "job.units=2,none"))
    assert code == 2
    assert "in the combination job.units=none:" in output
    assert not (tessera.folder / "sweep").exists()
    code, output = ended(tessera.start(*toy, "job.units=2", "job.fail=[],[u00001]"))
    assert code == 3, output
    assert [line.split()[:2] for line in output.splitlines()[-4:-2]] == [["0", "done"], ["1", "quarantined"]]
    assert "job.fail=[u00001]" in output.splitlines()[-3]
    assert sorted(p.name for p in (tessera.folder / "sweep").iterdir()) == [
        "0",
        "1",
        "sweep.csv",
        "sweep.h5",
        "sweep.json",
    ]


@pytest.mark.mpi
def test_a_stopped_sweep_says_how_to_go_on(tessera):
    toy = ["--config-dir", str(HERE / "conf"), "-m", "job=toy", "run.sweep_dir=."]
    tessera.run = tessera.folder / "0"
    process = tessera.start(*toy, "job.units=50", "job.seconds=0.2", "engine.heartbeat=0.1", "seed=1,2")
    tessera.wait_until_some_are_done()
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 75, output
    assert f"the rest was not started; go on with:  tessera resume {tessera.folder}\n" in output
    for words in ([tessera.folder], [tessera.folder / "1", tessera.folder / "0"]):  # as a sweep, and run by run
        tessera.run = tessera.folder / ("0" if len(words) == 1 else "1")
        begun = tessera.progress().get("attempt", 0)
        process = tessera.start("resume", *map(str, words))
        end = time.monotonic() + 30
        while not ((now := tessera.progress()).get("attempt", 0) > begun and now["stages"][0]["done"]):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        code, output = ended(process)
        assert code == 75, output
        assert output.count("stopped and saved") == 1
        assert "not started" in output or "0: not begun" in output
