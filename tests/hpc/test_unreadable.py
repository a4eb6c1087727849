"""What cannot be read now is not damaged: a resume waits for it, and stops without having lost anything."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import rank_command, rank_environment, start_toy

from hpc.cli.main import main
from hpc.errors import UnreadableError
from hpc.identity import has_results
from hpc.inputs import expanded
from hpc.rundir import RunDir
from hpc.store import patience
from hpc.store.atomic import read_hdf5, write_hdf5
from hpc.store.generations import load_newest, save_generation
from hpc.store.patience import read_patiently
from hpc.store.reading import any_stored, names_in
from hpc.store.records import read_keyed, read_record
from hpc.store.segments import segment_names
from hpc.store.verify import verify_run

OPTIONS = {"units": 8, "steps": 6, "seconds": 0.002, "fail": ["u00003"]}
SOURCES = (
    "checkpoints/squares/seg-*.h5",
    "checkpoints/walk/gen-*.json",
    "checkpoints/squares/complete.json",
    "checkpoints/squares/quarantine.json",
    "checkpoints/squares/begun-*.txt",
    "provenance.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("unreadable") / "run"
    assert start_toy(path, checkpoint={"every": "2 steps"}, **OPTIONS).wait(60) == 3
    for file in (path / "checkpoints").glob("walk/complete.json"):
        file.unlink()  # or its generations would not be read any more
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def make_unreadable(file):
    """Let every read of a file end in EIO, as the kernel answers it for memory that is not there."""
    kept = file.with_name(f"kept {file.name}")
    file.rename(kept)
    file.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        file.read_bytes()
    return lambda: kept.replace(file)


@pytest.mark.parametrize("pattern", SOURCES)
def test_a_resume_stops_and_loses_nothing_then_goes_on(copy, pattern):
    results = {p.name: p.read_bytes() for p in (copy / "results").iterdir()}
    options = {**OPTIONS, "checkpoint": {"every": "2 steps", "deadline": 0.3}}
    RunDir.prepare(copy, {**RunDir(copy).load_config(), "checkpoint": options["checkpoint"]})
    file = max(copy.glob(pattern))
    mend = make_unreadable(file)
    done = subprocess.run(rank_command(copy, 1), env=rank_environment(1), stderr=subprocess.PIPE, text=True)
    said = done.stderr
    assert done.returncode == 1, said
    assert file.name in said
    assert "cannot be read now" in said
    assert "Input/output error" in said
    assert "resume the run" in said
    mend()
    assert start_toy(copy, **options).wait(60) == 3
    assert not list(copy.rglob("damaged-*"))
    assert {p.name: p.read_bytes() for p in (copy / "results").iterdir()} == results
    events = (copy / "events.jsonl").read_text()
    assert '"fallback"' not in events


def test_a_resume_waits_for_a_file_that_comes_back(copy):
    mend = make_unreadable(min(copy.glob("checkpoints/squares/seg-*.h5")))
    process = start_toy(copy, **OPTIONS, checkpoint={"every": "2 steps"})
    log = copy / "logs" / "rank-00000.log"
    end = time.monotonic() + 30
    while "trying again" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    mend()
    assert process.wait(60) == 3
    assert not list(copy.rglob("damaged-*"))
    assert '"warning"' in (copy / "events.jsonl").read_text()


@pytest.mark.parametrize("pattern", [*SOURCES, "config.yaml"])
def test_verify_says_that_it_cannot_be_read(copy, pattern, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    make_unreadable(min(copy.glob(pattern)))
    verdicts = list(verify_run(RunDir(copy)))
    assert any(v.status == "unread" and "cannot be read now" in v.text for v in verdicts)
    assert not any(v.status == "bad" for v in verdicts), verdicts
    assert main(["verify", str(copy)]) == 1
    assert "cannot be read now; a resume waits" in capsys.readouterr().out


def test_a_configuration_that_cannot_be_read_is_not_damaged(copy, capsys):
    make_unreadable(copy / "config.yaml")
    with pytest.raises(UnreadableError, match="nothing is lost"):
        RunDir.open(copy).load_config()
    assert main(["resume", str(copy)]) == 1
    assert "cannot be read now" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE, errno.ENOMEM, errno.EPERM])
def test_every_refusal_is_waited_for_and_passed_on(number, monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    answers = [OSError(number, os.strerror(number), "file"), OSError(number, os.strerror(number), "file"), None]
    said = []

    def read():
        if (answer := answers.pop(0)) is not None:
            raise answer
        return 7

    assert read_patiently(read, 10.0, said.append) == 7
    assert len(said) == 2
    answers = [OSError(number, "no", "file")] * 100
    with pytest.raises(UnreadableError, match=r"'file'.*nothing is lost"):
        read_patiently(read, 0.01, said.append)
    with pytest.raises(FileNotFoundError):
        read_patiently(lambda: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "gone")), 10.0, said.append)


def test_no_descriptor_left_is_not_damage(tmp_path):
    """EMFILE as the kernel gives it, for every reader."""
    write_hdf5(tmp_path / "seg-1.h5", {"a": np.arange(4)}, {})
    save_generation(tmp_path, 1, {"x": np.ones(3)}, {}, 2)
    (tmp_path / "quarantine.json").write_text("{}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    readers = (
        lambda: read_hdf5(tmp_path / "seg-1.h5"),
        lambda: load_newest(tmp_path),
        lambda: read_record(tmp_path / "gen-00000001.json"),
        lambda: read_keyed(tmp_path / "quarantine.json"),
        lambda: segment_names(tmp_path),
    )
    for reader in readers:
        reader()  # whatever is opened once stays open
        opened = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 + max(map(int, names_in(Path("/proc/self/fd")))), limits[1]))
        try:
            with suppress(OSError):
                while True:
                    opened.append(os.open("/", os.O_RDONLY))
            with pytest.raises(OSError, match="Too many open files"):
                reader()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in opened:
                os.close(descriptor)


def test_only_a_folder_that_is_not_there_is_empty(tmp_path):
    folder = tmp_path / "a"
    assert names_in(folder) == []
    folder.mkdir()
    (folder / "seg-1.h5").touch()
    assert segment_names(folder) == ["seg-1.h5"]


@pytest.fixture
def locked_folder():
    """A folder with a stage below it that this process may not look into: the kernel's EACCES, for root as well."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "checkpoints" / "fit").mkdir(parents=True)
        (folder / "checkpoints" / "fit" / "seg-1.h5").touch()
        (folder / "checkpoints").chmod(0)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            yield folder
        finally:
            os.seteuid(user)
            (folder / "checkpoints").chmod(0o755)


def test_a_folder_that_may_not_be_looked_into_is_not_taken_for_empty(locked_folder):
    for ask in (
        lambda: has_results(RunDir(locked_folder)),
        lambda: any_stored(locked_folder / "checkpoints", ("seg-*",)),
        lambda: expanded([locked_folder]),
    ):
        with pytest.raises(PermissionError):
            ask()


def test_a_read_that_fails_inside_hdf5_is_a_refusal(tmp_path):
    """HDF5 reports what the system refused as it reports damage; the guarded file knows better."""
    path = tmp_path / "seg-1.h5"
    write_hdf5(path, {"a": np.arange(300_000.0)}, {})
    whole = path.read_bytes()
    from hpc.store import guarded

    class Refusing(guarded._Guarded):
        left = 3

        def readinto(self, content):
            type(self).left -= 1
            if type(self).left < 0:
                self.refusal = self.refusal or OSError(errno.EIO, os.strerror(errno.EIO))
                content[:] = bytes(len(content))
                return len(content)
            return super().readinto(content)

    true = guarded._Guarded
    for left in range(12):
        Refusing.left = left
        guarded._Guarded = Refusing
        try:
            with pytest.raises(OSError, match="Input/output error"):
                read_hdf5(path)
        finally:
            guarded._Guarded = true
    assert read_hdf5(path)[0]["a"][-1] == 299_999
    assert path.read_bytes() == whole
