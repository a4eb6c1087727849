"""What somebody else prepared runs as whoever goes on with it: that is asked first, wherever a run directory acts.

Every configuration here names a module and an mpiexec that leave a mark. Where the tests run as root, files are given
to other users for real, and a second user goes on with what a third one wrote.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT

from hpc.errors import LaunchError, RunDirError
from hpc.launch.slurm import dependency
from hpc.ownership import load_own, load_trusted, require_trust
from hpc.rundir import RunDir
from hpc.settings import SlurmCluster
from hpc.watch.queued import slurm_job
from hpc.watch.status import read_status
from hpc.watch.sweeps import MemberRecord, write_sweep

EVE, ME = 12345, 12346
GROUP = 12300
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can give files to other users")


@pytest.fixture
def mark(tmp_path) -> Path:
    """The file that is there once anything has been run that a configuration of `evil` names."""
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'pwned')!r}, 'w').close()\nfrom toyjob import ToyJob as Job\n"
    )
    return tmp_path / "pwned"


def evil(run: Path, mark: Path, target: str = "evil.Job") -> Path:
    config = {
        "job": {"_target_": target, "name": "toy", "units": 3},
        "run": {"dir": str(run)},
        "cluster": {"ranks": 2, "mpiexec": f"sh -c 'touch {mark}; exit 1'"},
        "seed": 0,
    }
    RunDir.prepare(run, config)
    return run


def environment(*folders: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, (*folders, CHECKOUT / "tests" / "hpc", CHECKOUT)))
    return {**os.environ, "PYTHONPATH": path}


def command(verb: str, *words: object) -> list[str]:
    module = ["hpc.rank"] if verb == "rank" else ["hpc", *([verb] if verb else [])]
    return [sys.executable, "-P", "-m", *module, *map(str, words)]


def ended(verb: str, *words: object, folder: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*before, *command(verb, *words)],
        env=environment(folder),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=100,
    )


def given_away(run: Path) -> Path:
    os.chown(run, EVE, EVE)
    os.chown(run / "config.yaml", EVE, EVE)
    return run


def replaced(run: Path) -> Path:
    os.chown(run / "config.yaml", EVE, EVE)
    return run


def linked(run: Path) -> Path:
    given_away(run).rename(run.with_name("theirs"))
    run.symlink_to("theirs")
    return run


def exchanged(run: Path) -> Path:
    """What may happen below a folder that everybody may write, where the run itself lies."""
    run.parent.chmod(0o777)
    run.rename(run.with_name("mine"))
    shutil.copytree(run.with_name("mine"), run)
    return given_away(run)


def with_mode(mode: int, name: str = "") -> object:
    def change(run: Path) -> Path:
        (run / name).chmod(mode)
        return run

    return change


WAYS = {
    "the whole run": given_away,
    "the configuration": replaced,
    "behind a link": linked,
    "in the place of mine": exchanged,
    "the group may write": with_mode(0o664, "config.yaml"),
    "everybody may write": with_mode(0o646, "config.yaml"),
}
"""How a configuration may be that of others; all of them are their words, whoever reads them."""


@pytest.fixture(
    params=[pytest.param(way, marks=needs_root if "may" not in name else (), id=name) for name, way in WAYS.items()]
)
def theirs(request, tmp_path, mark) -> Path:
    return request.param(evil(tmp_path / "below" / "run", mark))


def test_nothing_of_theirs_is_run_unasked(theirs, mark, tmp_path):
    """All verbs, and the ranks: those that would run what it names refuse, the others do without."""
    for verb in ("resume", "report", "rank", "status", "verify", "cancel"):
        done = ended(verb, theirs, folder=tmp_path)
        assert not mark.exists(), verb
        refused = verb in {"resume", "report", "rank"}
        assert ("--trust-owner" in done.stderr) == refused, done.stderr
        assert (done.returncode == 2) == refused, (verb, done.stderr)


@pytest.mark.parametrize("verb", ["resume", "report", "rank"])
def test_who_has_looked_at_it_goes_on(verb, mark, tmp_path):
    run = with_mode(0o666, "config.yaml")(evil(tmp_path / "run", mark))
    done = ended(verb, "--trust-owner", run, folder=tmp_path)
    assert mark.exists(), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["sweep.json", "0/config.yaml", "", "1"])
def test_nothing_of_a_sweep_of_theirs_is_run_unasked(name, mark, tmp_path):
    sweep = tmp_path / "sweep"
    for number in ("0", "1"):
        evil(sweep / number, mark, "toyjob.ToyJob" if name[:1] == str(1 - int(number)) else "evil.Job")
    write_sweep(sweep, [MemberRecord(n, f"seed={n}", ("job=toy", f"seed={n}")) for n in ("0", "1")])
    (sweep / name).chmod(0o777)
    done = ended("resume", sweep, folder=tmp_path)
    assert done.returncode == 2
    assert "--trust-owner" in done.stderr
    assert not mark.exists()
    ended("report", sweep, folder=tmp_path)  # a table of numbers and words
    assert not mark.exists()


@needs_root
def test_a_run_typed_again_in_their_folder_is_this_users_own(mark, tmp_path):
    """What they wrote is compared, and replaced by what was composed: it is not run, and needs no question."""
    run = tmp_path / "run"
    words = ["--config-dir", CHECKOUT / "tests/hpc/conf", "job=toy", "job.units=3", "cluster.ranks=2", f"run.dir={run}"]
    assert ended("prepare", *words, folder=tmp_path).returncode == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["cluster"]["mpiexec"] = f"sh -c 'touch {mark}'"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    given_away(run)
    done = ended("", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    assert (run / "config.yaml").stat().st_uid == os.geteuid()
    # So it goes on after somebody has looked once, although the folder stays theirs.
    assert ended("rank", run, folder=tmp_path).returncode == 0
    assert "--trust-owner" in ended("resume", run, folder=tmp_path).stderr


@needs_root
def test_what_is_put_there_between_the_command_and_the_ranks_is_not_run(mark, tmp_path):
    """The command that starts ranks looks at one file, and the ranks may find another."""
    run, mpiexec = tmp_path / "run", tmp_path / "mpiexec"
    real = Path(sys.executable).with_name("mpiexec")
    swap = f"cp {tmp_path}/theirs {run}/config.yaml.new; chown {EVE} {run}/config.yaml.new; mv {run}/config.yaml.new {run}/config.yaml"
    mpiexec.write_text(f'#!/bin/sh\n{swap}\nexec {real} "$@"\n')
    mpiexec.chmod(0o755)
    evil(tmp_path / "other", mark)
    (tmp_path / "other" / "config.yaml").rename(tmp_path / "theirs")
    words = ["--config-dir", CHECKOUT / "tests/hpc/conf", "job=toy", "cluster.ranks=2", f"run.dir={run}"]
    done = ended("", *words, f"cluster.mpiexec={mpiexec}", folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert not mark.exists()
    assert "config.yaml belongs to" in (run / "failure.json").read_text()


@pytest.fixture
def commons() -> Iterator[Path]:
    """A folder of a group of two, in a place that both can reach."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    os.chown(folder, ME, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


READING = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""For a Python in a home folder, which others may not even read. Writing is as forbidden as without."""


def as_user(uid: int, *more: str) -> tuple[str, ...]:
    # Whoever works in such a folder has a umask that lets the group write.
    user = (f"--reuid={uid}", f"--regid={GROUP}", "--clear-groups", *more)
    return ("setpriv", *user, "sh", "-c", 'umask 002; exec "$@"', "sh")


@pytest.fixture(scope="module")
def me() -> tuple[str, ...]:
    """Words that run Python as another user than this one."""
    words = as_user(ME, *READING)
    if not ROOT or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv (util-linux), can work as two other users")
    if subprocess.run([*words, sys.executable, "-c", "import hpc, numpy"], env=environment()).returncode:
        pytest.skip("this Python cannot be started by another user")
    return words


def test_a_member_of_the_group_cannot_run_code_as_another(commons, me):
    """One works in a folder of the group, whose members may write it; what they do to the run is theirs for all to see."""
    run = commons / "run"
    words = ["--config-dir", CHECKOUT / "tests/hpc/conf", "job=toy", "job.units=3", f"run.dir={run}"]
    eve = as_user(EVE)
    first = ended("prepare", *words, folder=commons, before=me)
    assert first.returncode == 0, first.stderr
    assert run.stat().st_mode & 0o020, "the group may write the folder"
    done = ended("rank", run, folder=commons, before=me)
    assert done.returncode == 0, done.stderr  # not asked for what its own umask allows
    assert ended("resume", run, folder=commons, before=me).returncode == 0

    in_place = subprocess.run([*eve, "sh", "-c", f"echo >> {run}/config.yaml"], capture_output=True, text=True)
    assert in_place.returncode != 0
    assert "denied" in in_place.stderr
    # A file of mine that the group may write, under the name of the configuration.
    (commons / "evil.py").write_text(f"open({str(commons / 'pwned')!r}, 'w').close()\n")
    evil_words = (run / "config.yaml").read_text().replace("toyjob.ToyJob", "evil.Job")
    (commons / "words").write_text(evil_words)
    for put in (
        f"cat {commons}/words > {run}/progress.json; mv -f {run}/progress.json",
        f"cp {commons}/words {run}/x; mv -f {run}/x",
    ):
        subprocess.run([*eve, "sh", "-c", f"{put} {run}/config.yaml"], check=True)
        assert "evil.Job" in (run / "config.yaml").read_text()
        for verb in ("resume", "report", "rank"):
            done = ended(verb, run, folder=commons, before=me)
            assert done.returncode == 2, (put, verb, done.stderr)
            assert "--trust-owner" in done.stderr
            assert not (commons / "pwned").exists()


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_a_person_is_asked(mark, tmp_path, answer):
    run = with_mode(0o666, "config.yaml")(evil(tmp_path / "run", mark))
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        command("resume", run), env=environment(tmp_path), stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(master, 1000)
    os.write(master, f"{answer}\n".encode())
    try:
        while os.read(master, 1000):
            pass
    except OSError:  # its end
        pass
    process.wait(60)
    os.close(master)
    assert mark.exists() == (answer == "y")


@pytest.mark.parametrize(
    ("mode", "file_mode", "told"),
    [
        (0o755, 0o644, ""),
        (0o700, 0o600, ""),
        (0o775, 0o644, ""),
        (0o2770, 0o640, ""),
        (0o1777, 0o644, ""),
        (0o777, 0o644, "run can be written by everybody"),
        (0o755, 0o664, "config.yaml can be written by the group"),
        (0o755, 0o646, "config.yaml can be written by everybody"),
    ],
)
def test_which_modes_are_a_question(tmp_path, mark, mode, file_mode, told):
    run = evil(tmp_path / "run", mark)
    run.chmod(mode)
    (run / "config.yaml").chmod(file_mode)
    if not told:
        assert load_trusted(RunDir(run), trusted=False) == load_own(RunDir(run))
        return
    with pytest.raises(RunDirError, match=told):
        load_trusted(RunDir(run), trusted=False)
    load_trusted(RunDir(run), trusted=True)
    if "config.yaml" in told:
        with pytest.raises(RunDirError, match=told):
            load_own(RunDir(run))


def test_a_umask_for_the_group_does_not_open_what_is_code(tmp_path, mark):
    before = os.umask(0o002)
    try:
        run = evil(tmp_path / "sweep" / "0", mark)
        write_sweep(run.parent, [MemberRecord("0", "", ())])
    finally:
        os.umask(before)
    assert run.stat().st_mode & 0o777 == 0o775
    for file in (run / "config.yaml", run.parent / "sweep.json"):
        assert file.stat().st_mode & 0o777 == 0o644
    load_trusted(RunDir(run), trusted=False)
    require_trust(run.parent, trusted=False)


def test_a_file_system_that_gives_all_files_to_one_user_is_no_stranger(commons, me):
    """Seen by one who is not the owner of the files that they make, as on a network file system that maps users."""
    script = (
        "from pathlib import Path\nfrom hpc.ownership import strangers\n"
        "file = Path('file'); file.touch(0o644); found = {path: path.stat() for path in (file, Path('other'))}\n"
        f"print(strangers(found, me={EVE}))\n"
    )
    (commons / "other").touch()
    os.chown(commons / "other", EVE + 5, -1)
    done = subprocess.run(
        [*me, sys.executable, "-P", "-c", script], env=environment(), cwd=commons, capture_output=True, text=True
    )
    assert done.stdout == f"['other belongs to user {EVE + 5}']\n", done.stderr


def test_a_job_number_is_no_line_of_a_script_and_no_option(tmp_path, mark):
    """What a run says of its jobs becomes a line of batch scripts (``cluster.after``), and words of scancel."""
    run = evil(tmp_path / "run", mark)
    job = f"12\ntouch {mark}\n"
    submission = {"job_id": job, "array_task": None, "submitted": 1.0, "cluster": {}, "script": "/s", "log": ""}
    (run / "slurm.json").write_text(json.dumps({"schema": 1, "submissions": [submission]}))
    with pytest.raises(LaunchError, match=r"cluster\.after"):
        dependency(SlurmCluster(after=run))
    (run / "slurm.json").unlink()
    (run / "provenance.json").write_text(json.dumps({"attempts": [{"slurm": {"SLURM_JOB_ID": "--user=me"}}]}))
    assert slurm_job(run, read_status(run)) == ""
