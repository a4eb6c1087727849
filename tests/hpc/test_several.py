"""Verbs on several runs: what cannot be read is said, the others are dealt with, the worst exit code counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc.cli.main import main

TOY = ["--config-dir", str(Path(__file__).parent / "conf"), "job=toy", "job.units=2", "cluster.ranks=1"]


@pytest.mark.parametrize("verb", ["verify", "report", "resume"])
def test_a_verb_goes_on_to_the_next_run(tmp_path, capfd, verb, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the ranks
    assert main([*TOY, f"run.dir={tmp_path / 'a'}"]) == 0
    capfd.readouterr()
    assert main([verb, str(tmp_path / "nothing"), str(tmp_path / "a")]) == 2
    said = capfd.readouterr()
    assert "no run here" in said.err
    assert {"verify": "all sound", "report": "index.html", "resume": "done"}[verb] in said.out
    assert main([verb, str(tmp_path / "a"), str(tmp_path / "a")]) == 0
