"""What becomes of a job: SLURM's answers read, put together with the run's own files, and the way back decided."""

from __future__ import annotations

import io
import json
import stat
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from rich.console import Console
from slurm_queue import job, queue

from hpc.launch import comeback, node
from hpc.launch.comeback import decide
from hpc.watch import queued, scheduler
from hpc.watch.pending import remedy
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import JobState, Polled, efficiency, job_states, submitted_from
from hpc.watch.screen import listing, screen
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


def noted(folder: Path, *scripts: tuple[str, str], commands) -> None:
    """Let each command write down that it was asked."""
    for name, script in scripts:
        commands(name, f'echo "{name} $*" >> {folder}/asked\n{script}')


def asked(folder: Path) -> list[str]:
    """The commands that were run since the last look."""
    file = folder / "asked"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_squeue_answers_for_all_jobs_at_once(commands, tmp_path):
    rows = (
        job("12", "RUNNING", RestartCnt="2", NodeList="m[1-2]", StartTime="2026-01-01T10:00:00", Reason="None"),
        job("30_1", "FAILED", exit_code="768", Reason="NonZeroExitCode", Command="/r/a b/slurm/1/x.sh"),
        job("30_7", "PENDING", Reason="ReqNodeNotAvail, UnavailableNodes:m[1-4]"),
        job("31", "FAILED", exit_code="9"),
    )
    noted(tmp_path, ("squeue", queue(*rows)), ("sacct", "exit 1"), commands=commands)
    found = job_states(["12", "30_1", "30_7", "31"])
    assert found["12"] == JobState("RUNNING", "", "0:0", 2, "m[1-2]", "2026-01-01T10:00:00")
    assert found["30_1"] == JobState("FAILED", "NonZeroExitCode", "3:0", command="/r/a b/slurm/1/x.sh")
    assert found["30_7"].waiting
    assert found["30_7"].reason == "ReqNodeNotAvail, UnavailableNodes:m[1-4]"
    assert found["31"].exit_code == "0:9"
    (call,) = asked(tmp_path)
    assert call.endswith("-j 12,30,31")


def test_the_accounts_are_asked_about_what_the_controller_forgot(commands):
    commands("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    commands("sacct", '[ "$1" = -c ] && echo "13|TIMEOUT|m1" || { echo "disabled" >&2; exit 1; }')
    found = job_states(["13", "15"])
    assert [found[j].state for j in ("13", "15")] == ["TIMEOUT", "GONE"]
    commands("sacct", 'echo "13|CANCELLED by 0|0:15|m1"; echo "14|RUNNING|0:0|m1"')
    found = job_states(["13", "14"])
    assert found["13"] == JobState("CANCELLED", exit_code="0:15", final=True)
    assert found["14"].state == "GONE", "the controller does not know it: the accounts have missed its end"


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'too many requests: please wait a minute'",
        "printf '\\377\\000\\001'",
        "printf '%s\\n' JOBID",
        f"{queue(job('13', 'RUNNING'))}; echo 'this list is ten minutes old'",
        queue(job("13", "")),
    ],
)
def test_what_is_no_table_is_no_answer(commands, answer):
    commands("squeue", answer)
    commands("sacct", "")
    found = job_states(["12", "13"])
    assert {job.state for job in found.values()} == {"UNKNOWN"}
    assert found["12"].reason.startswith("squeue said: ")
    assert submitted_from("/r/slurm/1")[1].startswith("squeue said: ")


def test_jobs_in_parts_and_empty_lines_are_rows(commands):
    commands("squeue", f"{queue(job('11+1', 'RUNNING'), job('12', 'COMPLETING'))}; echo")
    commands("sacct", "")
    assert [job.state for job in job_states(["12", "13"]).values()] == ["COMPLETING", "GONE"]


@pytest.mark.parametrize("silence", ["echo 'Unable to contact slurm controller' >&2; exit 1", "exec sleep 20"])
def test_silence_is_no_end(commands, silence):
    """The controller refuses, or hangs: nothing is called gone, whatever the accounts do not know of."""
    assert job_states(["12"])["12"].reason == "there is no squeue on this machine"
    commands("sleep", 'exec /bin/sleep "$@"')
    commands("squeue", silence)
    commands("sacct", 'echo "13|FAILED|1:0|m1"; echo "30_[3-4,7%2]|PENDING|0:0|"')
    begun = time.monotonic()
    found = job_states(["12", "13", "30_4", "30_5"], 2.0)
    assert time.monotonic() - begun < 6
    assert [found[j].state for j in ("12", "13", "30_4", "30_5")] == ["UNKNOWN", "FAILED", "PENDING", "UNKNOWN"]
    assert found["12"].alive
    assert "squeue did not answer" in found["12"].reason or "Unable to contact" in found["12"].reason
    assert not found["13"].final


def test_a_users_own_filters_do_not_hide_jobs(commands, monkeypatch):
    monkeypatch.setenv("SQUEUE_USERS", "somebody")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    commands("squeue", f'[ -n "$SQUEUE_USERS$SLURM_TIME_FORMAT" ] || {queue(job("12", "RUNNING"))}')
    assert job_states(["12"])["12"].state == "RUNNING"


def made(folder: Path, count: int, state: str, **submission: str) -> list[Path]:
    """Make runs whose files say a state, each with a job of its own."""
    runs = [folder / f"r{n}" for n in range(count)]
    for n, run in enumerate(runs):
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("job: {name: toy}\n")
        if state != "not started":
            record = {"ranks": [], "updated": 5.0, "started": 1.0, "state": state, "attempt": 1, "stage": None}
            record |= {"stages": [], "rate": None, "eta": None, "size": 1, "threads": 1, "message": ""}
            (run / "progress.json").write_text(json.dumps(record))
        record_submission(run, str(100 + n), {}, **{"script": "", **submission})
    return runs


@pytest.mark.parametrize("state", ["not started", "running", "stopped", "failed"])
def test_three_hundred_runs_cost_three_questions(commands, tmp_path, state):
    noted(tmp_path, ("squeue", ""), ("sacct", ""), commands=commands)
    runs = made(tmp_path / "f", 300, state)
    states = {status.state for status in read_statuses(runs)}
    assert states == {state if state in {"stopped", "failed"} else "failed"}
    assert [line.split()[0] for line in asked(tmp_path)] == ["squeue", "sacct", "sacct"]


def test_an_end_that_cannot_be_undone_is_remembered(commands, tmp_path):
    noted(tmp_path, ("squeue", ""), ("sacct", "echo '100|TIMEOUT|0:0|m1'"), commands=commands)
    lost, stopped = made(tmp_path / "a", 1, "running") + made(tmp_path / "b", 1, "stopped")
    first = read_statuses([lost])[0]
    assert "ended: TIMEOUT" in first.message
    assert len(asked(tmp_path)) == 2
    assert (read_statuses([lost])[0], asked(tmp_path)) == (replace(first, silent=ANY, updated=5.0), [])
    assert "SLURM job 100" in first.message
    noted(tmp_path, ("squeue", ""), ("sacct", ""), commands=commands)
    read_statuses([stopped])
    assert len(asked(tmp_path)) == 3
    read_statuses([stopped])
    assert asked(tmp_path) == []
    record_submission(stopped, "200", {}, "")  # a new job is asked about
    read_statuses([stopped])
    assert asked(tmp_path)[0].endswith("-j 200")


def test_a_job_that_the_controller_still_has_may_come_back_and_is_not_remembered(commands, tmp_path):
    noted(tmp_path, ("squeue", queue(job("100", "FAILED", exit_code="256"))), commands=commands)
    (run,) = made(tmp_path / "f", 1, "running")
    assert read_statuses([run])[0].state == "failed"
    noted(tmp_path, ("squeue", queue(job("100", "PENDING", Reason="BeginTime"))), commands=commands)
    assert read_statuses([run])[0].state == "pending"


def test_who_looks_again_and_again_does_not_ask_each_time(commands, tmp_path):
    noted(tmp_path, ("squeue", queue(job("100", "PENDING", Reason="Priority"))), commands=commands)
    (run,) = made(tmp_path / "f", 1, "not started")
    ask = Polled(3600.0)
    assert [read_statuses([run], ask)[0].state for _ in range(5)] == ["pending"] * 5
    assert len(asked(tmp_path)) == 1
    (other,) = made(tmp_path / "g", 1, "not started")
    record_submission(other, "101", {}, "")
    assert read_statuses([other], ask)[0].state == "not started", "asked about the next time"
    assert asked(tmp_path) == []
    ask = Polled(0.0)
    read_statuses([run], ask), read_statuses([run], ask)
    assert len(asked(tmp_path)) == 2


def test_another_job_under_the_same_number_is_not_ours(commands, tmp_path):
    """A cluster whose numbers began anew."""
    (run,) = made(tmp_path / "f", 1, "running", script="/runs/r0/slurm/1/100_submission.sh")
    commands("squeue", queue(job("100", "RUNNING", Command="/runs/r0/slurm/1/submission_file_4e.sh")))
    assert "silent" in read_statuses([run])[0].message
    commands("squeue", queue(job("100", "RUNNING", Command="/home/you/other.sh")))
    assert read_statuses([run])[0].state == "failed"


@pytest.mark.parametrize("state", ["not started", "running", "stopped"])
def test_a_silent_scheduler_is_said(commands, tmp_path, state):
    commands("squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1")
    (run,) = made(tmp_path / "f", 1, state)
    status = read_statuses([run])[0]
    assert status.state == {"running": "lost"}.get(state, state)
    assert "SLURM did not say whether job 100 waits or runs (squeue: error: Socket timed out)" in status.slurm_silent
    for picture in (screen(status, 0.0), listing([status], tmp_path, {})):
        console = Console(width=400, file=io.StringIO())
        console.print(picture)
        assert "SLURM did not say" in console.file.getvalue()


def test_why_a_job_waits_and_what_helps(commands, tmp_path):
    (run,) = made(tmp_path / "f", 1, "not started")
    commands("squeue", queue(job("100", "PENDING", Reason="JobHeldUser")))
    assert "waits: JobHeldUser; you hold it: scontrol release" in read_statuses([run])[0].message


@pytest.mark.parametrize(
    ("reason", "helps"),
    {
        "Resources": "shorter cluster.time",
        "(Priority)": "shorter cluster.time",
        "ReqNodeNotAvail, UnavailableNodes:n[1-4]": "sinfo -R",
        "ReqNodeNotAvail, Reserved for maintenance": "maintenance",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": "sinfo -R",
        "DependencyNeverSatisfied": "without cluster.after",
        "PartitionTimeLimit": "never start",
        "QOSMaxJobsPerUserLimit": "others of your jobs",
        "QOSGrpCpuLimit": "limit of the account or quality",
        "QOSMaxCpuPerJobLimit": "ask for less",
        "AssocGrpCPUMinutesLimit": "used up its share",
        "AssocMaxWallDurationPerJobLimit": "ask for less",
        "MaxJobsPerAccount": "other jobs of the account",
        "launch failed requeued held": "scontrol release",
        "SomethingNew": "",
    }.items(),
)
def test_the_remedy_fits_the_reason(reason, helps):
    found = remedy(reason)
    assert helps in found
    assert bool(found) == bool(helps)
    assert "JOB" not in remedy(reason, "30_2")


def test_efficiency_is_what_accounting_says(commands):
    assert efficiency("12") is None
    rows = "12|400|03:00||8G|4|1\\n12.0|400|00:03:00|2048K||4|1"
    commands("sacct", f"printf '{rows}\\n'")
    efficiency.cache_clear()
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
        ("lost", 99.0, "UNKNOWN", "lost", ""),
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
    (tmp_path / node.RUNS_FILE).write_text(f"{tmp_path / 'a'}\n{tmp_path / 'b'}\n")
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


def test_ranks_that_are_killed_before_they_begin_to_work_come_back_twice(submitted, commands, monkeypatch, capsys):
    commands("scontrol", f'[ "$1" = -o ] || echo "$@" >> {submitted}/asked')
    (submitted / "a" / "config.yaml").write_text("job: {name: toy}\ncluster: {max_requeues: 20}\n")

    def stay(number: int) -> int:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        comeback.main([str(submitted), "137"])
        return len((submitted / "asked").read_text().splitlines())

    assert [stay(0), stay(1), stay(2)] == [1, 2, 3]  # some rank had begun to work in the first
    assert stay(3) == 3
    said = capsys.readouterr().out.splitlines()[-1]
    assert "before they began to work, 3 times one after the other" in said
    assert "cluster.mem" in json.loads((submitted / "a" / "failure.json").read_text())["message"]
    monkeypatch.setenv("SLURM_JOB_ID", "41")  # submitted anew, perhaps with more memory: it has its own two hopes
    assert [stay(0), stay(1), stay(2)] == [4, 5, 5]
    monkeypatch.setenv("SLURM_JOB_ID", "40")
    here = {**progress("running", ""), "stay": "40.4"}
    (submitted / "a" / "progress.json").write_text(json.dumps(here))
    assert stay(4) == 6


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
