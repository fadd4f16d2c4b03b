"""What Linux's control groups allow this process: cores, memory. Containers and batch systems set limits this way.

Both versions of control groups are read. A limit may be set on the group of this process or on any group above it, so
the smallest one counts. Where there are no control groups, nothing is limited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Cgroups:
    """The control groups of one process.

    Attributes:
        root: where the control groups are mounted.
        membership: the file that says which groups the process is in.
        vmstat: the kernel's counters for the whole machine.
    """

    root: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")
    vmstat: Path = Path("/proc/vmstat")

    def cpu_quota(self) -> float | None:
        """How many cores' worth of time the process may use; None: as many as there are."""
        quotas = [_ratio(words) for words in self._read("cpu", "cpu.max")]
        for folder in self._folders("cpu"):
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            quotas.append(quota / period if quota and quota > 0 and period else None)
        return min((q for q in quotas if q is not None), default=None)

    def cores(self) -> frozenset[int] | None:
        """The cores that the process may run on; None: all."""
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if found := next((words for words in self._read("cpuset", name) if words), None):
                return frozenset(_core_list(found))
        return None

    def memory_limit_bytes(self) -> int | None:
        """How much memory the process and its children may use together, in bytes; None: as much as there is."""
        names = ("memory.max", "memory.limit_in_bytes")
        limits = [int(words) for name in names for words in self._read("memory", name) if words.isdecimal()]
        return min(limits, default=None)

    def oom_kills(self) -> int | None:
        """How many processes the kernel has killed so far because memory ran out; None: it does not say."""
        counts = [
            _count(words, "oom_kill") for name in ("memory.events", "memory.oom_control") for words in self._near(name)
        ]
        with contextlib.suppress(OSError):
            counts.append(_count(self.vmstat.read_text(), "oom_kill"))
        known = [n for n in counts if n is not None]
        return sum(known) if known else None

    def _near(self, name: str) -> list[str]:
        return list(self._read("memory", name))[:1]

    def _read(self, controller: str, name: str) -> Iterator[str]:
        """The content of that file in the process's group and in all groups above it, the nearest first."""
        for folder in self._folders(controller):
            with contextlib.suppress(OSError):
                yield (folder / name).read_text().strip()

    def _folders(self, controller: str) -> Iterator[Path]:
        try:
            lines = self.membership.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, names, path = (*line.split(":", 2), "", "")[:3]
            if names and controller not in names.split(","):
                continue
            for base in self._mounts(names, controller):
                yield from _upwards(base, path)

    def _mounts(self, names: str, controller: str) -> Iterable[Path]:
        """Where the hierarchy of a line of `membership` is mounted. Version 2 has a single one, without names."""
        return (self.root / names, self.root / controller) if names else (self.root, self.root / "unified")


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those of the groups above it.

    Inside a container the path may be that of the host, of which only the mount itself is seen.
    """
    inside = PurePosixPath(path.lstrip("/"))
    steps = [] if ".." in inside.parts else [inside, *inside.parents]
    for step in dict.fromkeys([*steps, PurePosixPath(".")]):
        if (base / step).is_dir():
            yield base / step


def _ratio(words: str) -> float | None:
    """The quota in `cpu.max`: `150000 100000` is one core and a half, `max 100000` is no limit."""
    quota, _, period = words.partition(" ")
    return int(quota) / int(period or 100_000) if quota.isdecimal() else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _count(text: str, name: str) -> int | None:
    """The number beside a name in lines of `name number`."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None


def _core_list(text: str) -> Iterator[int]:
    """The numbers in a list such as `0-3,8`."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
