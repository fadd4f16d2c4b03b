"""Says which cores this process may use. It does not import tvm."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def allowed_cores() -> frozenset[int]:
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
    return frozenset(cores)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(allowed_cores())
