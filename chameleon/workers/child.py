"""The process side of a warm worker: a supervisor and, below it, the worker proper.

The supervisor is a few lines of Python that never runs foreign code, so it can always act. It ends the worker in
three cases: the owner asks for it; the owner is gone, in whichever way (SIGKILL included); the worker takes more
memory than it may. It then also ends everything that the worker started (compilers, linkers). The worker imports the
target function once and then answers requests. A request is a pickled payload with its length in front.

This works on POSIX systems only. On Linux the kernel does two more things. It kills the worker if the supervisor
itself is killed. And it makes the supervisor the parent of orphaned grandchildren, so nothing is left behind even
where process 1 does not reap its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from chameleon.cgroups import Cgroups
from chameleon.workers.faults import ENVIRONMENT, cause_of

HEADER = struct.Struct("<Q")  # length of the pickle that follows, bytes
EXIT_OUT_OF_MEMORY = 113  # the supervisor's exit status after it killed a worker over its memory limit
EXIT_KERNEL_OUT_OF_MEMORY = 114  # the kernel killed the worker because memory ran out
EXIT_MACHINE_OUT_OF_MEMORY = 115  # the same, while the worker took less than half of what it may
POLL_S = 0.05
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(settings_json: str) -> None:
    """Entry point of the process: `run`, with the settings as a JSON object."""
    run(json.loads(settings_json))


def run(settings: dict[str, Any]) -> None:
    """Become a supervisor with its worker; never returns.

    Args:
        settings: `owner_pid`, `lifeline_fd`, `memory_limit_bytes` (or None), `target` (`module:function`), `factory`
            (whether the target makes the function), `without` (modules that are hidden while the target is imported)
            and `cores` (to run on).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash of a candidate writes no core file
    if hasattr(os, "sched_setaffinity"):  # the thread that started us may be bound to one core
        os.sched_setaffinity(0, settings["cores"])
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor_pid = os.getpid()
    worker_pid = os.fork()
    if worker_pid == 0:
        os.close(settings["lifeline_fd"])
        os.setpgid(0, 0)  # a process group of its own, which can be ended as a whole
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor_pid:
            os._exit(1)
        _work(settings["target"], settings["factory"], settings["without"])
        os._exit(0)
    with contextlib.suppress(OSError):
        os.setpgid(worker_pid, worker_pid)  # both sides set the group, so neither ever sees the worker without it
    for fd in (0, 1):  # only the worker holds the pipes, so the owner sees an end of file as soon as the worker ends
        os.close(fd)
    _supervise(worker_pid, settings)


def _prctl(option: int, value: int) -> None:
    """Calls Linux's prctl. Elsewhere it does nothing: there the lifeline alone tells that the owner is gone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def _supervise(worker_pid: int, settings: dict[str, Any]) -> None:
    """Watch the worker until it ends or must be ended; then end in the same way as the worker."""
    limit = settings["memory_limit_bytes"]
    status = None
    verdict = None
    largest = 0
    kills_before = Cgroups().oom_kills()
    while status is None and verdict is None:
        ready, _, _ = select.select([settings["lifeline_fd"]], [], [], POLL_S)
        done, raw = os.waitpid(worker_pid, os.WNOHANG)
        if done:
            status = raw
        elif ready or os.getppid() != settings["owner_pid"]:
            verdict = 0
        else:
            largest = max(largest, resident_bytes(worker_pid))
            if limit is not None and largest > limit:
                verdict = EXIT_OUT_OF_MEMORY
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker_pid, signal.SIGKILL)
    _reap_all(deadline_s=time.monotonic() + 2.0)
    if verdict is not None or status is None:
        os._exit(verdict or 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and _ran_out_of_memory(kills_before):
        small = limit is not None and largest < limit // 2
        os._exit(EXIT_MACHINE_OUT_OF_MEMORY if small else EXIT_KERNEL_OUT_OF_MEMORY)
    if os.WIFSIGNALED(status):
        _die_of(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _ran_out_of_memory(kills_before: int | None) -> bool:
    """Whether memory is why the kernel killed the worker, which nobody here did.

    Where the kernel does not count such kills, memory is the likeliest cause of a SIGKILL.
    """
    kills = Cgroups().oom_kills()
    return kills is None or kills_before is None or kills > kills_before


def _reap_all(deadline_s: float) -> None:
    """Wait for the worker and for the orphaned processes whose parent we have become."""
    while time.monotonic() < deadline_s:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.002)
        except ChildProcessError:
            return


def _die_of(signum: int) -> None:
    """End by the same signal as the worker, so that our exit status tells the owner what happened to it."""
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)


def resident_bytes(pid: int | str = "self") -> int:
    """Physical memory of a process, in bytes; 0 where it cannot be read."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return _resident_bytes_portable(pid)


def _resident_bytes_portable(pid: int | str) -> int:
    import psutil  # only where there is no /proc

    try:
        return psutil.Process(os.getpid() if pid == "self" else int(pid)).memory_info().rss
    except psutil.Error:
        return 0


def _work(target: str, factory: bool, without: list[str]) -> None:
    """Answer requests until end of file. What a candidate prints does not reach our pipes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hidden(without):
            function = resolve(target)
        if factory:
            function = function()
    except BaseException:
        _send(replies, ("start_error", traceback.format_exc(), 0))
        return
    _send(replies, ("ready", None, resident_bytes()))
    while True:
        header = requests.read(HEADER.size)
        if len(header) < HEADER.size:
            return
        body = requests.read(HEADER.unpack(header)[0])
        _send(replies, _answer(function, body))


@contextlib.contextmanager
def hidden(modules: list[str]) -> Iterator[None]:
    """Inside the block, an import of any of `modules` raises ImportError.

    It is meant for optional dependencies of a library that are slow to load.
    """
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _answer(function: Callable[[Any], Any], body: bytes) -> tuple[str, Any, int]:
    """Run one request; whatever it raises becomes the answer."""
    try:
        return "ok", function(pickle.loads(body)), resident_bytes()
    except MemoryError:
        return "out-of-memory", traceback.format_exc(), resident_bytes()
    except BaseException as error:
        if cause := cause_of(error):
            return ENVIRONMENT, cause, resident_bytes()
        return "error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}", resident_bytes()


def _send(stream: Any, message: tuple[str, Any, int]) -> None:
    try:
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        body = pickle.dumps(("error", f"the result cannot be sent back: {error}", message[2]))
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


def resolve(path: str) -> Callable[..., Any]:
    """The function named `module:function`.

    Raises:
        ValueError: if the text does not have that form.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"a worker's function is given as 'module:function', got {path!r}")
    return getattr(importlib.import_module(module), name)
