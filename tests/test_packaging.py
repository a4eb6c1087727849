"""What a stranger gets: the installed wheel, and the worked example of CONTRIBUTING.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import CHECKOUT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_an_installed_wheel_behaves_like_the_checkout(wheel, tmp_path):
    """Config tree included: the same composed configuration, from another directory, without the checkout."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def ask(path: str, *words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-m", "hpc", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    where = "import hpc, tessera; print(hpc.__file__, tessera.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert all(Path(f).is_relative_to(site) for f in found)
    kernels = "from tessera.xpcs import native; native.complaint() or print(len(native.functions(native.level())))"
    loaded = subprocess.run(
        [sys.executable, "-c", kernels], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, check=True
    )
    assert loaded.returncode == 0
    assert "-py3-none-" in wheel.name
    assert wheel.name.endswith("-any.whl") == (shutil.which("cc") is None)
    words = ("job=photometry", "run.dir=here", "--cfg", "job")
    assert ask(str(site), *words) == ask(str(CHECKOUT), *words)
    assert "photometry" in ask(str(site), "--help")


def test_the_example_of_contributing_is_a_workload(tmp_path):
    """One folder and one yaml: the code of CONTRIBUTING.md, run on two ranks through the command line."""
    blocks = re.findall(r"```python\n(.*?)```", (CHECKOUT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    header = (
        "from dataclasses import dataclass\nfrom typing import Annotated\nimport numpy as np\n"
        "from hpc import Arrays, Context, Job, Map, Range, Results, Unit\n"
    )
    code = header + "".join(re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in blocks)
    (tmp_path / "pi_job.py").write_text(code)
    conf = tmp_path / "conf" / "job"
    conf.mkdir(parents=True)
    (conf / "pi.yaml").write_text("_target_: pi_job.PiJob\nname: pi\nblocks: 20\npoints: 100000\n")
    command = [sys.executable, "-m", "hpc", "--config-dir", str(tmp_path / "conf"), "job=pi", "run.dir=run"]
    done = subprocess.run(
        [*command, "cluster.ranks=2", "cluster.threads_per_process=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pi = float((tmp_path / "run" / "results" / "pi.txt").read_text())
    assert abs(pi - 3.14159265) < 5 * 1.64 / (20 * 100_000) ** 0.5  # five standard errors
