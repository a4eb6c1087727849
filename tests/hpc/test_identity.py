"""A run goes on with the inputs and the code that it was started with, or says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, output_of, start_toy

from hpc.code import code_of
from hpc.errors import ChangedCodeError, ChangedInputsError
from hpc.identity import read_identity, refuse_others
from hpc.inputs import WHOLE
from hpc.options import build
from hpc.rundir import RunDir
from hpc.settings import Settings
from hpc.store.records import read_record
from hpc.store.verify import verify_run
from hpc.watch.status import read_status

pytestmark = pytest.mark.mpi

SLOW = {"units": 20, "seconds": 0.05, "checkpoint": {"every": 0.1}}


@pytest.fixture
def factor(tmp_path) -> Path:
    file = tmp_path / "factor.txt"
    file.write_text("2.0\n")
    return file


def squares(path: Path) -> float:
    return float((path / "results" / "squares.txt").read_text().split()[1])


def stopped(path: Path, ranks: int = 1, **options) -> None:
    """Start a run and stop it when some units are stored."""
    process = start_toy(path, ranks, **SLOW, **options)
    end = time.monotonic() + 60
    while not list(path.glob("checkpoints/squares/seg-*.h5")):
        assert process.poll() is None, output_of(path).read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) in {75, 76}


def refuse(path: Path, **run: bool) -> None:
    """Ask as `tessera resume` does before it starts or submits anything."""
    config = RunDir(path).load_config()
    config["run"] = {**config["run"], **run}
    refuse_others(RunDir(path), build(Settings, config, "config"))


def allow(path: Path, key: str) -> None:
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("run:\n", f"run:\n  {key}: true\n", 1))


def again(path: Path, ranks: int, place: Path = CHECKOUT, *program: str) -> subprocess.CompletedProcess:
    """Run the ranks once more, as a batch script does, or another program, with the code that lies in a folder."""
    command = [sys.executable, *(program or ("-m", "hpc.rank")), str(path)]
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command] if ranks > 1 else command
    places = os.pathsep.join([str(place), str(CHECKOUT / "tests" / "hpc")])
    told = {**os.environ, "TESSERA_RANKS": str(ranks), "PYTHONPATH": places}
    return subprocess.run(command, env=told, cwd=place, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_changed_input_is_refused_until_it_is_put_back_or_let_pass(tmp_path, factor, monkeypatch, ranks):
    monkeypatch.syspath_prepend(CHECKOUT / "tests" / "hpc")
    path = tmp_path / "run"
    stopped(path, ranks, factor=str(factor))
    factor.write_text("4.0\n")
    with pytest.raises(ChangedInputsError, match=r"factor\.txt: has other content of the same size(.|\n)*--any-inputs"):
        refuse(path)
    refuse(path, any_inputs=True)
    before = {p: p.read_bytes() for p in path.glob("checkpoints/*/*.h5")}
    done = again(path, ranks)
    assert done.returncode == 2, done.stderr
    assert "inputs are not those that this run was started with" in done.stderr
    assert "Traceback" not in done.stderr
    assert before == {p: p.read_bytes() for p in path.glob("checkpoints/*/*.h5")}
    kept = shutil.copytree(path, tmp_path / "kept")
    factor.write_text("2.0\n")
    refuse(path)
    assert again(path, ranks).returncode == 0
    assert squares(path) == 2 * 2470
    assert not read_identity(RunDir(path)).others

    factor.write_text("4.0\n")
    allow(kept, "any_inputs")
    assert again(kept, ranks).returncode == 0
    assert 2 * 2470 < squares(kept) < 4 * 2470
    (told,) = read_identity(RunDir(kept)).others
    assert "went on with other inputs" in told
    assert str(factor) in told
    assert str(factor) in (kept / "events.jsonl").read_text()
    assert json.loads((kept / "progress.json").read_text())["identity"]["others"] == [told]
    assert again(kept, 1).returncode == 0  # what was let pass is what the run goes on with
    assert len(read_identity(RunDir(kept)).others) == 1


def test_an_input_mended_before_anything_was_stored_is_taken(toy, factor):
    factor.write_text("no number\n")
    assert toy(units=3, factor=str(factor)).code != 0
    factor.write_text("2.0\n")
    run = toy(units=3, factor=str(factor))
    assert run.code == 0, run.output
    assert not read_identity(RunDir(run.path)).others


def test_an_input_changed_while_the_run_worked_fails_it(tmp_path, toy, factor):
    path = tmp_path / "run"
    process = start_toy(path, 2, **SLOW, factor=str(factor))
    while not list(path.glob("checkpoints/squares/seg-*.h5")):
        assert process.poll() is None, output_of(path).read_text()
        time.sleep(0.02)
    factor.write_text("3.0\n")
    assert process.wait(60) == 1
    assert "inputs were changed while the run worked" in output_of(path).read_text()
    assert json.loads((path / "progress.json").read_text())["state"] == "failed"
    assert squares(path) == 2 * 2470  # the results stay
    assert (path / "report" / "index.html").is_file()
    allow(path, "any_inputs")
    assert again(path, 1).returncode == 0
    assert json.loads((path / "progress.json").read_text())["state"] == "done"
    assert "went on with other inputs" in read_identity(RunDir(path)).others[0]


def edit_between_the_blocks(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"\n")


def test_what_large_inputs_cannot_tell_is_said_for_good(tmp_path, factor):
    """An edit that leaves the size and all blocks alone that are read: the run goes on, and never says that all is well."""
    path, large = tmp_path / "run", tmp_path / "large.txt"
    large.write_text("2.0" + " " * (WHOLE + 100))
    os.utime(large, (1e9, 1e9))
    time.sleep(2.1)  # or its times would not be relied on
    stopped(path, factor=str(large))
    edit_between_the_blocks(large)
    (told,) = [v.text for v in verify_run(RunDir(path)) if v.subject == "inputs.json"]
    assert told.startswith(f"not known to be as it was: {large}: was written to or moved")
    assert again(path, 1).returncode == 0
    (told,) = read_identity(RunDir(path)).others
    assert f"whether large inputs are what they were is not known:\n  {large}: was written to" in told
    assert again(path, 1).returncode == 0
    assert len(read_identity(RunDir(path)).others) == 1  # once
    said = again(path, 1, CHECKOUT, "-m", "hpc", "verify").stdout
    assert "all sound, but" in said


def test_what_large_inputs_cannot_tell_is_said_of_the_run_that_was_at_work(tmp_path):
    path, large = tmp_path / "run", tmp_path / "large.txt"
    large.write_text("2.0" + " " * (WHOLE + 100))
    os.utime(large, (1e9, 1e9))
    time.sleep(2.1)
    process = start_toy(path, 2, **SLOW, factor=str(large))
    while not list(path.glob("checkpoints/squares/seg-*.h5")):
        assert process.poll() is None, output_of(path).read_text()
        time.sleep(0.02)
    edit_between_the_blocks(large)
    assert process.wait(60) == 0
    (told,) = read_identity(RunDir(path)).others
    assert "for they were handled while the run worked" in told
    assert json.loads((path / "progress.json").read_text())["identity"]["others"] == [told]


def test_files_added_to_and_removed_from_a_folder_are_named(tmp_path, factor, monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "tests" / "hpc")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_text("a")
    path = tmp_path / "run"
    stopped(path, folder=str(folder))
    (folder / "b.png").write_text("b")
    with pytest.raises(ChangedInputsError, match=r"b\.png: is an input now and was none"):
        refuse(path)
    (folder / "b.png").unlink()
    (folder / "a.png").unlink()
    with pytest.raises(ChangedInputsError, match=r"a\.png: is not there any more"):
        refuse(path)


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A copy of the engine and the toy workload, which may be edited."""
    place = tmp_path / "copy"
    shutil.copytree(CHECKOUT / "hpc", place / "hpc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "conf", place / "conf")
    shutil.copy(CHECKOUT / "tests" / "hpc" / "toyjob.py", place)
    return place


def test_edited_code_of_the_same_version_is_refused_until_it_is_let_pass(tmp_path, elsewhere):
    path = tmp_path / "run"
    stopped(path)
    same = again(shutil.copytree(path, tmp_path / "same"), 1, elsewhere)
    assert same.returncode == 0, same.stdout + same.stderr  # the same code, in another place
    for name in "toyjob.py", "hpc/maps.py", "hpc/untracked.py":
        with (elsewhere / name).open("a") as file:
            file.write("# edited\n")
    typed = again(path, 1, elsewhere, "-m", "hpc", "resume")  # before anything is started or submitted
    ranks = again(path, 1, elsewhere)
    for done in typed, ranks:
        assert done.returncode == 2
        for line in "toyjob.py: was edited", "hpc/maps.py: was edited", "hpc/untracked.py: is new":
            assert line in done.stderr
        assert "any_version=true (resume: --any-version)" in done.stderr
    assert len(json.loads((path / "provenance.json").read_text())["attempts"]) == 2  # only the ranks began
    allow(path, "any_version")
    assert again(path, 1, elsewhere).returncode == 0
    (told,) = read_identity(RunDir(path)).others
    assert "went on with other code" in told
    assert "toyjob.py" in told


def test_code_is_the_engine_the_package_and_what_a_users_file_imports(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text("import math\nimport helper\nfrom parts import one\n")
    (tmp_path / "helper.py").write_text("import numpy\n\ndef late():\n    import other\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "one.py").write_text("")
    files = code_of("tessera.lsq.job.LsqJob", [tmp_path / "model.py"]).files
    assert {"hpc/run.py", "tessera/lsq/job.py", "tessera/xpcs/native/__init__.py"} <= files.keys()
    users = {name for name in files if not name.startswith(("hpc/", "tessera/"))}
    assert users == {"model.py", "helper.py", "other.py", "parts/__init__.py", "parts/one.py"}


def test_a_damaged_or_missing_record_is_said_and_made_anew(tmp_path, factor):
    path = tmp_path / "run"
    stopped(path, factor=str(factor))
    record = path / "inputs.json"
    record.write_text(record.read_text().replace("sha256", "sha257"))
    assert again(path, 1).returncode == 0
    assert (path / "damaged-inputs.json").exists()
    (told,) = read_identity(RunDir(path)).others
    assert "it is not known which inputs and code the run was started with" in told
    assert read_record(record)["files"][0][0] == str(factor)


def test_a_refusal_says_both_codes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "tests" / "hpc")
    path = tmp_path / "run"
    stopped(path)
    record = json.loads((path / "inputs.json").read_text())
    record["code"]["files"]["hpc/run.py"] = "another"
    record["code"]["commit"] = "0123456789abcdef"
    from hpc.store.records import write_record

    write_record(path / "inputs.json", {k: v for k, v in record.items() if k != "digest"})
    with pytest.raises(
        ChangedCodeError, match=r"commit 0123456789(.|\n)*, and this is 0(.|\n)*hpc/run\.py: was edited"
    ):
        refuse(path)


def test_what_a_run_went_on_with_is_said_wherever_people_look(tmp_path, factor):
    path = tmp_path / "run"
    stopped(path, factor=str(factor))
    factor.write_text("3.5\n")
    (refused,) = [v for v in verify_run(RunDir(path)) if v.subject == "inputs.json"]
    assert refused.text == f"a resume is refused: {factor}: has other content of the same size"
    done = again(path, 1, CHECKOUT, "-m", "hpc", "resume", "--any-inputs")
    assert done.returncode == 0, done.stderr
    assert "went on with other inputs" in done.stdout
    status = read_status(path)
    assert (status.identity.inputs, status.identity.nbytes) == (1, 4)
    assert "went on with other inputs" in status.identity.others[0]
    page = (path / "report" / "index.html").read_text()
    assert "went on with other inputs" in page
    assert "1 input, 4 B" in page
    for verb, words in ("status", "1 input, 4 B"), ("verify", "all sound, but it went on with other inputs or code"):
        said = again(path, 1, CHECKOUT, "-m", "hpc", verb)
        assert said.returncode == 0
        assert words in said.stdout
        assert "went on with other inputs" in said.stdout
    assert "any_inputs: true" in (path / "config.yaml").read_text()
    factor.write_text("4.5\n")  # another change has to be let pass anew
    assert again(path, 1, CHECKOUT, "-m", "hpc", "resume").returncode == 2
