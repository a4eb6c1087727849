"""Submission, against made-up SLURM commands; the real ones are in tests/slurm."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from slurm_queue import job, queue

from hpc.cli.main import main
from hpc.errors import LaunchError, LockedError
from hpc.launch.already import refuse_if_submitted
from hpc.launch.slurm import explain_refusal, require_acceptable
from hpc.settings import SlurmCluster
from hpc.store.records import write_record
from hpc.store.sealing import seal_results
from hpc.watch.submissions import submissions

HERE = Path(__file__).parent
TOY = ["--config-dir", str(HERE / "conf"), "job=toy", "cluster=slurm"]

SBATCH = """\
env > {folder}/environment
if [ "$1" = --test-only ]; then cat > {folder}/judged; exit 0; fi
n=$(( $(cat {folder}/count 2>/dev/null || echo 100) + 1 )); echo $n > {folder}/count
cp "$1" {folder}/script-$n
echo "Submitted batch job $n"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of SLURM commands that accept everything, and write down what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    add("sbatch", SBATCH.format(folder=folder))
    add("srun", "exit 1")
    add("scontrol", '[ "$2" = config ] && echo "MaxArraySize = 4" || { echo "Invalid job id specified" >&2; exit 1; }')
    add("squeue", "echo 'Invalid job id specified' >&2; exit 1")
    add("sacct", "exit 1")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_run_is_submitted_and_remembered(slurm, tmp_path, monkeypatch, capsys):
    for name in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_PARTITION", "PMI_RANK"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    assert main([*TOY, "cluster.nodes=2", "cluster.ranks_per_node=3", "run.dir=r"]) == 0
    said = capsys.readouterr().out
    assert "submitted as SLURM job 101: 2 nodes × 3 ranks × 1 thread" in said
    assert f"tessera status {tmp_path / 'r'} --watch" in said
    (submission,) = submissions(tmp_path / "r")
    assert (submission.slurm_id, submission.cluster["nodes"]) == ("101", 2)
    assert Path(submission.script).read_text() == (slurm / "script-101").read_text()
    passed_on = dict(line.partition("=")[::2] for line in (slurm / "environment").read_text().splitlines())
    assert {k for k in passed_on if k.startswith(("SLURM", "SBATCH", "PMI"))} == {"SLURM_CONF"}
    assert os.environ["SLURM_JOB_ID"] == "7"
    pickled = tmp_path / "r" / "slurm" / "1" / "101_submitted.pkl"
    assert str(tmp_path / "r").encode() in pickled.read_bytes()


def test_a_dry_run_prints_the_script_and_writes_nothing(slurm, tmp_path, capsys):
    words = [*TOY, "cluster.nodes=2", "cluster.time='0:10:00'", "job.units=1", "run.dir=r"]
    assert main([*words, "cluster.dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "r").exists()
    assert "stage    squares: 1 units; 1 of 2 ranks will have nothing to do" in said
    assert main(words) == 0
    assert (slurm / "script-101").read_text() in said


def test_a_sweep_is_split_at_the_sites_limit_and_throttled(slurm, tmp_path, capsys):
    assert main([*TOY, "-m", "seed=1,2,3,4,5", "cluster.array_parallelism=2", "run.sweep_dir=s"]) == 0
    said = capsys.readouterr().out
    assert "submitted as SLURM jobs 101, 102, 5 runs" in said
    assert [line.split()[1] for line in said.splitlines()[1:6]] == [f"seed={n}" for n in range(1, 6)]
    first, second = ((slurm / f"script-{n}").read_text() for n in (101, 102))
    assert "#SBATCH --array=0-2%2\n" in first
    assert "#SBATCH --array=0-1%2\n" in second
    assert "#SBATCH --dependency=afterany:101\n" in second
    jobs = [submissions(tmp_path / "s" / str(n))[0].slurm_id for n in range(5)]
    assert jobs == ["101_0", "101_1", "101_2", "102_0", "102_1"]
    assert (tmp_path / "s/slurm/2/runs.txt").read_text().split() == [str(tmp_path / "s" / n) for n in "34"]
    record = json.loads((tmp_path / "s/sweep.json").read_text())
    assert [m["label"] for m in record["members"]] == [f"seed={n}" for n in range(1, 6)]
    assert main([*TOY, "-m", "cluster.nodes=1,2", "run.sweep_dir=t"]) == 2
    assert "not over cluster.*" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_only_the_unfinished_runs_of_a_sweep_are_submitted_again(slurm, tmp_path, capsys):
    assert main([*TOY, "-m", "seed=1,2,3", "run.sweep_dir=s"]) == 0
    for number, state in (("0", "done"), ("1", "stopped"), ("2", "quarantined")):
        record = {
            "state": state,
            "updated": 1.0,
            "started": 0.0,
            "attempt": 1,
            "stage": None,
            "stages": [],
            "ranks": [],
        }
        record |= {"rate": 0, "eta": None, "size": 1, "threads": 1, "message": ""}
        (tmp_path / "s" / number / "progress.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["resume", "s", "cluster.nodes=2"]) == 0
    said = capsys.readouterr().out
    assert "1 done, 1 stopped, 1 quarantined; going on with 1\n" in said
    assert submissions(tmp_path / "s/1")[-1].slurm_id == "102"
    assert "#SBATCH --nodes=2\n" in (slurm / "script-102").read_text()
    assert len(submissions(tmp_path / "s/2")) == 1
    assert main(["report", "s"]) == 0
    rows = (tmp_path / "s/sweep.csv").read_text().splitlines()
    assert rows[0].startswith("run,state,seconds,units,quarantined,seed")
    assert [row.split(",")[1] for row in rows[1:]] == ["done", "stopped", "quarantined"]


def test_the_launcher_of_a_run_can_change(slurm, tmp_path, capsys):
    assert main([*TOY, "run.dir=r"]) == 0
    assert main(["resume", "r", "cluster=local", "cluster.ranks=2", "job.units=3"]) == 2
    assert "job.units cannot change" in capsys.readouterr().err
    assert main(["resume", "r", "cluster=slurm", "cluster.after=9", "cluster.time='1:00:00'"]) == 0
    script = (slurm / "script-102").read_text()
    assert "#SBATCH --dependency=afterok:9\n" in script
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in script
    assert yaml.safe_load((tmp_path / "r/config.yaml").read_text())["cluster"]["time"] == "1:00:00"
    assert main(["resume", "r", "cluster.nods=3"]) == 2
    assert "did you mean 'nodes'" in capsys.readouterr().err


def test_a_run_that_waits_is_not_submitted_twice(slurm, tmp_path):
    assert main([*TOY, "run.dir=r"]) == 0
    (slurm / "squeue").write_text(f"#!/bin/sh\n{queue(job('101', 'PENDING', Reason='Priority'))}\n")
    with pytest.raises(LockedError, match=r"as job 101 \(PENDING, Priority\)"):
        refuse_if_submitted(tmp_path / "r")


def test_another_run_to_wait_for_must_be_on_its_way(slurm, tmp_path, capsys):
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "config.yaml").write_text("job: {name: toy}\n")
    for wrong in ("nothing", "runs"):
        assert main([*TOY, "run.dir=r", f"cluster.after={wrong}"]) == 2
        assert f"no run and no sweep lies in {tmp_path / wrong}; give" in capsys.readouterr().err
    assert main([*TOY, "run.dir=r", "cluster.after=runs/other"]) == 2
    assert "is not started and in no queue; run it first, or leave cluster.after out" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


REFUSALS = {
    "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition name "
    "specified": "cluster.partition: choose one of those of sinfo",
    "allocation failure: Requested node configuration is not available": "cluster.ranks_per_node",
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified": "sacctmgr",
    "sbatch: error: Memory specification can not be satisfied": "cluster.mem",
    "sbatch: error: Unable to contact slurm controller (connect failure)": "try again in a while",
    "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)": "sinfo -s",
    "sbatch: error: Batch job submission failed: Requested partition configuration not available now": "ask for less",
    "sbatch: error: Batch job submission failed: User's group not permitted to use this partition": "choose another",
    "sbatch: error: Batch job submission failed: Access/permission denied": "ask the site",
    "sbatch: error: something new": "cluster.dry_run=true",
}


@pytest.mark.parametrize("said", REFUSALS)
def test_refusals_are_quoted_and_explained(said, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    text = explain_refusal(said)
    assert text.startswith("SLURM refused the job: ")
    assert "error: " not in text
    assert said.splitlines()[-1].rpartition("error: ")[2] in text
    assert REFUSALS[said] in text.splitlines()[1]


def test_a_job_that_can_never_start_is_refused_before_anything_is_written(slurm, tmp_path, monkeypatch, capsys):
    refusal = "allocation failure: Requested node configuration is not available"
    (slurm / "sbatch").write_text(f"#!/bin/sh\necho '{refusal}' >&2; exit 1\n")
    assert main([*TOY, "cluster.nodes=99", "run.dir=r"]) == 2
    assert "ask for no more nodes than there are" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'allocation failure: Requested nodes are busy' >&2; exit 1\n")
    require_acceptable(SlurmCluster(), 1, tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="needs sbatch, which is not on PATH; log in to the cluster"):
        require_acceptable(SlurmCluster(), 1, tmp_path)


@pytest.mark.mpi
def test_nodes_that_do_not_share_the_run_directory_are_named(tmp_path):
    """Two ranks whose paths lead to different directories, as a node's own /tmp would."""
    paths = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    for path in paths:
        path.mkdir(parents=True)
        config = {"job": {"_target_": "toyjob.ToyJob", "name": "toy"}, "run": {"dir": str(path)}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    first, second = ([sys.executable, "-m", "hpc.rank", str(path)] for path in paths)
    done = subprocess.run(
        [mpiexec, "-n", "1", *first, ":", "-n", "1", *second],
        env={**os.environ, "PYTHONPATH": str(HERE), "TESSERA_RANKS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "is not the same directory on all nodes" in done.stderr
    assert "put run.dir on a file system that all nodes share" in done.stderr
    assert json.loads((paths[0] / "failure.json").read_text())["expected"]
    assert not (paths[1] / "logs").exists()


EVIL = """\
import os, pickle, sys
class Evil:
    def __reduce__(self): return (os.system, ("echo CODE OF SOMEBODY ELSE",))
open(sys.argv[1], "wb").write(pickle.dumps(Evil()))
"""


def on_the_node(slurm: Path, folder: Path) -> subprocess.CompletedProcess:
    """What the submitted script starts, as a task of job 101."""
    (command,) = (line for line in (slurm / "script-101").read_text().splitlines() if line.startswith("srun "))
    words = shlex.split(command)
    task = {"SLURM_JOB_ID": "101", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    task |= {"SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SUBMITIT_EXECUTOR": "slurm", "TESSERA_RANKS": "1"}
    return subprocess.run(
        words[words.index(sys.executable) :],
        cwd=folder,
        env={**os.environ, **task, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_task_runs_only_what_nobody_else_could_have_put_there(slurm, tmp_path):
    before = os.umask(0o002)
    try:
        assert main([*TOY, "job.units=3", "run.dir=r"]) == 0
    finally:
        os.umask(before)
    folder = tmp_path / "r" / "slurm" / "1"
    pickled = folder / "101_submitted.pkl"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [file for file in folder.iterdir() if not file.is_symlink()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    (tmp_path / "signal.py").write_text("raise SystemExit('a file of the working folder was imported')\n")
    honest = pickled.read_bytes()
    subprocess.run([sys.executable, "-P", "-c", EVIL, pickled], check=True)
    for mode in (0o770, 0o707, 0o750):
        folder.chmod(mode)
        done = on_the_node(slurm, tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"with mode {mode:o}, so others may have put their own code there" in done.stderr
        assert "submit the run again with tessera resume" in done.stderr
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")
    done = on_the_node(slurm, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    folder.unlink()
    folder.with_name("moved").rename(folder)
    folder.chmod(0o700)
    pickled.write_bytes(honest)
    done = on_the_node(slurm, tmp_path)
    assert (done.returncode, (tmp_path / "r/results/squares.txt").read_text().split()[0]) == (0, "3"), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_believed(slurm, tmp_path):
    assert main([*TOY, "job.units=3", "run.dir=r"]) == 0
    os.chown(tmp_path / "r" / "slurm" / "1", 65534, -1)
    done = on_the_node(slurm, tmp_path)
    assert done.returncode == 2
    assert "belongs to user 65534" in done.stderr


def progress(run: Path, state: str) -> None:
    """Let the files of a run say how it ended."""
    record = {"state": state, "updated": 1.0, "started": 0.0, "attempt": 1, "stage": None, "stages": [], "ranks": []}
    record |= {"rate": 0, "eta": None, "size": 1, "threads": 1, "message": ""}
    (run / "progress.json").write_text(json.dumps(record))


def accepted(slurm: Path) -> int:
    """How many jobs sbatch has taken."""
    return int((slurm / "count").read_text()) - 100


TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
LOST = f"""\
if [ "$1" = --test-only ]; then exit 0; fi
n=$(( $(cat {{folder}}/count 2>/dev/null || echo 100) + 1 )); echo $n > {{folder}}/count
echo "$1" > {{folder}}/took
echo '{TIMED_OUT}' >&2; exit 1
"""


def write(slurm: Path, name: str, script: str) -> None:
    (slurm / name).write_text(f"#!/bin/sh\n{script}\n")
    (slurm / name).chmod(0o755)


def squeue_shows(slurm: Path, number: str, command: str) -> None:
    """Let squeue show a job to who asks for those of a user, or for this number."""
    listed = queue(job(number, "PENDING", Reason="Priority", Command=command))
    write(slurm, "squeue", listed)


@pytest.mark.parametrize("members", [1, 3])
def test_a_job_whose_answer_was_lost_is_found(slurm, tmp_path, capsys, monkeypatch, members):
    monkeypatch.setattr("hpc.launch.slurm._LOOKS", (0.0,))
    write(slurm, "sbatch", LOST.format(folder=slurm))
    names = "" if members == 1 else "".join(f" 88_{n}" for n in range(members))
    rows = [job(n, "PENDING", Command="SCRIPT") for n in names.split() or ["88"]]
    write(slurm, "squeue", f'took=$(cat {slurm}/took)\n{queue(*rows)} | sed "s|SCRIPT|$took|"')
    words = ["run.dir=r"] if members == 1 else ["-m", "seed=1,2,3", "run.sweep_dir=r"]
    assert main([*TOY, *words]) == 0
    said = capsys.readouterr().out
    assert "Socket timed out on send/recv operation; but SLURM has the job" in said
    assert "submitted as SLURM job 88" in said
    runs = [tmp_path / "r"] if members == 1 else [tmp_path / "r" / str(n) for n in range(members)]
    assert [[s.slurm_id for s in submissions(run)] for run in runs] == [[n] for n in names.split() or ["88"]]
    folder = tmp_path / "r" / "slurm" / "1"
    for run, name in zip(runs, names.split() or ["88"], strict=True):  # what its tasks look for under its number
        assert str(run).encode() in (folder / f"{name}_submitted.pkl").read_bytes()
    with pytest.raises(LockedError, match="is in SLURM already as job 88"):
        refuse_if_submitted(runs[-1])


def test_a_job_that_may_be_queued_is_looked_for_before_another_is_submitted(slurm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpc.launch.slurm._LOOKS", (0.0,))
    write(slurm, "sbatch", LOST.format(folder=slurm))
    write(slurm, "squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1")
    assert main([*TOY, "run.dir=r"]) == 2
    assert "the job may be queued all the same; SLURM cannot be asked now" in capsys.readouterr().err
    assert main(["status", "r"]) == 0
    assert "it may be queued" in " ".join(capsys.readouterr().out.split())
    assert main(["resume", "r"]) == 2
    assert "tessera resume" in (said := capsys.readouterr().err)
    assert "--job-has-ended" in said
    assert accepted(slurm) == 1
    write(slurm, "sbatch", SBATCH.format(folder=slurm))
    squeue_shows(slurm, "88", f"{tmp_path}/r/slurm/1/submission_file_6f.sh")
    assert main(["resume", "r"]) == 2
    assert "is in SLURM already as job 88 (PENDING, Priority)" in capsys.readouterr().err
    assert [s.slurm_id for s in submissions(tmp_path / "r")] == ["88"]
    assert accepted(slurm) == 1


def test_a_job_that_never_came_is_submitted_again(slurm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpc.launch.slurm._LOOKS", (0.0,))
    write(slurm, "sbatch", LOST.format(folder=slurm))
    write(slurm, "squeue", "")
    assert main([*TOY, "run.dir=r"]) == 2
    assert "the queue does not show it so far" in capsys.readouterr().err
    write(slurm, "sbatch", SBATCH.format(folder=slurm))
    assert main(["resume", "r"]) == 0
    assert [s.slurm_id for s in submissions(tmp_path / "r")] == ["102"]


@pytest.mark.parametrize("said", ["", "88", "Welcome to the cluster"])
def test_an_sbatch_that_names_no_number_may_have_taken_the_job(slurm, tmp_path, capsys, monkeypatch, said):
    monkeypatch.setattr("hpc.launch.slurm._LOOKS", (0.0,))
    write(slurm, "sbatch", f'[ "$1" = --test-only ] && exit 0; echo "$1" > {slurm}/took; echo "{said}"')
    listed = queue(job("88", "PENDING", Command="SCRIPT"))
    write(slurm, "squeue", f'took=$(cat {slurm}/took)\n{listed} | sed "s|SCRIPT|$took|"')
    assert main([*TOY, "run.dir=r"]) == 0
    shown = capsys.readouterr().out
    assert f"sbatch said: {said or 'nothing'}; but SLURM has the job" in shown
    assert [s.slurm_id for s in submissions(tmp_path / "r")] == ["88"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_job_that_came_without_a_word_works_unless_another_took_its_place(slurm, tmp_path, monkeypatch, replaced):
    monkeypatch.setattr("hpc.launch.slurm._LOOKS", (0.0,))
    write(slurm, "sbatch", LOST.format(folder=slurm).replace("echo '", f'cp "$1" {slurm}/script-$n; echo \''))
    write(slurm, "squeue", "")
    assert main([*TOY, "job.units=3", "run.dir=r"]) == 2
    if replaced:
        write(slurm, "sbatch", SBATCH.format(folder=slurm))
        assert main(["resume", "r"]) == 0
    done = on_the_node(slurm, tmp_path)
    if replaced:
        assert (done.returncode, (tmp_path / "r/progress.json").exists()) == (2, False)
        assert "job 102 was submitted in the place of this one" in done.stderr
    else:
        assert (done.returncode, (tmp_path / "r/results/squares.txt").read_text().split()[0]) == (0, "3"), done.stderr


def test_a_refusal_leaves_no_submission(slurm, tmp_path, capsys):
    write(
        slurm, "sbatch", '[ "$1" = --test-only ] && exit 0; echo "sbatch: error: Invalid qos specification" >&2; exit 1'
    )
    assert main([*TOY, "run.dir=r"]) == 2
    assert "SLURM refused the job: Invalid qos specification\ncluster.qos" in capsys.readouterr().err
    assert submissions(tmp_path / "r") == []


def test_a_silent_scheduler_lets_no_second_job_in(slurm, tmp_path, capsys):
    assert main([*TOY, "run.dir=r"]) == 0
    assert main([*TOY, "-m", "seed=1,2", "run.sweep_dir=s"]) == 0
    write(slurm, "squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1")
    for words in (["resume", "r"], ["resume", "s"], [*TOY, "run.dir=r"], [*TOY, "-m", "seed=1,2", "run.sweep_dir=s"]):
        capsys.readouterr()
        assert main(words) == 2
        assert "Socket timed out" in (said := capsys.readouterr().err)
        assert "--job-has-ended" in said
    assert accepted(slurm) == 2
    assert main(["resume", "r", "s", "--job-has-ended"]) == 0
    assert accepted(slurm) == 4


def test_a_sweep_typed_again_submits_what_is_neither_done_nor_on_its_way(slurm, tmp_path, capsys):
    words = [*TOY, "-m", "seed=1,2,3", "run.sweep_dir=s"]
    assert main(words) == 0
    progress(tmp_path / "s/0", "done")
    write(slurm, "squeue", queue(job("101_1", "PENDING"), job("101_2", "FAILED")))
    assert main(words) == 0
    assert "1 done, 1 pending, 1 failed; going on with 2\n" in capsys.readouterr().out
    assert [len(submissions(tmp_path / "s" / n)) for n in "012"] == [1, 1, 2]


def test_a_run_that_is_done_is_not_queued_again(slurm, tmp_path, capsys):
    assert main([*TOY, "run.dir=r"]) == 0
    progress(tmp_path / "r", "done")
    (tmp_path / "r/results/squares.txt").write_text("1\n")
    for words in ([*TOY, "run.dir=r"], ["resume", "r"]):
        capsys.readouterr()
        assert main(words) == 0
        assert "done already, nothing is submitted" in capsys.readouterr().out
    assert main([*TOY, "run.dir=r", "job.units=77"]) == 2
    assert "another configuration" in capsys.readouterr().err
    progress(tmp_path / "r", "quarantined")
    assert main(["resume", "r"]) == 3
    assert "--retry-failed" in capsys.readouterr().out
    assert accepted(slurm) == 1
    progress(tmp_path / "r", "done")
    (tmp_path / "r/results/squares.txt").unlink()  # the ranks make it again from the segments
    assert main(["resume", "r"]) == 0
    assert accepted(slurm) == 2


@pytest.mark.parametrize("state", ["done", "quarantined"])
def test_a_finished_run_whose_results_are_not_what_it_wrote_is_queued_again(slurm, tmp_path, capsys, state):
    """One file of several, in a run and in a member of a sweep."""
    assert main([*TOY, "run.dir=r"]) == 0
    assert main([*TOY, "-m", "seed=1,2", "run.sweep_dir=s"]) == 0
    for run in (tmp_path / "r", tmp_path / "s/0", tmp_path / "s/1"):
        progress(run, state)
        for name in ("squares.txt", "walk.txt"):
            (run / "results" / name).write_text(f"{name}\n")
        (run / "checkpoints" / "squares").mkdir()
        seals = seal_results(run / "results", [])
        write_record(run / "checkpoints" / "squares" / "complete.json", {"units": 1, "index": 0, "results": seals})
    ended = 0 if state == "done" else 3
    assert (main(["resume", "r"]), main(["resume", "s"])) == (ended, 0)
    assert accepted(slurm) == 2
    capsys.readouterr()
    for run in (tmp_path / "r", tmp_path / "s/1"):
        (run / "results" / "walk.txt").write_text("")
    for words in (["resume", "r"], [*TOY, "run.dir=r"], ["resume", "s"]):
        write(slurm, "squeue", queue(*(job(str(n), "FAILED") for n in range(101, 109))))
        assert main(words) == 0
        assert "results/walk.txt is empty; they are made again" in capsys.readouterr().out
    assert accepted(slurm) == 5
    assert [len(submissions(tmp_path / "s" / n)) for n in "01"] == [1, 2]


def test_several_runs_go_on_past_one_that_cannot(slurm, tmp_path, capsys):
    assert main([*TOY, "run.dir=a"]) == 0
    assert main([*TOY, "run.dir=b"]) == 0
    capsys.readouterr()
    assert main(["resume", "a", "nothing", "b", "cluster.nodes=2"]) == 2
    said = capsys.readouterr()
    assert "no run here" in said.err
    assert said.out.count("submitted as SLURM job") == 2
    assert [submissions(tmp_path / n)[-1].cluster["nodes"] for n in "ab"] == [2, 2]


def test_submitit_does_not_load_numpy_before_the_kernels_are_chosen():
    code = "import sys, hpc.launch.node as n; n._process_job(); print('numpy' in sys.modules); import numpy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_drained_nodes_are_no_refusal(slurm, tmp_path, capsys):
    refusal = "allocation failure: Requested node configuration is not available"
    judged = f"if [ $1 = --test-only ]; then echo '{refusal}' >&2; exit 1; fi"
    write(slurm, "sbatch", f"{judged}\n{SBATCH.format(folder=slurm)}")
    write(slurm, "sinfo", "printf 'n1|low*|drain|4|1000\\nn2|low*|idle|4|1000\\nn3|gpu|down*|99|1000\\n'")
    assert main([*TOY, "run.dir=a", "cluster.nodes=2"]) == 0
    assert "drained or down now; the job waits" in capsys.readouterr().out
    for words in (["cluster.nodes=3"], ["cluster.ranks_per_node=5"], ["cluster.mem=2G"]):
        assert main([*TOY, "run.dir=b", *words]) == 2
        assert "SLURM refused the job" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    write(slurm, "sinfo", "printf 'n1|low*|idle|4|1000\\nn2|low*|idle|4|1000\\n'")
    assert main([*TOY, "run.dir=b", "cluster.nodes=2"]) == 2


def test_a_run_can_wait_for_a_sweep(slurm, tmp_path, capsys):
    assert main([*TOY, "-m", "seed=1,2,3", "run.sweep_dir=s"]) == 0
    write(slurm, "squeue", queue(*(job(f"101_{n}", "PENDING") for n in range(3))))
    assert main([*TOY, "run.dir=r", "cluster.after=s"]) == 0
    assert "#SBATCH --dependency=afterok:101\n" in (slurm / "script-102").read_text()
    progress(tmp_path / "s/1", "done")
    assert main([*TOY, "run.dir=q", "cluster.after=s"]) == 0
    assert "#SBATCH --dependency=afterok:101_0:101_2\n" in (slurm / "script-103").read_text()
    progress(tmp_path / "s/1", "quarantined")
    assert main([*TOY, "run.dir=p", "cluster.after=s"]) == 2
    assert "s/1 is quarantined and in no queue" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a%jb", "back\\slash", "two\nlines"])
def test_folders_that_slurm_would_rename_are_refused(slurm, tmp_path, capsys, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert main([*TOY, "run.dir=r"]) == 2
    assert "give another run.dir" in capsys.readouterr().err
    assert not (tmp_path / name / "r").exists()
