"""Cores and memory: what control groups of either version leave of the machine, in folders that look like theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chameleon.cgroups import Cgroups
from chameleon.cores import allowed_cores, usable_cores, usable_memory_bytes

GIB = 1 << 30


def make_group(root: Path, membership: str, files: dict[str, str]) -> Cgroups:
    """Control groups below `root`, with the given files in them."""
    for name, content in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (root / "cgroup").write_text(membership)
    return Cgroups(root / "fs", root / "cgroup", root / "vmstat")


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    none = Cgroups(tmp_path / "fs", tmp_path / "cgroup", tmp_path / "vmstat")
    assert (none.cpu_quota(), none.cores(), none.memory_limit_bytes(), none.oom_kills()) == (None, None, None, None)
    assert usable_cores(none) == len(allowed_cores(none))
    assert usable_memory_bytes(none) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/b/memory.max": f"{GIB}"}),
        ("0::/\n", {"cpu.max": "150000 100000", "memory.max": f"{GIB}"}),
        (  # inside a container: the path is the host's, and only the mount is seen
            "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": f"{GIB}",
            },
        ),
        (
            "9:name=systemd:/\n4:memory:/a/b\n1:cpu:/a\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "75000",
                "cpu/a/cpu.cfs_period_us": "50000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/a/memory.limit_in_bytes": f"{GIB}",
                "memory/a/b/memory.limit_in_bytes": f"{2 * GIB}",
            },
        ),
        ("0::/../../x\n", {"cpu.max": "150000", "memory.max": f"{GIB}"}),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    group = make_group(tmp_path, membership, files)
    assert group.cpu_quota() == pytest.approx(1.5)
    assert usable_cores(group) == 1
    assert group.memory_limit_bytes() == GIB
    assert usable_memory_bytes(group) == min(GIB, usable_memory_bytes(Cgroups(tmp_path / "none", tmp_path / "none")))


@pytest.mark.parametrize(("text", "quota"), [("max 100000", None), ("5000 100000", 0.05), ("", None)])
def test_at_least_one_core_is_usable(tmp_path: Path, text: str, quota: float | None) -> None:
    group = make_group(tmp_path, "0::/\n", {"cpu.max": text})
    assert group.cpu_quota() == quota
    assert usable_cores(group) == (1 if quota else len(allowed_cores()))


def test_a_set_of_cores_is_read_and_never_leaves_none(tmp_path: Path) -> None:
    mine = sorted(allowed_cores())
    group = make_group(tmp_path, "0::/a\n", {"a/cpuset.cpus.effective": f"{mine[0]},1000-1002"})
    assert group.cores() == {mine[0], 1000, 1001, 1002}
    assert allowed_cores(group) == {mine[0]}
    assert allowed_cores(make_group(tmp_path, "0::/a\n", {"a/cpuset.cpus.effective": "1000"})) == set(mine)


def test_kills_for_memory_are_counted(tmp_path: Path) -> None:
    group = make_group(tmp_path, "0::/a\n", {"a/memory.events": "low 0\noom 3\noom_kill 2"})
    assert group.oom_kills() == 2
    (tmp_path / "vmstat").write_text("pgfault 7\noom_kill 5\n")
    assert group.oom_kills() == 7  # only whether it rises matters
    old = make_group(tmp_path, "4:memory:/b\n", {"memory/b/memory.oom_control": "oom_kill_disable 0\noom_kill 1"})
    assert old.oom_kills() == 6
