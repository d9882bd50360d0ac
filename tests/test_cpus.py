"""CPUs that a process is granted, with control groups as containers have them."""

import os
from pathlib import Path

import pytest

from prtool import cpus
from prtool.cpus import granted_cpus

BOUND = 8
V2, V1, MIXED = "0::{path}\n", "4:cpu,cpuacct:{path}\n1:name=systemd:/x\n", "3:cpu:{path}\n0::/\n"


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(BOUND)), raising=False)


def system(root: Path, groups: str, path: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups.format(path=path), **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "path", "files", "granted"),
    [
        (V2, "/", {"cpu.max": "200000 100000\n"}, 2),
        (V2, "/", {"cpu.max": "150000 100000\n"}, 2),
        (V2, "/", {"cpu.max": "50000 100000\n"}, 1),
        (V2, "/", {"cpu.max": "max 100000\n"}, BOUND),
        (V2, "/", {"cpu.max": "9900000 100000\n"}, BOUND),
        (V2, "/", {}, BOUND),
        (V2, "/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (V2, "/docker/5f", {"cpu.max": "100000 100000"}, 1),
        (V1, "/", {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 4),
        (V1, "/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "50000"}, 1),
        (V1, "/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, BOUND),
        (MIXED, "/", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000", "unified/cpu.max": "200000 100000"}, 2),
        (V2, "/../..", {"cpu.max": "nonsense"}, BOUND),
        (V2, "/", {"cpu.max": "1 0"}, BOUND),
        ("what is this?", "/", {}, BOUND),
    ],
)
def test_the_smallest_quota_counts(tmp_path: Path, groups: str, path: str, files: dict[str, str], granted: int) -> None:
    assert granted_cpus(system(tmp_path, groups, path, files)) == granted


def test_systems_without_control_groups(tmp_path: Path) -> None:
    assert granted_cpus(tmp_path) == BOUND


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= granted_cpus() <= (os.cpu_count() or 1)
