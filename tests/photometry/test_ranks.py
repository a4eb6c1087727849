"""The same catalog, to the byte, on any number of ranks and threads, and after a stop and a resume."""

import hashlib
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FILES = ("catalog.ecsv", "catalog.fits", "epsf_g.fits", "epsf_i.fits", "white.fits")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """A small sky, whose patches still take so long that a signal sent at the first one meets the others."""
    folder = tmp_path_factory.mktemp("sky")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        demo = importlib.import_module("demo_scene")
        for name, value in {"SIZE": 450, "STARS": 100, "GALAXIES": 35, "BAD_PIXELS": 100}.items():
            patch.setattr(demo, name, value)
        demo.main([str(folder), "--seed", "3"])
    return folder


def command(scene: Path, run: Path, ranks: int, threads: int) -> list[str]:
    return [
        *(sys.executable, "-m", "hpc", "job=photometry"),
        f"job.inputs.image_list_file={scene / 'frames.txt'}",
        f"job.inputs.input_catalog={scene / 'catalog.csv'}",
        *(
            "job.epsf.epsf_ngrid=2",
            "job.epsf.final_psf_size=35",
            "job.epsf.cutout_size=41",
            "job.patches.patch_size=40",
        ),
        *(f"run.dir={run}", f"cluster.ranks={ranks}", f"cluster.threads_per_process={threads}"),
    ]


def digests(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / "results" / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(scope="module")
def reference(scene, tmp_path_factory) -> dict[str, str]:
    run = tmp_path_factory.mktemp("one") / "run"
    subprocess.run(command(scene, run, 1, 1), check=True, capture_output=True, timeout=200)
    return digests(run)


@pytest.mark.parametrize(("ranks", "threads"), [(1, 2), (2, 2), (3, 1)])
def test_ranks_and_threads_do_not_show(scene, reference, tmp_path, ranks, threads):
    run = tmp_path / "run"
    done = subprocess.run(command(scene, run, ranks, threads), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(run) == reference


def patches_done(run: Path) -> int:
    try:
        progress = json.loads((run / "progress.json").read_text())
    except FileNotFoundError:
        return 0
    return sum(stage["done"] for stage in progress["stages"] if stage["name"] == "patches")


@pytest.mark.parametrize(("before", "after", "number"), [(2, 3, signal.SIGINT), (3, 1, signal.SIGTERM)])
def test_a_stop_and_a_resume_do_not_show(scene, reference, tmp_path, before, after, number):
    run = tmp_path / "run"
    quick = [*command(scene, run, before, 1), "engine.heartbeat=0.1"]  # s, to see the first patch early
    process = subprocess.Popen(quick, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while patches_done(run) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert not (run / "results" / "catalog.ecsv").exists()
    resume = [sys.executable, "-m", "hpc", "resume", str(run), f"cluster.ranks={after}"]
    done = subprocess.run(resume, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(run) == reference
