"""Nothing is lost: hundreds of faults, each followed by a resume whose results are those of an undisturbed run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from catalogue import Crew, ci_jobs, left_out
from harness import Harness, judge

from hpc.store.segments import Finished, write_segment

pytestmark = pytest.mark.mpi


@pytest.fixture
def harness(tmp_path):
    it = Harness(tmp_path)
    yield it
    it.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_fault_is_survived(capsys):
    crew = Crew(ci_jobs(seed=3)).work(3)  # a third one works while the others wait for a disk or for ranks to end
    with capsys.disabled():
        print(f"\n{crew.table()}\nleft out on this machine: {'; '.join(left_out()) or 'nothing'}")
    assert not crew.complaints(), "\n\n".join(crew.complaints())
    rows = crew.rows.values()
    assert sum(r.injected for r in rows) >= 500
    assert all(r.injected == r.recovered > 0 for r in rows)
    assert not any(r.lost or r.doubled or r.wrong for r in rows)


def test_the_harness_sees_what_is_wrong(harness):
    """Guards the guard: each sort of harm must show in the verdict."""
    scenario = harness.scenario()

    def verdict(harm):
        path = harness.prepare(scenario.config)
        code = harness.attempt(path)
        assert judge(path, scenario.truth, code).right
        harm(path, sorted((path / "checkpoints" / "squares").glob("seg-*.h5")))
        return judge(path, scenario.truth, code)

    assert verdict(lambda _, segments: segments[0].unlink()).lost == 2
    assert verdict(lambda _, segments: shutil.copy(segments[0], segments[0].with_name("seg-9.h5"))).doubled == 2
    alien = Finished("u99999", {}, 0.1, 1, 0)
    assert verdict(lambda _, segments: write_segment(segments[0].with_name("seg-9.h5"), "squares", [alien])).wrong == 1
    assert verdict(lambda path, _: (path / "results" / "walk.txt").write_text("0")).wrong == 1
    assert not judge(harness.prepare(scenario.config), scenario.truth, 1).right
