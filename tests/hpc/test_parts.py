"""The engine's parts without ranks: scheduling, sums, random streams, options, threads, jobs."""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import numpy as np
import pytest

from hpc import options, threads
from hpc.device import device_of
from hpc.errors import ConfigError, LaunchError, RankError, nearest
from hpc.job import Job, Unit, stages_of
from hpc.options import Range
from hpc.ranks import SerialRanks, world
from hpc.reduce import sum_chunks
from hpc.rng import generator
from hpc.schedule import Queue


def simulate(costs: list[float], size: int, truth: list[float] | None = None) -> tuple[float, int]:
    """Run the queue in simulated time; return makespan and number of grants."""
    truth = truth or costs
    units = [Unit(f"u{i:06d}", c) for i, c in enumerate(costs)]
    took = {u.key: t for u, t in zip(units, truth, strict=True)}
    queue = Queue(units, size)
    ranks = [(0.0, r) for r in range(size)]
    seen: list[str] = []
    end, grants = 0.0, 0
    while ranks:
        now, rank = heapq.heappop(ranks)
        grant = queue.take(rank)
        if grant.over:
            continue
        grants += 1
        for unit in grant.units:
            now += took[unit.key]
            seen.append(unit.key)
            queue.finish(unit.key)
        end = max(end, now)
        heapq.heappush(ranks, (now, rank))
    assert sorted(seen) == sorted(took)  # every unit once
    return end, grants


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_skewed_costs_end_close_to_the_ideal_makespan(size):
    costs = (np.random.default_rng(3).pareto(1.5, 10_000) + 0.1).clip(0, 50).tolist()
    makespan, grants = simulate(costs, size)
    assert makespan <= 1.02 * max(sum(costs) / size, *costs)
    assert grants < 8000


def test_wrong_cost_estimates_are_evened_out():
    truth = (np.random.default_rng(4).pareto(1.5, 10_000) + 0.1).clip(0, 50).tolist()
    makespan, _ = simulate([1.0] * len(truth), 4, truth)
    assert makespan <= 1.1 * sum(truth) / 4


def test_suspects_run_first_and_alone():
    queue = Queue([Unit("big", 9.0), Unit("bad", 1.0), Unit("small", 1.0)], 2, {"bad"})
    assert [u.key for u in queue.take(0).units] == ["bad"]
    waiting = queue.take(1)
    assert not waiting.units
    assert not waiting.over
    queue.finish("bad")
    assert [u.key for u in queue.take(1).units] == ["big"]


def test_a_stopped_queue_gives_nothing():
    queue = Queue([Unit("a")], 1)
    queue.stop()
    assert queue.take(0).over


class Share:
    """One rank of an imagined communicator; the last one joins what all brought, as `MpiRanks.fold` does."""

    def __init__(self, rank: int, size: int, box: list) -> None:
        self.rank, self.size, self.box = rank, size, box

    def fold(self, value, join):
        self.box.append(value)
        if len(self.box) < self.size:
            return None
        step = 1
        while step < self.size:
            for rank in range(0, self.size - step, 2 * step):
                self.box[rank] = join(self.box[rank], self.box[rank + step])
            step *= 2
        return self.box[0]

    def bcast_arrays(self, arrays):
        return arrays


@pytest.mark.parametrize("n", [1, 2, 5, 64, 101])
def test_sums_do_not_depend_on_the_number_of_ranks(n):
    values = np.random.default_rng(n).normal(size=(n, 7)) * 10.0 ** np.arange(-8, 20, 4)
    results = set()
    for size in (1, 2, 3, 5, 8, 13):
        box: list = []
        for rank in range(size):
            mine = range(rank * n // size, (rank + 1) * n // size)
            total = sum_chunks(Share(rank, size, box), n, mine, ({"v": values[c]} for c in mine))
        results.add(total["v"].tobytes())
    assert len(results) == 1
    np.testing.assert_allclose(np.frombuffer(results.pop()), values.sum(0), rtol=1e-12)


def test_sums_say_what_is_missing():
    with pytest.raises(ValueError, match="no chunks"):
        sum_chunks(SerialRanks(), 0, range(0), [])
    with pytest.raises(ValueError, match="chunk 1"):
        sum_chunks(SerialRanks(), 2, range(2), [{"v": np.ones(1)}])
    with pytest.raises(ValueError, match="different arrays"):
        sum_chunks(SerialRanks(), 2, range(2), [{"v": np.ones(1)}, {"w": np.ones(1)}])


def test_streams_depend_on_seed_and_key_alone():
    draws = {(s, k): generator(s, k).normal(size=4).tobytes() for s in (0, 1) for k in ("a", "b")}
    assert len(set(draws.values())) == 4
    assert generator(1, "a").normal(size=4).tobytes() == draws[1, "a"]


@pytest.mark.parametrize(("key", "cost"), [("", 1.0), ("a b", 1.0), ("../x", 1.0), ("a", 0.0), ("a", float("nan"))])
def test_bad_units_are_refused(key, cost):
    with pytest.raises(ValueError, match=r"key|cost"):
        Unit(key, cost)


@pytest.mark.parametrize("names", [["../victim"], ["a/b"], [".."], [""], ["a\n"], ["a", "b", "a"]])
def test_stages_are_named_as_folders_of_their_own(names):
    class Named(Job):
        def __init__(self, options=None):
            pass

        def stages(self):
            return [SimpleNamespace(name=name) for name in names]

    with pytest.raises(ValueError, match="stage"):
        stages_of(Named())


@dataclass(frozen=True)
class Inner:
    mode: Literal["auto", "off"] = "auto"
    files: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    n: Annotated[int, Range(ge=1)]
    x: Annotated[float, Range(gt=0, le=1)] = 0.5
    workers: Annotated[int, Range(ge=1)] | Literal["auto"] = "auto"
    pair: tuple[float, float] = (0.0, 1.0)
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_options_are_built_and_typed():
    made = options.build(Options, {"n": 3, "x": 1, "workers": 2, "pair": [1, 2], "inner": {"files": {"r": "a.fits"}}})
    assert made == Options(3, 1.0, 2, (1.0, 2.0), None, Inner("auto", {"r": Path("a.fits")}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "job.n: missing"),
        ({"n": "???"}, "job.n: is required"),
        ({"n": 0}, "must be >= 1"),
        ({"n": True}, "whole number"),
        ({"n": 1.5}, "whole number"),
        ({"n": 1, "x": float("nan")}, "finite"),
        ({"n": 1, "workers": "atuo"}, "'auto'"),
        ({"n": 1, "workers": 0}, ">= 1"),
        ({"n": 1, "pair": [1]}, "list of 2"),
        ({"n": 1, "inner": {"mdoe": "off"}}, "did you mean 'mode'"),
        ({"n": 1, "inner": {"mode": "of"}}, "did you mean 'off'"),
        ({"n": 1, "inner": 3}, "section of keys"),
    ],
)
def test_wrong_options_are_named_with_the_remedy(values, words):
    with pytest.raises(ConfigError) as caught:
        options.build(Options, values)
    assert words in str(caught.value)


def test_all_complaints_come_at_once():
    with pytest.raises(ConfigError) as caught:
        options.build(Options, {"n": 0, "x": 2, "inner": {"a": 1}})
    assert len(str(caught.value).splitlines()) == 3


def test_paths_become_absolute(tmp_path):
    values = {"n": 1, "path": "a.txt", "inner": {"files": {"r": "sub/b", "g": "/c"}}}
    found = options.absolute_paths(Options, values, tmp_path)
    assert found["path"] == str(tmp_path / "a.txt")
    assert found["inner"]["files"] == {"r": str(tmp_path / "sub/b"), "g": "/c"}


def test_nearest_names_close_and_valid_ones():
    assert nearest("rnaks", ["ranks", "threads"]) == "did you mean 'ranks'? valid: ranks, threads"
    assert nearest("zzz", ["a"]) == "valid: a"


def test_thread_budget(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert threads.budget(3) == 3
    assert threads.budget("auto", 2) == 4
    assert threads.budget("auto", 100) == 1
    monkeypatch.setenv("MPI_LOCALNRANKS", "4")
    assert threads.budget("auto") == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert threads.budget("auto") == 3


def test_oversubscription_is_said_in_numbers(monkeypatch):
    monkeypatch.setattr(threads, "pools", lambda: {"blas": 1})
    mask = frozenset({0, 1})
    assert threads.complaints(1, [mask, mask]) == []
    assert threads.complaints(1, [frozenset({0}), frozenset({1})]) == []
    (text,) = threads.complaints(2, [mask, mask])
    assert "2 ranks x 2 threads = 4 threads on 2 usable CPUs" in text
    assert "threads_per_process=1" in text
    monkeypatch.setattr(threads, "pools", lambda: {"blas": 8})
    assert "blas runs 8 threads" in threads.complaints(2, [])[0]


def test_singletons_instead_of_a_world_are_refused(monkeypatch):
    for name in ("PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(LaunchError, match="--mpi=pmi2"):
        world()


def test_each_rank_of_a_node_gets_its_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [device_of(r) for r in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_of(0) == "cpu"


def test_errors_carry_their_exit_code():
    assert ConfigError("x").exit_code == 2
    assert RankError("x").exit_code == 1
