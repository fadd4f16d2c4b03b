"""Functions that workers under test serve: well-behaved and genuinely misbehaving ones."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

from chameleon.workers.faults import EnvironmentFault

try:
    import sqlite3  # stands for an optional dependency
except ImportError:
    sqlite3 = None


def serve(payload: Any) -> Any:
    """Do what the payload names."""
    action, argument = payload if isinstance(payload, tuple) else (payload, None)
    return ACTIONS[action](argument)


def _hang_in_c(_: Any) -> None:
    ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock: no Python thread of the worker can run


def _take_memory(_: Any) -> None:
    blocks = []
    while True:
        blocks.append(bytearray(8 << 20))
        time.sleep(0.005)


def _print(_: Any) -> int:
    print("x" * 200_000, flush=True)
    os.write(1, b"y" * 200_000)
    return 1


def _read_input(_: Any) -> str:
    with open(0, closefd=False) as file:
        return file.read()


def _die_later(_: Any) -> int:
    threading.Timer(0.2, os.abort).start()
    return 1


def _fail(_: Any) -> None:
    raise ValueError("this one is bad")


def _disk_full(_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full")


def _fault(_: Any) -> None:
    raise EnvironmentFault("no such device; plug it in")


def _memory_error(_: Any) -> bytearray:
    return bytearray(1 << 62)


class Poison:
    """What an earlier payload may do to a worker."""

    spread = False


def _poison(_: Any) -> None:
    Poison.spread = True


def _crash_if_poisoned(_: Any) -> str:
    if Poison.spread:
        os.abort()
    return "fine"


def _grow(n_bytes: int) -> int:
    KEPT.append(b"x" * n_bytes)
    return os.getpid()


KEPT: list[bytes] = []

ACTIONS = {
    "echo": lambda value: value,
    "cores": lambda _: os.sched_getaffinity(0),
    "pid": lambda _: os.getpid(),
    "optional": lambda _: (sqlite3 is not None, importlib.import_module("sqlite3").__name__),
    "sleep": time.sleep,
    "segfault": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "exit": lambda _: os._exit(3),
    "exit_with": os._exit,
    "disk_full": _disk_full,
    "fault": _fault,
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang_in_c,
    "grandchild": lambda seconds: subprocess.run(["sleep", seconds]),
    "take_memory": _take_memory,
    "memory_error": _memory_error,
    "raise": _fail,
    "interrupt": lambda _: (_ for _ in ()).throw(KeyboardInterrupt()),
    "unpicklable": lambda _: threading.Lock(),
    "print": _print,
    "read": _read_input,
    "die_later": _die_later,
    "poison": _poison,
    "crash_if_poisoned": _crash_if_poisoned,
    "grow": _grow,
}


class Counter:
    """A target made once in each worker."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, payload: int) -> int:
        self.calls += 1
        return self.calls


def broken_factory() -> None:
    """A target that cannot be made."""
    raise OSError("no device here")


def dying_factory() -> None:
    """A target whose making ends the process."""
    os.abort()
