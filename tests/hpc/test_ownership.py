"""What somebody else prepared runs as whoever resumes it: that is asked first."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from hpc.errors import RunDirError
from hpc.ownership import require_trust, strangers
from hpc.rundir import RunDir


@pytest.fixture
def prepared(tmp_path) -> tuple[Path, Path]:
    """A run whose configuration runs a command, and the file that the command leaves."""
    run, mark = tmp_path / "run", tmp_path / "pwned"
    config = {
        "job": {"_target_": "toyjob.ToyJob", "name": "toy", "units": 3},
        "run": {"dir": str(run)},
        "cluster": {"ranks": 2, "mpiexec": f"sh -c 'touch {mark}; exit 1'"},
        "seed": 0,
    }
    RunDir.prepare(run, config)
    return run, mark


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "hpc", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{CHECKOUT / 'tests' / 'hpc'}:{CHECKOUT}"}


def give_away(run: Path) -> None:
    """Let everybody write it, and where that is allowed give it to somebody else."""
    if os.geteuid() == 0:
        os.chown(run / "config.yaml", 12345, -1)
    else:
        (run / "config.yaml").chmod(0o666)


def test_a_strangers_run_is_not_resumed_unless_it_is_trusted(prepared):
    run, mark = prepared
    give_away(run)
    done = subprocess.run(command("resume", run), env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--trust-owner" in done.stderr
    assert "cluster.mpiexec" in done.stderr
    assert not mark.exists()
    trusted = command("resume", run, "--trust-owner")
    done = subprocess.run(trusted, env=environment(), capture_output=True, text=True, timeout=60)
    assert mark.exists(), done.stdout + done.stderr


def test_no_verb_imports_what_a_stranger_names(prepared, tmp_path):
    """All verbs on a run: those that would import ``job._target_`` refuse it, the others do without."""
    run, mark = prepared
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("toyjob.ToyJob", "evil.Job"))
    give_away(run)
    for verb in ("resume", "report", "status", "verify", "cancel"):
        done = subprocess.run(
            command(verb, run),
            env={**environment(), "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not mark.exists(), verb
        assert ("--trust-owner" in done.stderr) == (verb in {"resume", "report"}), done.stderr


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_a_person_is_asked(prepared, answer):
    run, mark = prepared
    give_away(run)
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        command("resume", run), env=environment(), stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal
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


def test_who_is_a_stranger(prepared, tmp_path):
    run, _ = prepared
    assert strangers(run) == []
    other = os.geteuid() + 1
    if os.geteuid() != 0:
        assert any("config.yaml belongs to" in line for line in strangers(run, other))
    run.chmod(0o777)
    assert strangers(run) == [f"{run} can be written by everybody"]
    run.chmod(0o1777)
    assert strangers(run) == []
    run.chmod(0o770)
    (run / "config.yaml").chmod(0o666)
    with pytest.raises(RunDirError, match="can be written by everybody"):
        require_trust(run, trusted=False)
    require_trust(run, trusted=True)
    assert strangers(tmp_path / "nothing") == []
