"""Ends of terminals: whoever reads may go away, and what is said commands nobody's terminal. Real processes and ptys."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from hpc.desk import Desk
from hpc.terminal import Output, visible
from hpc.watch.console import console

HERE = Path(__file__).parent
TESSERA = [sys.executable, "-P", "-m", "hpc"]
TOY = [*TESSERA, "--config-dir", str(HERE / "conf"), "job=toy", "run.dir=run", "engine.heartbeat=0.1"]
CLEAN = {k: v for k, v in os.environ.items() if k not in {"PYTHONIOENCODING", "LC_ALL", "PYTHONUTF8"}}
ENVIRONMENT = {**CLEAN, "PYTHONPATH": str(HERE)}

CHATTY = """
from toyjob import Squares, ToyJob

class Loud(Squares):
    def run(self, unit, ctx):
        print("é" * 3000, flush=True)
        return super().run(unit, ctx)

class Chatty(ToyJob):
    def stages(self):
        return [Loud(self.options)]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str, *words: str, **changes: str) -> tuple[int, str]:
    """Run a line of bash in which "$@" is the command; return its exit code and what is on standard error."""
    done = subprocess.run(
        ["bash", "-c", line, "bash", *words],
        env={**ENVIRONMENT, **changes},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    return done.returncode, done.stderr.decode(errors="replace")


def state(run: str = "run") -> str:
    return json.loads(Path(run, "progress.json").read_text())["state"]


def wait_for_units(number: int, run: str = "run") -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end:
        try:
            if sum(s["done"] for s in json.loads(Path(run, "progress.json").read_text())["stages"]) >= number:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    pytest.fail("the run does not get anywhere")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü × 漢\ttab\nline", "plain ü × 漢\ttab\nline"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("a\rb\x7f\x9b31m\x85", "a\\rb\\x7f\\x9b31m\\x85"),
        ("\u202egpj.exe\u2066 \u2028", "\\u202egpj.exe\\u2066 \\u2028"),
        (os.fsdecode(b"n\xff"), "n\\xff"),
        ("\ud800", "\\ud800"),
        ("", ""),
    ],
)
def test_control_characters_are_shown(text, shown):
    assert visible(text) == shown
    assert "\n" not in visible(text, lines=False)


def test_neither_escapes_nor_markup_in_data_reach_the_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    table = Table("[/b]", box=None)
    table.add_row("[/y \x1b]52;c;AAAA\x07 :smile:")
    table.add_row(Text("[red]\x1b[31m\u202e"))
    console().print(table, "[/x]", Text("\x9b5n"))
    shown = stream.getvalue()
    assert not any(c in shown for c in "\x1b\x07\x9b\u202e")
    for text in ("[/b]", "[/y \\x1b]52;c;AAAA\\x07 :smile:", "[red]\\x1b[31m\\u202e", "[/x]", "\\x9b5n"):
        assert text in shown


def test_a_disk_that_is_full_for_a_while_loses_only_what_did_not_fit():
    with Path("/dev/full").open("w") as full:
        output = Output(full)
        output.write("x" * 20000)
        output.flush()
        assert "No space" in str(output.lost)
        output.end()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        output = Output(broken)
        output.write("x" * 100_000)
        output.end()
        assert output.lost is None


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ('"$@" | true; exit ${PIPESTATUS[0]}', {}),
        ('"$@" >/dev/full', {}),
        ('"$@" >/dev/full 2>&1', {}),
        ('"$@" >&-', {}),
        ('"$@" <&-', {}),
        ('"$@" <&- >&- 2>&-', {}),
        ('"$@" | cat', {"PYTHONIOENCODING": "ascii:strict"}),
        ('"$@" | cat', {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    ],
)
def test_a_run_ends_as_it_would_have_whoever_reads(folder, line, changes):
    code, said = shell(line, *TOY, "job.units=4", "job.steps=2", **changes)
    assert (code, said) == (0, "")
    assert state() == "done"
    assert sorted(file.name for file in Path("run/logs").iterdir()) == ["launch.log", "rank-00000.log"]


@pytest.mark.mpi
def test_ranks_may_say_what_they_like_wherever_it_goes(folder):
    (folder / "conf" / "job").mkdir(parents=True)
    (folder / "conf" / "job" / "chatty.yaml").write_text("_target_: chatty.Chatty\nname: chatty\nunits: 6\n")
    (folder / "chatty.py").write_text(CHATTY)
    words = [*TESSERA, "--config-dir", "conf", "job=chatty"]
    changes = {"PYTHONPATH": f"{HERE}:{folder}", "PYTHONIOENCODING": "ascii"}
    for ranks in (1, 2):
        run = f"full{ranks}"
        (folder / run / "logs").mkdir(parents=True)
        (folder / run / "logs" / "launch.log").symlink_to("/dev/full")
        code, said = shell('"$@"', *words, f"run.dir={run}", f"cluster.ranks={ranks}", **changes)
        assert (code, state(run)) == (0, "done"), said
    shell('"$@"', *words, "run.dir=kept", "cluster.ranks=2", **changes)
    assert (folder / "kept" / "logs" / "launch.log").read_text().count("\\xe9") == 6 * 3000


@pytest.fixture
def run(folder):
    shell('"$@"', *TOY, "job.units=3")
    return folder / "run"


@pytest.mark.parametrize("verb", ["status", "verify", "report"])
def test_a_verb_without_a_reader_is_no_failure_and_one_on_a_full_disk_says_so(run, verb):
    words = [*TESSERA, verb, "run"]
    assert shell('"$@" | true; exit ${PIPESTATUS[0]}', *words) == (0, "")
    assert shell('"$@" >&-', *words) == (0, "")
    code, said = shell('"$@" >/dev/full', *words)
    assert code == 1
    assert (
        said
        == "error: standard output cannot be written (No space left on device); what was asked for is not all there\n"
    )
    assert shell('"$@" 2>/dev/full', *TESSERA, verb, "nothing") == (2, "")


def test_verify_cuts_no_name_on_a_narrow_terminal(run):
    process, terminal = in_a_terminal('stty cols 60; exec "$@"', *TESSERA, "verify", "run")
    code, said = read_until_end(process, terminal)
    os.close(terminal)
    assert (code, "…" in said) == (0, False), said


def start(*words: str, before: str = "") -> subprocess.Popen:
    command = ["bash", "-c", f'{before} exec "$@"', "bash", *TOY, "job.units=30", "job.seconds=0.1", *words]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_what_nohup_ignores_stays_ignored(folder):
    process = start("job.units=12", before="trap '' HUP;")
    wait_for_units(2)
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, state()) == (0, "done"), said


@pytest.mark.parametrize("numbers", [(signal.SIGHUP,) * 3, (signal.SIGTERM,) * 2, (signal.SIGTERM, signal.SIGHUP)])
def test_a_hang_up_and_signals_sent_twice_are_one_request_to_save(folder, numbers):
    process = start("cluster.ranks=2", "checkpoint.every=1000", "job.units=600")
    wait_for_units(2)
    for number in numbers:
        process.send_signal(number)
        if number == signal.SIGHUP:
            time.sleep(0.25)  # the shell's comes later than the terminal's
        else:
            time.sleep(0.001)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "stopped and saved" in said


def test_a_reader_that_has_fallen_asleep_keeps_nobody_from_stopping_a_run(folder):
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    command = [*TOY, "job.units=300", "job.seconds=0.1"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=write, stderr=subprocess.DEVNULL)
    try:
        os.close(write)
        time.sleep(1)  # the first line of all fills the pipe: the ranks are started after it is read
        os.read(read, 8192)
        wait_for_units(1)
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 40
        while state() != "stopped":
            assert time.monotonic() < end
            time.sleep(0.05)
        os.close(read)
        assert process.wait(30) == 75
    finally:
        process.kill()
        process.wait()


def in_a_terminal(script: str, *words: str) -> tuple[subprocess.Popen, int]:
    """Start a script of bash in a terminal of its own; return it and the terminal."""
    terminal, inside = pty.openpty()
    command = ["setsid", "--ctty", "bash", "-c", script, "bash", *words]
    environment = {**ENVIRONMENT, "TERM": "xterm"}
    process = subprocess.Popen(command, env=environment, stdin=inside, stdout=inside, stderr=inside)
    os.close(inside)
    return process, terminal


def read_until_end(process: subprocess.Popen, terminal: int, seconds: float = 60) -> tuple[int, str]:
    said, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:
                break
    return process.wait(seconds), said.decode(errors="replace")


@pytest.mark.mpi
def test_a_terminal_that_is_closed_saves_the_run(folder):
    process, terminal = in_a_terminal('exec "$@"', *TOY, "cluster.ranks=2", "job.units=600", "job.seconds=0.1")
    wait_for_units(4)
    os.close(terminal)
    assert process.wait(60) == 75
    assert state() == "stopped"


@pytest.mark.mpi
@pytest.mark.parametrize("moment", [0.05, 0.4, 0.8])
def test_a_second_ctrl_c_at_any_moment_leaves_the_closing_words_and_75(folder, moment):
    words = [*TOY, "cluster.ranks=2", "job.units=600", "job.seconds=0.05"]
    process, terminal = in_a_terminal('stty noflsh; exec "$@"', *words)  # the terminal would drop unread words itself
    wait_for_units(2)
    os.write(terminal, b"\x03")
    time.sleep(moment)
    with suppress(OSError):  # it may be over
        os.write(terminal, b"\x03")
    code, said = read_until_end(process, terminal)
    os.close(terminal)
    assert code == 75, said
    assert "go on with:" in said


def test_ctrl_c_spares_a_run_in_the_background_of_a_script_and_kill_does_not(folder):
    script = '"$@" >out 2>&1 & echo $! >pid; trap "" INT; wait; exit $?'
    words = [*TOY, "job.units=300", "job.seconds=0.1"]
    process, terminal = in_a_terminal(script, *words)
    wait_for_units(2)
    os.write(terminal, b"\x03")
    time.sleep(0.6)
    assert state() == "running"
    assert "stopping" not in Path("out").read_text()
    os.kill(int(Path("pid").read_text()), signal.SIGINT)
    end = time.monotonic() + 30
    while "stopped and saved" not in Path("out").read_text():
        assert time.monotonic() < end, Path("out").read_text()
        time.sleep(0.05)
    os.close(terminal)
    process.wait(60)
    assert state() == "stopped"


def test_a_request_to_stop_before_anybody_listens_harms_nobody():
    default = Desk.__dataclass_fields__["on_wish"].default_factory
    default()("stop")
    assert not hasattr(Desk, "on_wish"), "a function of the class is bound to the desk, and gets it as an argument"
