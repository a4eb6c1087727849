"""What becomes of a job: SLURM's answers read, put together with the run's own files, and the way back decided."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from hpc.launch import comeback
from hpc.launch.comeback import decide
from hpc.watch import queued, scheduler
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import JobState, efficiency, job_states
from hpc.watch.status import RunStatus
from hpc.watch.submissions import last_submission, record_submission, submissions


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put made-up SLURM commands on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return add


RUNNING = "JobId=12 JobName=x Reason=None Restarts=2 JobState=RUNNING ExitCode=0:0 NodeList=m[1-2] StartTime=2026-01-01T10:00:00"
ARRAY = (
    "JobId=32 ArrayJobId=30 ArrayTaskId=1 JobState=COMPLETED Reason=None ExitCode=0:0\n"
    "JobId=30 ArrayJobId=30 ArrayTaskId=3-4,7%2 JobState=PENDING Reason=JobArrayTaskLimit StartTime=Unknown"
)


def test_scontrol_answers_for_jobs_and_arrays(commands):
    commands("scontrol", f'case "$4" in 12) echo "{RUNNING}";; 30) echo "{ARRAY}";; esac')
    found = job_states(["12", "30_1", "30_4", "30_7"])
    assert found["12"] == JobState("RUNNING", "", "0:0", 2, "m[1-2]", "2026-01-01T10:00:00")
    assert [found[f"30_{n}"].state for n in (1, 4, 7)] == ["COMPLETED", "PENDING", "PENDING"]
    assert found["30_7"].waiting
    assert found["30_7"].reason == "JobArrayTaskLimit"


def test_the_next_source_is_asked_about_what_is_missing(commands):
    commands("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    commands("sacct", '[ "$1" = -c ] && echo "13|TIMEOUT|m1" || { echo "disabled" >&2; exit 1; }')
    commands("squeue", 'echo "14_2|PENDING|Priority"')
    found = job_states(["13", "14_2", "15"])
    assert [found[j].state for j in ("13", "14_2", "15")] == ["TIMEOUT", "PENDING", "GONE"]
    assert [found[j].alive for j in ("13", "14_2", "15")] == [False, True, False]
    commands("sacct", 'echo "13|CANCELLED by 0|0:15|m1"')
    assert job_states(["13"])["13"] == JobState("CANCELLED", exit_code="0:15")


def test_without_slurm_nothing_is_known_and_nothing_called_dead(commands):
    assert job_states(["12"])["12"].state == "UNKNOWN"
    assert job_states(["12"])["12"].alive
    commands("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert job_states(["12"])["12"].state == "UNKNOWN"


def test_efficiency_is_what_accounting_says(commands):
    assert efficiency("12") is None
    rows = "12|400|03:00||8G|4|1\\n12.0|400|00:03:00|2048K||4|1"
    commands("sacct", f"printf '{rows}\\n'")
    assert efficiency("12") == "CPU efficiency 45 % of 4 CPUs, largest task 2 MiB of 8G asked"


def test_submissions_are_remembered_in_order(tmp_path):
    assert submissions(tmp_path) == []
    record_submission(tmp_path, "12_3", {"nodes": 1}, "/s.sh")
    record_submission(tmp_path, "14", {"nodes": 2}, "/t.sh")
    assert [s.slurm_id for s in submissions(tmp_path)] == ["12_3", "14"]
    assert last_submission(tmp_path).cluster == {"nodes": 2}
    (tmp_path / "slurm.json").write_text("{")
    assert last_submission(tmp_path) is None


def known(monkeypatch, job: JobState, status: RunStatus, run: Path) -> RunStatus:
    record_submission(run, "12", {}, "")
    monkeypatch.setattr(queued, "read_status", lambda _: status)
    monkeypatch.setattr(queued, "job_states", lambda jobs: dict.fromkeys(jobs, job))
    return read_statuses([run])[0]


@pytest.mark.parametrize(
    ("state", "silent", "job", "seen", "said"),
    [
        ("running", 1.0, "FAILED", "running", ""),  # its own word counts while it is fresh
        ("running", 9.0, "RUNNING", "running", "its ranks are silent"),
        ("running", 9.0, "PENDING", "pending", "waits: Priority"),
        ("running", 9.0, "OUT_OF_MEMORY", "failed", "ended: OUT_OF_MEMORY, exit code 0:125"),
        ("lost", 99.0, "GONE", "failed", "is gone from SLURM"),
        ("lost", 99.0, "UNKNOWN", "lost", "SLURM job 12"),
        ("not started", None, "PENDING", "pending", "expected to start 2026-01-01 10:00:00"),
        ("not started", None, "RUNNING", "starting", "is RUNNING on m1"),
        ("not started", None, "COMPLETED", "failed", "did not finish"),
        ("stopped", 5.0, "COMPLETING", "stopping", "is COMPLETING"),
        ("stopped", 500.0, "RUNNING", "starting", "is RUNNING"),
        ("stopped", 500.0, "GONE", "stopped", ""),
        ("failed", 5.0, "COMPLETING", "failed", ""),
        ("failed", 500.0, "PENDING", "pending", "waits"),
        ("done", 500.0, "GONE", "done", ""),
    ],
)
def test_files_and_scheduler_together(tmp_path, monkeypatch, state, silent, job, seen, said):
    status = RunStatus(str(tmp_path), state, silent=silent, attempt=1, stage="fit")
    slurm = JobState(job, "Priority", "0:125", 1, "m1", "2026-01-01T10:00:00")
    combined = known(monkeypatch, slurm, status, tmp_path)
    assert combined.state == seen
    assert said in combined.message
    assert combined.slurm_job == "12"


def test_a_run_of_an_own_script_is_found_by_its_provenance(tmp_path, monkeypatch):
    record = {"attempts": [{"slurm": {"SLURM_JOB_ID": "77"}}]}
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    asked = []

    def states(jobs):
        asked.extend(jobs)
        return dict.fromkeys(asked, JobState("NODE_FAIL"))

    monkeypatch.setattr(queued, "read_status", lambda _: RunStatus(str(tmp_path), "lost", attempt=1))
    monkeypatch.setattr(queued, "job_states", states)
    assert read_statuses([tmp_path])[0].state == "failed"
    assert asked == ["77"]


def progress(state: str, wish: str, done: int = 5, restored: int = 2, kind: str = "map") -> dict:
    stage = {"name": "s", "kind": kind, "state": "running", "done": done, "restored": restored}
    return {"state": state, "wish": wish, "stages": [stage], "stay": "40.0"}


@pytest.mark.parametrize(
    ("code", "record", "failure", "restarts", "back", "why"),
    [
        (75, progress("stopped", "requeue"), None, 0, True, "time limit"),
        (76, progress("stopped", "stop"), None, 0, False, "told to stop"),
        (75, None, None, 0, True, "time limit"),  # the disk was full: nothing but the exit code got out
        (76, None, None, 0, False, "told to stop"),
        (75, progress("running", "", done=2), None, 0, True, "time limit"),  # not its last word
        (9, None, None, 0, True, "killed (exit code 9)"),  # from mpiexec
        (9, progress("running", ""), {"error": "x"}, 0, False, "ended by itself"),
        (75, progress("stopped", "requeue"), None, 3, False, "max_requeues=3"),
        (75, progress("stopped", "requeue", done=2), None, 0, False, "raise cluster.time"),
        (75, progress("stopped", "requeue", done=2, kind="loop"), None, 0, True, "time limit"),
        (137, progress("running", ""), None, 0, True, "killed (exit code 137)"),
        (137, progress("stopping", "stop"), None, 0, True, "killed"),  # srun told the others when one was killed
        (137, progress("running", ""), {"error": "x"}, 0, False, "ended by itself"),
        (137, None, None, 0, True, "killed"),
        (137, None, None, 3, False, "came back 3 times"),
        (1, progress("failed", ""), {"error": "x"}, 0, False, "ended by itself"),
        (3, progress("quarantined", ""), None, 0, False, "ended by itself"),
        (1, progress("stopped", "requeue"), None, 0, False, "ended by itself"),
        (2, None, None, 0, False, "ended by itself"),
        (127, None, None, 0, False, "ended by itself"),
    ],
)
def test_who_comes_back(code, record, failure, restarts, back, why):
    verdict = decide(code, record, failure, restarts, 3)
    assert (verdict.requeue, why in verdict.reason) == (back, True), verdict


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Two run directories of one submission, the second one stopped with the wish to come back."""
    for name in ("a", "b"):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text("job: {name: toy}\ncluster: {max_requeues: 2}\n")
        (run / "progress.json").write_text(json.dumps(progress("stopped", "requeue" if name == "b" else "stop")))
    (tmp_path / comeback.RUNS_FILE).write_text(f"{tmp_path / 'a'}\n{tmp_path / 'b'}\n")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "40")
    return tmp_path


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_preempted_job_comes_back_although_it_was_told_to_stop(submitted, commands):
    answer = "JobId=40 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime="
    commands("scontrol", f'[ "$1" = -o ] && echo "{answer}None" || echo "$@" > {submitted}/asked')
    comeback.main([str(submitted), "76"])
    assert not (submitted / "asked").exists()
    commands("scontrol", f'[ "$1" = -o ] && echo "{answer}2026-01-01T00:00:00" || echo "$@" > {submitted}/asked')
    comeback.main([str(submitted), "76"])
    assert (submitted / "asked").read_text() == "requeue 40\n"


@pytest.mark.parametrize(("code", "asked"), [(1, False), (2, False), (127, False), (75, True), (137, True)])
def test_the_files_of_an_earlier_stay_are_not_believed(submitted, commands, monkeypatch, code, asked):
    """The stay before made progress, wished to come back, and one before that had failed."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (submitted / "a" / "progress.json").write_text(json.dumps(progress("stopped", "requeue", done=2)))
    (submitted / "a" / "failure.json").write_text(json.dumps({"error": "x", "stay": "40.0"}))
    commands("scontrol", f'[ "$1" = -o ] || echo "$@" > {submitted}/asked')
    comeback.main([str(submitted), str(code)])
    assert (submitted / "asked").exists() == asked


def test_the_files_of_this_stay_explain(submitted, commands, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    here = {"stay": "40.1"}
    commands("scontrol", f'[ "$1" = -o ] || echo "$@" > {submitted}/asked')
    (submitted / "a" / "progress.json").write_text(json.dumps({**progress("stopped", "requeue", done=2), **here}))
    comeback.main([str(submitted), "75"])
    assert "not one unit was finished" in capsys.readouterr().out
    (submitted / "a" / "failure.json").write_text(json.dumps({"error": "x", **here}))
    comeback.main([str(submitted), "137"])
    assert "ended by itself (exit code 137)" in capsys.readouterr().out
    assert not (submitted / "asked").exists()


def test_what_is_left_of_a_job_that_came_back_elsewhere_leaves_it_alone(submitted, commands, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "39")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    commands("scontrol", f'[ "$1" = -o ] && echo "Requeue=1 Restarts=2 BatchFlag=2" || echo "$@" > {submitted}/asked')
    comeback.main([str(submitted), "75"])
    assert not (submitted / "asked").exists()
    commands("scontrol", f'[ "$1" = -o ] && echo "Requeue=1 Restarts=1 BatchFlag=1" || echo "$@" > {submitted}/asked')
    comeback.main([str(submitted), "75"])
    assert (submitted / "asked").read_text() == "requeue 39_1\n"


def test_the_member_of_an_array_is_requeued_by_its_name(submitted, commands, monkeypatch, capsys):
    commands("scontrol", f'[ "$1" = -o ] || echo "$@" > {submitted}/asked')
    comeback.main([str(submitted), "76"])
    assert not (submitted / "asked").exists()
    assert events(submitted / "a")[-1]["event"] == "no_requeue"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "39")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    comeback.main([str(submitted), "75"])
    assert (submitted / "asked").read_text() == "requeue 39_1\n"
    assert events(submitted / "b")[-1]["event"] == "requeue"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    comeback.main([str(submitted), "75"])
    assert "cluster.max_requeues=2" in capsys.readouterr().out.splitlines()[-1]


def test_a_requeue_that_is_forbidden_says_how_to_go_on(submitted, commands, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "39")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    commands("scontrol", "echo 'Requested operation is presently disabled for job 39_1' >&2; exit 1")
    comeback.main([str(submitted), "75"])
    assert f"presently disabled for job 39_1); go on with: tessera resume {submitted / 'b'}" in capsys.readouterr().out
    (submitted / "bin" / "scontrol").unlink()
    comeback.main([str(submitted), "75"])
    assert "go on with: tessera resume" in capsys.readouterr().out


def test_times_and_sizes_of_accounting_are_read():
    assert scheduler._seconds("1-01:00:01.5") == 90001.5
    assert scheduler._seconds("") == 0
    assert (scheduler._mib("512K"), scheduler._mib("2G"), scheduler._mib("")) == (0.5, 2048, 0)
