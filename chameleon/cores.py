"""Which cores this process may use. Knows nothing of tvm."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def allowed_cores() -> frozenset[int]:
    """The cores that any thread of this process may run on: fewer than the machine's in containers and under taskset.

    Not only the calling thread's: TVM binds the thread that runs a first kernel to one core, and who asks, or is
    started, after that would take this one for the whole machine.
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
