"""Who owns a run, and who has died: zombies, recycled pids, containers, wrong clocks, lost answers, waiting jobs."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpc.cli.main import main as tessera
from hpc.errors import LockedError
from hpc.process import Process, started
from hpc.store import lock, newfile, records
from hpc.watch.status import RankStatus, _all_dead

HOLD = """
import sys, time
from pathlib import Path
from hpc.store.lock import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


@contextmanager
def holder(path: Path, *prefix: str):
    """A process that holds the lock; killed and reaped at the end."""
    command = [*prefix, sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@contextmanager
def bystander():
    """A process that has nothing to do with it all."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def forge(path: Path, **changes) -> None:
    """Put the lock of another owner there, touched just now."""
    owner = {**lock._new_owner(), "token": "another", **changes}
    path.write_text(json.dumps(records.sealed({k: v for k, v in owner.items() if v is not ...})))


def silence(path: Path, seconds: float) -> None:
    """Date the last sign of life back."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@contextmanager
def signs_of_life(path: Path, back: float = 0.0, every: float = 0.05):
    """Touch the lock again and again, by a clock that is behind."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(every):
            os.utime(path, (time.time() - back, time.time() - back))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.fixture
def quick(monkeypatch):
    """Seconds of patience instead of minutes."""
    monkeypatch.setattr(lock, "STALE_AFTER", 1.0)
    monkeypatch.setattr(lock, "_LOOK", 0.2)
    monkeypatch.setattr(lock, "_POLL", 0.05)
    monkeypatch.setattr(lock, "_SKEW", 3.0)


def test_a_killed_owner_that_nobody_reaped_is_dead(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as process:
        with pytest.raises(LockedError, match=f"process {process.pid} on"):
            lock.RunLock(path)
        process.kill()
        deadline = time.monotonic() + 10
        while started(process.pid) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "Z" in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
        assert _all_dead([RankStatus(0, socket.gethostname(), process.pid)])
        lock.RunLock(path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_a_recycled_pid_is_neither_the_owner_nor_signalled(tmp_path):
    path = tmp_path / "lock"
    with bystander() as innocent:
        forge(path, pid=innocent.pid)
        assert lock.living_owner(path) is None
        stranger = Process(socket.gethostname(), innocent.pid, started(os.getpid()))
        assert not stranger.signal(signal.SIGKILL)
        assert _all_dead([RankStatus(0, stranger.host, stranger.pid, process_started=stranger.started)])
        time.sleep(0.1)
        assert innocent.poll() is None
        forge(path, pid=innocent.pid, started=started(innocent.pid))
        assert lock.living_owner(path).signal(signal.SIGKILL)
        assert innocent.wait(10) == -signal.SIGKILL
    lock.RunLock(path).release()


def test_cancel_of_a_lost_run_harms_nobody(toy, tmp_path, capsys):
    run = toy(units=2)
    progress = run.json("progress.json")
    progress["state"] = "running"
    progress["updated"] = 1e9
    for rank in progress["ranks"]:
        rank["heartbeat"] = 1e9
    (run.path / "progress.json").write_text(json.dumps(progress))
    with bystander() as innocent:
        forge(run.path / "lock", pid=innocent.pid)
        for words in (["cancel", str(run.path)], ["cancel", "--now", str(run.path)]):
            tessera(words)
            assert "lost; go on with: tessera resume" in capsys.readouterr().out
        assert innocent.poll() is None
        forge(run.path / "lock", host="elsewhere", pid=innocent.pid)
        assert tessera(["cancel", "--now", str(run.path)]) == 1
        assert "elsewhere" in capsys.readouterr().err
        assert innocent.poll() is None


def can_unshare() -> bool:
    return os.geteuid() == 0 and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="takes root and pid namespaces")
def test_another_container_of_this_host_is_not_judged_by_its_pids(tmp_path):
    path = tmp_path / "lock"
    with holder(path, *NAMESPACE):
        assert records.unsealed(json.loads(path.read_text()))["pid"] < 10
        with pytest.raises(LockedError, match="cannot be seen from here"):
            lock.RunLock(path)
        assert lock.living_owner(path) is None
    silence(path, 1000)
    with holder(path):  # the other way round: the owner outside, the contender in the container
        inside = subprocess.run([*NAMESPACE, sys.executable, "-c", HOLD, str(path)], capture_output=True, text=True)
        assert inside.returncode == 1
        assert "cannot be seen from here" in inside.stderr


def test_the_host_name_of_another_machine_is_not_this_machine(tmp_path):
    path = tmp_path / "lock"
    forge(path, boot="00000000-0000-0000-0000-000000000000", pid=2**22 - 7)
    with pytest.raises(LockedError, match="cannot be seen from here"):
        lock.RunLock(path)
    silence(path, 1000)
    lock.RunLock(path).release()


def test_only_a_slurm_job_that_came_back_is_taken_over_from_itself(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    beside = {"host": "n2", "slurm_job": "77", "slurm_restarts": 1}
    for other in (beside, {**beside, "slurm_restarts": ...}, {**beside, "slurm_restarts": 0, "slurm_cluster": "b"}):
        forge(path, **other)
        with pytest.raises(LockedError, match=r"n2 .SLURM job 77"):
            lock.RunLock(path)
    forge(path, **{**beside, "slurm_restarts": 0})
    lock.RunLock(path).release()


def test_a_lock_of_an_older_version_is_judged_by_host_pid_and_start(tmp_path):
    path = tmp_path / "lock"
    old = {"boot": ..., "pid_namespace": ..., "slurm_restarts": ..., "slurm_cluster": ...}
    forge(path, **old)
    with pytest.raises(LockedError, match=str(os.getpid())):
        lock.RunLock(path)
    forge(path, started="1", **old)
    lock.RunLock(path).release()


@pytest.mark.parametrize("shift", [-4000.0, 90.0, 1e6])
def test_the_clock_of_this_machine_does_not_matter(tmp_path, monkeypatch, shift):
    path = tmp_path / "lock"
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    forge(path, host="elsewhere")
    with pytest.raises(LockedError, match="elsewhere"):
        lock.RunLock(path)
    silence(path, 1000)
    lock.RunLock(path).release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every", [0.05, 0.8])
def test_an_owner_whose_file_times_are_behind_is_seen_to_live(tmp_path, quick, every):
    path = tmp_path / "lock"
    forge(path, host="elsewhere", beat=every)
    silence(path, 2.0)
    with signs_of_life(path, back=2.0, every=every), pytest.raises(LockedError, match="elsewhere"):
        lock.RunLock(path)
    lock.RunLock(path).release()


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EIO])
def test_a_link_whose_answer_was_lost_has_made_the_lock(tmp_path, monkeypatch, code):
    real = os.link

    def lossy(source, target, **options):
        real(source, target, **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", lossy)
    held = lock.RunLock(tmp_path / "lock")
    held.claim.verify()
    monkeypatch.setattr(os, "link", real)
    with pytest.raises(LockedError):
        lock.RunLock(tmp_path / "lock")
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_rename_whose_answer_was_lost_still_gives_the_winner_its_lock_back(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    forge(path, pid=2**22 - 7)
    real_rename, real_look, winners = Path.rename, lock.refuse_if_held, []

    def overtaken(judged):
        real_look(judged)
        if not winners:
            winners.append(None)
            winners[0] = lock.RunLock(path)

    def lossy(self, target):
        real_rename(self, target)
        raise FileNotFoundError(errno.ENOENT, "lost", str(self))

    monkeypatch.setattr(lock, "refuse_if_held", overtaken)
    monkeypatch.setattr(Path, "rename", lossy)
    with pytest.raises(LockedError, match=str(os.getpid())):
        lock.RunLock(path)
    winners[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_under_slurm_waits_silence_out_and_says_so(tmp_path, monkeypatch, quick):
    path = tmp_path / "lock"
    said: list[str] = []
    forge(path, host="elsewhere")
    with pytest.raises(LockedError, match="elsewhere"):  # without SLURM: at once
        lock.take_patiently(path, said.append)
    assert not said
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    lock.take_patiently(path, said.append).release()
    assert len(said) == 1
    assert "waiting until the lock has been silent for 1 s" in said[0]
    forge(path, host="elsewhere")
    with signs_of_life(path), pytest.raises(LockedError, match="elsewhere"):
        lock.take_patiently(path, said.append)
    with pytest.raises(LockedError, match="elsewhere"):
        lock.take_patiently(path, said.append, stopping=lambda: True)


def test_a_batch_script_waits_before_it_prepares_and_a_person_does_not(tmp_path, monkeypatch, quick, capsys):
    path = tmp_path / "lock"
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    forge(path, host="elsewhere")
    with pytest.raises(LockedError, match="elsewhere"):  # typed in an allocation
        lock.refuse_if_held_for_long(path)
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    lock.refuse_if_held_for_long(path)
    assert "waiting until" in capsys.readouterr().err


def test_a_new_file_follows_and_overwrites_nothing(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    for name in ("victim", "link", "dangling"):
        with pytest.raises(FileExistsError):
            newfile.create(tmp_path / name, b"x")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_only_the_engines_own_temporary_files_are_removed(tmp_path):
    ours = (
        "checkpoints/squares/seg-1.h5.tmp-17-ab",
        "results/squares.h5.tmp-" + "0a" * 16,
        "results/maps/a.fits.tmp-" + "0b" * 16,
        "report/index.html.tmp-4711-0123abcd",
        "progress.json.tmp-" + "0c" * 16,
    )
    others = (
        "results/notes.tmp-old",
        "results/x.tmp-12/data.h5",
        "results/my.tmp-files.txt",
        "results/a.tmp-1234",
        "logs/b.tmp-" + "0d" * 16,
        "config.yaml.tmp-" + "0e" * 16,  # of a command that prepares the run at this moment
    )
    for name in (*ours, *others, "lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    silence(tmp_path / ours[-1], 1000)
    (tmp_path / "results" / ("link.tmp-" + "0f" * 16)).symlink_to(tmp_path / "lock")
    removed = newfile.remove_temporaries(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in removed) == sorted(ours)
    assert all((tmp_path / name).read_text() == "x" for name in others)
    assert (tmp_path / "lock").exists()


def test_no_temporary_name_can_be_foreseen_and_no_link_is_followed(toy, tmp_path, monkeypatch):
    names = {newfile.temporary_name(Path("a")) for _ in range(100)} | {
        newfile.hidden_name(Path("a")) for _ in range(100)
    }
    assert len(names) == 200
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(newfile.secrets, "token_hex", lambda count: "00" * count)  # even if it were
    for name in (newfile.temporary_name(tmp_path / "a"), newfile.hidden_name(tmp_path / "a")):
        name.symlink_to(victim)
        with pytest.raises(FileExistsError):
            newfile.replace(tmp_path / "a", b"x", name)
    assert victim.read_text() == "precious"
