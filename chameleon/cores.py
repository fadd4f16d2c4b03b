"""Says which cores and how much memory this process may use. It does not import tvm."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from chameleon.cgroups import Cgroups


def allowed_cores(cgroups: Cgroups | None = None) -> frozenset[int]:
    """The cores that any thread of this process may run on: in containers and under taskset, fewer than there are.

    All threads are asked, not only the calling one. The reason: TVM binds the thread that runs a first kernel to one
    core. Code that runs in this thread afterwards, or in a process started from it, would take this one core for the
    whole machine.
    """
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(range(os.cpu_count() or 1))
    cores = set(os.sched_getaffinity(0))
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with contextlib.suppress(OSError):  # a thread that has just ended
            cores |= os.sched_getaffinity(int(task.name))
    group = (cgroups or Cgroups()).cores()
    return frozenset(cores & group or cores) if group else frozenset(cores)


def usable_cores(cgroups: Cgroups | None = None) -> int:
    """How many cores this process may use at the same time, at least 1.

    A container may be given the time of fewer cores than it may run on (`docker --cpus`). Only whole cores count: a
    kernel with more threads than that is stopped again and again, and its time says nothing.
    """
    quota = (cgroups or Cgroups()).cpu_quota()
    n_cores = len(allowed_cores(cgroups))
    return n_cores if quota is None else max(1, min(n_cores, int(quota)))


def usable_memory_bytes(cgroups: Cgroups | None = None) -> int:
    """The bytes of memory that this process and its children may use together: the machine's, or a container's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = (cgroups or Cgroups()).memory_limit_bytes()
    return machine if limit is None else min(machine, limit)
