"""Run directories with files that are damaged, of another kind, or not files at all: every verb says which and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.cli.main import main
from hpc.errors import RunDirError
from hpc.inputs import look
from hpc.launch.outcome import Ending, _output
from hpc.report.write import view_run
from hpc.rundir import RunDir
from hpc.store.records import sealed
from hpc.store.sealing import read_seals
from hpc.store.verify import verify_run
from hpc.watch.progress import State
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import JobState
from hpc.watch.status import ENDED, LIVE, find_runs, read_status
from hpc.watch.submissions import record_submission
from hpc.watch.sweeps import read_sweep

STAGE = {"name": "fit", "kind": "map", "state": "done", "done": 4, "total": 4, "seconds": 1.0}
PROGRESS = {
    "state": "done", "attempt": 1, "stage": None, "stages": [STAGE], "rate": 0.0, "eta": None, "started": 1e9,
    "updated": 1e9 + 5, "size": 1, "threads": 1, "message": "", "ranks": [{"rank": 0, "heartbeat": 1e9}],
}  # fmt: skip
CONFIG = "job: {_target_: toyjob.ToyJob, name: toy}\nengine: {heartbeat: 2.0}\n"
EVENTS = [
    {"t": 1e9, "event": "run_start", "attempt": 1},
    {"t": 1e9 + 1, "event": "stage_start", "stage": "fit"},
    {"t": 1e9 + 4, "event": "stage_end", "stage": "fit", "ranks": [{"rank": 0, "wall": 3.0, "busy": 2.0, "units": 4}]},
    {"t": 1e9 + 5, "event": "timing", "seconds": {"fit": 3.0}},
]


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "runs" / "bad")


def make(path: Path) -> Path:
    (path / "checkpoints" / "fit").mkdir(parents=True)
    (path / "logs").mkdir()
    (path / "config.yaml").write_text(CONFIG)
    (path / "progress.json").write_text(json.dumps(PROGRESS))
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    return path


def changed(**changes) -> str:
    return json.dumps({**PROGRESS, **changes})


DAMAGED = [
    ("config.yaml", "{"),
    ("config.yaml", "job: 7\n"),
    ("config.yaml", "- a\n"),
    ("config.yaml", "job: {name: toy}\nengine: 3\n"),
    ("config.yaml", "job: {name: toy}\nengine: {heartbeat: often}\n"),
    ("config.yaml", "job: {name: toy}\nengine: {heartbeat: .inf}\n"),
    ("config.yaml", "a: " + "[" * 600 + "]" * 600),
    ("config.yaml", "job: {name: \xff}".encode("latin-1")),
    ("progress.json", ""),
    ("progress.json", "[1, 2]"),
    ("progress.json", "[" * 100_000),
    ("progress.json", changed(ranks=[1])),
    ("progress.json", changed(ranks=[{"rank": 0, "heartbeat": None}])),
    ("progress.json", changed(stages=7)),
    ("progress.json", changed(stages=[{**STAGE, "total": "six"}])),
    ("progress.json", changed(stages=[{**STAGE, "figures": {"cost": []}}])),
    ("progress.json", changed(updated=1e99)),
    ("progress.json", changed(updated=10**400)),
    ("progress.json", changed(started="x").replace('"x"', "1e999")),
    ("progress.json", changed(started="x").replace('"x"', "NaN")),
    ("progress.json", changed(state="donf")),
    ("progress.json", changed(attempt=True)),
    ("failure.json", "x"),
    ("failure.json", "[]"),
    ("failure.json", "{}"),
    ("failure.json", '{"error": 7}'),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_and_hides_no_other_run(run, name, content, capsys):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    good = make(run.with_name("good"))
    status = read_status(run)
    assert status.state == "unreadable"
    assert status.message.startswith(f"{name}: ")
    for verb in (["status", str(run.parent)], ["status", str(run.parent), "--json"], ["status", str(run)]):
        assert main(verb) == 0
        shown = capsys.readouterr().out
        assert name in shown
        assert ("good" in shown) is (str(run) not in verb)
    assert read_statuses([good])[0].state == "done"
    for verb in ("report", "verify", "resume", "cancel"):
        assert main([verb, str(run)]) in (0, 1, 2)


SEAL = {"size": 1, "changed": 1, "sha256": "0"}
KERNELS = {"level": "v3", "pinned": True, "cpu": "v3", "variables": {}, "libraries": {}}
OF_ANOTHER_SHAPE = [
    {},
    {"attempts": 7},
    {"attempts": [7], "version": "0.1.0"},
    {"attempts": [{"config_hash": 3}], "version": "0.1.0"},
    {**KERNELS, "attempts": [{"attempt": 1, "differs": 7}]},
    {**KERNELS, "attempts": [{"attempt": "x", "differs": ["a"]}]},
    {"units": "many"},
    {"index": "first", "results": {"a": SEAL}},
    {"results": {"a": {**SEAL, "size": "x"}}},
    {"results": [1]},
    {"files": 7, "folders": [], "code": {}, "packages": [], "others": []},
    {"units": {"a": 1}, "rank": "x", "attempt": "y"},
]


@pytest.mark.parametrize(
    "name",
    ["kernels.json", "inputs.json", "provenance.json", "lock"]
    + [f"checkpoints/fit/{name}.json" for name in ("complete", "ended-0001", "without", "gen-00000001", "quarantine")],
)
def test_a_sound_record_of_another_shape_hides_no_other_run(run, name, capsys):
    make(run.with_name("good"))
    (run / "checkpoints" / "fit" / "begun-0001-00000.txt").write_text("+a\n")
    for content in OF_ANOTHER_SHAPE:
        (run / name).write_text(json.dumps(sealed(content)))
        assert main(["status", str(run.parent)]) == 0
        assert "good" in capsys.readouterr().out
        for verb in ("status", "verify", "report", "cancel"):
            assert main([verb, str(run)]) in (0, 1, 2)


@pytest.mark.parametrize("name", ["../victim", "/etc/hostname", "a/../../victim"])
def test_a_seal_names_no_file_outside_the_results(run, name):
    (run / "checkpoints" / "fit" / "complete.json").write_text(
        json.dumps(sealed({"units": 4, "results": {name: SEAL}}))
    )
    assert read_seals(run / "checkpoints" / "fit") == {}


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def socket_of_nobody(path: Path) -> None:
    os.mknod(path, 0o140644)


KINDS = [Path.mkdir, make_fifo, link_to_itself, socket_of_nobody]
NAMES = [
    "config.yaml", "progress.json", "failure.json", "events.jsonl", "slurm.json", "sweep.json", "provenance.json",
    "lock", "checkpoints/fit/seg-0001-00000-000001.h5", "checkpoints/fit/quarantine.json",
    "checkpoints/fit/complete.json", "checkpoints/fit/gen-000001.json", "checkpoints/fit/begun-0001-00000.txt",
]  # fmt: skip


@pytest.fixture
def impatient():
    """End a test that waits for a writer who never comes."""

    def fail(number, frame):
        del number, frame
        pytest.fail("somebody waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make_kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("impatient")
def test_what_is_no_file_makes_nobody_wait(run, name, make_kind):
    (run / name).unlink(missing_ok=True)
    make_kind(run / name)
    for verb in ("status", "verify", "report", "cancel"):
        assert main([verb, str(run)]) in (0, 1, 2)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make_kind", [make_fifo, endless, Path.mkdir])
@pytest.mark.usefixtures("impatient")
def test_a_log_that_is_no_file_makes_nobody_wait(run, make_kind):
    make_kind(run / "job.log")
    (run / "progress.json").unlink()
    record_submission(run, "7", {}, str(run / "slurm" / "1" / "script.sh"), str(run / "job.log"))
    gone = JobState("FAILED", exit_code="2:0", command=str(run / "slurm" / "1" / "script.sh"))
    (status,) = read_statuses([run], lambda jobs: dict.fromkeys(jobs, gone))
    assert status.state == "failed"
    assert _output(Ending(run, 1, 1, 0.0, 0, run / "job.log", 0)) == ""


@pytest.mark.parametrize("make_kind", [make_fifo, endless, Path.mkdir])
@pytest.mark.usefixtures("impatient")
def test_an_input_that_is_no_file_makes_nobody_wait(tmp_path, make_kind):
    make_kind(tmp_path / "frame.fits")
    (found,) = look([str(tmp_path / "frame.fits")], {}, frozenset())
    assert found.problem


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make_kind", [None, link_to_nothing, link_to_itself])
@pytest.mark.parametrize("left", ["progress.json", "slurm.json"])
def test_a_run_that_has_lost_its_configuration_is_still_shown(run, make_kind, left, capsys):
    record_submission(run, "7", {}, "x")
    (run / "config.yaml").unlink()
    (run / ({"progress.json", "slurm.json"} - {left}).pop()).unlink()
    if make_kind is not None:
        make_kind(run / "config.yaml")
    make(run.with_name("good"))
    assert [p.name for p in find_runs(run.parent)] == ["bad", "good"]
    assert find_runs(run) == [run]
    assert main(["status", str(run.parent)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("bad"))
    assert "unreadable" in row
    assert "config.yaml" in row
    assert main(["status", str(run.parent), "--exit-code"]) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two other users")
def test_of_folders_that_cannot_be_looked_into_only_ones_own_are_shown(tmp_path, monkeypatch):
    for name, user in (("mine", 1001), ("theirs", 1002)):
        make(tmp_path / name).chmod(0)
        os.chown(tmp_path / name, user, user)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # whatever lies above may be closed to others
    os.setresuid(1001, 1001, 0)
    try:
        assert find_runs(Path()) == [Path("mine")]
        assert read_status(Path("mine")).message == "config.yaml: Permission denied"
    finally:
        os.setresuid(0, 0, 0)


def test_the_states_of_a_run_are_known():
    assert set(State.__args__) == {*LIVE, *ENDED}


def test_a_damaged_record_of_submissions_is_not_taken_for_none(run):
    (run / "progress.json").unlink()
    assert read_status(run).state == "not started"
    submission = {"job_id": "7", "array_task": None, "submitted": 1e9, "cluster": {}, "script": "x"}
    for wrong in ({"job_id": 5}, {**submission, "job_id": 5}, {**submission, "submitted": 1e300}, 3):
        (run / "slurm.json").write_text(json.dumps({"submissions": [wrong]}))
        status = read_status(run)
        assert (status.state, status.message.split(":")[0]) == ("unreadable", "slurm.json")
    (run / "slurm.json").write_text(json.dumps({"submissions": [submission]}))
    assert read_status(run).state == "not started"


@pytest.mark.parametrize("name", ["../good", "/etc", ".", "..", "a/b", "", "a\0b", 3, None])
def test_a_sweep_has_its_runs_inside(tmp_path, name, capsys):
    make(tmp_path / "0")
    member = {"run": name, "label": "a=1", "overrides": []}
    (tmp_path / "sweep.json").write_text(json.dumps({"members": [member]}))
    with pytest.raises(RunDirError, match=r"sweep\.json: cannot be used"):
        read_sweep(tmp_path)
    assert main(["status", str(tmp_path)]) == 0  # the runs are there all the same
    shown = capsys.readouterr().out
    assert "done" in shown
    assert "sweep.json" in shown
    assert main(["report", str(tmp_path)]) == 2


EVENT_LINES = [
    "{}",
    "[]",
    "[" * 100_000,
    '{"t": 1e9, "evenu": "run_start"}',
    '{"t": 1e99, "event": "run_start"}',
    '{"t": NaN, "event": "stop"}',
    '{"t": 1e9, "event": 7}',
    '{"t": 1e9, "event": "stage_start"}',
    '{"t": 1e9, "event": "stage_end", "stage": "fit", "ranks": [{"rbnk": 0}]}',
    '{"t": 1e9, "event": "stage_end", "stage": "fit", "ranks": {"rank": 0}}',
    '{"t": 1e9, "event": "stage_end", "stage": "fit", "ranks": [{"rank": 0, "busy": "long"}]}',
    '{"t": 1e9, "event": "timing", "seconds": {"fit": []}}',
    '{"t": 1e9, "event": "run_end", "state": "do',
    '"' + "x" * (5 << 20),
]


def test_a_report_leaves_damaged_events_out_and_says_so(run, capsys):
    text = "\n".join([*EVENT_LINES, *(json.dumps(e) for e in EVENTS)])
    (run / "events.jsonl").write_text(text + "\n")
    view = view_run(RunDir(run))
    assert [dict(e) for e in view.events] == EVENTS
    assert view.left_out == [f"events.jsonl: {len(EVENT_LINES)} of its lines are damaged and left out."]
    assert main(["report", str(run)]) == 0
    assert view.left_out[0] in capsys.readouterr().err
    page = (run / "report" / "index.html").read_text()
    assert view.left_out[0] in page
    assert "<svg" in page
    (verdict,) = (v for v in verify_run(RunDir(run)) if v.subject == "events.jsonl")
    assert verdict.text.startswith(f"4 records; {len(EVENT_LINES)} lines cut short or damaged")


def test_a_report_survives_damaged_provenance_and_quarantine(run):
    (run / "provenance.json").write_text('{"version": [], "attempts": [7, {"started": 1e99, "code": 3}]}')
    (run / "checkpoints" / "fit" / "quarantine.json").write_text('{"u1": 7, "u2": {"error": "\\ud800"}}')
    assert main(["report", str(run)]) == 0
    assert "u2" in (run / "report" / "index.html").read_text()


def test_strange_names_are_found_and_shown(tmp_path):
    path = os.fsencode(tmp_path) + b"/n\xff\xfe"
    make(Path(os.fsdecode(path)))
    command = [sys.executable, "-m", "hpc", "status", path]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert main(["report", os.fsdecode(path)]) == 0


@pytest.mark.parametrize("verb", ["status", "resume", "verify", "report", "cancel"])
def test_a_name_that_is_too_long_is_refused(tmp_path, verb, capsys):
    assert main([verb, str(tmp_path / ("x" * 300))]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("where", ["x" * 300, "/dev/null", "/proc/nope", "file", "file/below", "a\0b"])
def test_no_run_is_made_where_none_can_be(tmp_path, where, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(RunDirError):
        RunDir.prepare(Path(where).absolute(), {"job": {"name": "toy"}})


def test_a_deleted_working_folder_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, shutil, sys; from hpc.cli.main import main; shutil.rmtree(os.getcwd()); sys.exit(main(['status']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the folder in which tessera was started is gone")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.mpiexec='\"'", "cluster.ranks=2"], "cluster.mpiexec"),
        (["cluster.ranks=1000000000"], "cluster.ranks"),
        (["job._target_=..x"], "job._target_"),
        (["run.dir=" + "x" * 300], "File name too long"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, words, said, capsys):
    monkeypatch.chdir(tmp_path)
    conf = Path(__file__).parent / "conf"
    assert main(["--config-dir", str(conf), "job=toy", "run.dir=r", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_option_is_said_before_the_ranks_start(run, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = f"run: {{dir: {run}}}\njob: {{_target_: toyjob.ToyJob, name: toy, units: six}}\n"
    (run / "config.yaml").write_text(settings)
    assert main(["resume", str(run)]) == 2
    assert "job.units" in capsys.readouterr().err
    assert not list((run / "logs").iterdir())


def test_a_rank_tells_of_a_damaged_configuration_in_one_line(run):
    (run / "config.yaml").write_text(CONFIG + "cluster: null\n")
    command = [sys.executable, "-m", "hpc.rank", str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "config.cluster must be a section of keys" in ended.stderr


def test_a_configuration_keeps_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"n\xff\xfe")
    made = RunDir.prepare(tmp_path / name, {"job": {"name": "toy"}, "run": {"dir": str(tmp_path / name)}})
    assert made.load_config()["run"]["dir"] == str(tmp_path / name)


def test_a_folder_that_holds_itself_is_searched_once(run):
    (run.parent / "self").symlink_to(".")
    assert sorted({p.name for p in find_runs(run.parent)}) == ["bad"]
    shutil.rmtree(run)
