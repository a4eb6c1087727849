"""Quotas of CPU time, as control groups of both versions write them."""

from __future__ import annotations

import pytest

from hpc import threads
from hpc.quota import quota


def group(tmp_path, line, files):
    (tmp_path / "cgroup").write_text(line)
    for name, content in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return quota(tmp_path / "cgroup", tmp_path / "fs")


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 50000\n"}, 3.0),  # of one above
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("4:cpu,cpuacct:/docker/0af\n", {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("4:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, None),
        ("9:cpuset:/job\n4:cpuacct,cpu:/job\n0::/x\n", {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("0::/../../up\n", {"up/cpu.max": "200000 100000\n"}, 2.0),
        ("nonsense\n\n0::\n", {"cpu.max": "0 0\n"}, None),
        ("0::/a\n", {"a/cpu.max": "nonsense\n"}, None),
    ],
)  # fmt: skip
def test_the_least_quota_counts(tmp_path, line, files, expected):
    assert group(tmp_path, line, files) == expected


def test_a_machine_without_control_groups_has_none(tmp_path):
    assert quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "ranks", "expected"), [(4.0, 2, 2), (2.5, 1, 2), (0.5, 1, 1), (None, 2, 4), (32.0, 1, 8)]
)
def test_the_budget_is_what_the_quota_pays_for(monkeypatch, limit, ranks, expected):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(threads, "usable_cpus", lambda: frozenset(range(8)))
    monkeypatch.setattr(threads, "quota", lambda: limit)
    assert threads.budget("auto", ranks) == expected
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert threads.budget("auto", ranks) == (8 if limit is None else max(1, min(8, int(limit))))


def test_more_threads_than_the_quota_pays_for_are_said(monkeypatch):
    monkeypatch.setattr(threads, "pools", dict)
    masks = [frozenset(range(8))] * 2
    assert threads.complaints(1, masks, 2.0) == []
    (text,) = threads.complaints(3, masks, 2.5)
    assert "2 ranks x 3 threads = 6 threads on 8 usable CPUs, of which a quota pays for 2.5" in text
    assert "cluster.threads_per_process=1" in text
