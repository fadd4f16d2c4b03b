"""One process for each owner that imports what the owner's workers need, once, and forks the workers.

The import of TVM takes seconds. A forked worker has it at once, and shares the memory of it with the others. The
server runs no payload and has a single thread, so a fork is safe. With more than one thread it does not fork: then the
worker starts as a process of its own, as it does where there is no Linux.

The server forks with Linux's `CLONE_PARENT`, so the owner is the parent of every worker, as if it had started the
worker itself: it waits for it, sees its exit status, and loses nothing if the server ends. This is why `forkserver` of
the standard library's `multiprocessing` is not used. Its children are not the owner's; it lives on with any process
that holds a copy of the owner's pipes, with the owner's output open; and it starts a third process, the tracker.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import platform
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from chameleon.workers.child import hidden, run

_CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220}  # of the system call, by machine
_CLONE_PARENT = 0x8000
_POLL_S = 0.5
_MESSAGE_BYTES = 1 << 18  # of a request: settings and environment
_N_FDS = 5
# What is read while modules are imported, by the beginnings of the names: a server with other values is of no use.
_IMPORT_VARIABLES = (
    "CUDA_",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
    "PATH",
    "PYTHON",
    "TEMP",
    "TMP",
    "TVM_",
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # NumPy starts its threads when it is imported


def command(module: str, settings: dict[str, Any]) -> list[str]:
    """The command line of a process that calls `main` of a module, with the owner's path of modules."""
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv[2]); from {module} import main; main(sys.argv[1])"
    path = [os.path.abspath(entry) for entry in sys.path]
    return [sys.executable, "-c", code, json.dumps(settings), json.dumps(path)]


class Forked:
    """A child process that somebody else forked for us; the part of `subprocess.Popen` that a worker needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative if a signal ended the process; None while it runs."""
        if self.returncode is None:
            try:
                done, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else in this program waits for all children
                done, status = self.pid, 0
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: if it has not come after `timeout` seconds.
        """
        end_s = time.monotonic() + (float("inf") if timeout is None else timeout)
        pause_s = 0.0005
        while (code := self.poll()) is None:
            if time.monotonic() >= end_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)
        return code

    def kill(self) -> None:
        """End it now."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


# --- in the owner ---


class _Server:
    """The owner's handle of its server."""

    def __init__(self, key: Any, target: str, without: Sequence[str]) -> None:
        self.key = key
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            settings = {
                "owner_pid": os.getpid(),
                "socket_fd": theirs.fileno(),
                "target": target,
                "without": list(without),
            }
            self.process = subprocess.Popen(
                command(__name__, settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={**os.environ, **_ONE_THREAD},
            )

    def fork(self, request: dict[str, Any], fds: Sequence[int], timeout_s: float) -> int:
        """The id of a new worker's supervisor; 0 if the server must not or cannot fork.

        Raises:
            TimeoutError: if there is no answer in time.
            OSError: if the server is gone.
        """
        self._socket.settimeout(timeout_s)
        cwd_fd = os.open(".", os.O_RDONLY)
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*fds, cwd_fd])
        finally:
            os.close(cwd_fd)
        answer = self._socket.recv(64)
        if not answer:
            raise ConnectionResetError("the fork server ended")
        return int(answer)

    def hang_up(self) -> None:
        """Close our end."""
        self._socket.close()

    def close(self) -> None:
        """End the server; its workers live on."""
        self.hang_up()
        self.process.kill()
        self.process.wait()


class _Registry:
    """This process's server, or none."""

    server: _Server | None = None
    lock = threading.Lock()


_registry = _Registry()


def prepare(target: str, without: Sequence[str]) -> bool:
    """Have a server import the module of `target`, without waiting; returns whether there is a server."""
    if not _possible():
        return False
    with _registry.lock:
        try:
            _current(target, without)
        except OSError:
            return False
    return True


def fork(settings: dict[str, Any], environment: dict[str, str], fds: Sequence[int], timeout_s: float) -> Forked | None:
    """A new worker; None where it has to be started in another way.

    Args:
        settings: as for `chameleon.workers.child.run`.
        environment: all variables of the worker.
        fds: what the worker reads from, writes to, its error output, and its end of the lifeline.
        timeout_s: how long the import may take, in seconds.

    Raises:
        TimeoutError: if it takes longer.
    """
    if not _possible():
        return None
    with _registry.lock:
        try:
            server = _current(settings["target"], settings["without"])
            pid = server.fork({"settings": settings, "environment": environment}, fds, timeout_s)
        except BaseException as error:  # Ctrl-C as well: its answer would be taken for that of the next request
            _end()
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                return None
            raise
    return Forked(pid) if pid > 0 else None


def _possible() -> bool:
    return sys.platform == "linux" and platform.machine() in _CLONE_NUMBERS


def _current(target: str, without: Sequence[str]) -> _Server:
    """The server that fits what this process's own environment is now; there is at most one."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith(_IMPORT_VARIABLES))
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    key = (sys.executable, list(sys.path), list(without), variables, limits)
    if _registry.server is not None and (_registry.server.key != key or _registry.server.process.poll() is not None):
        _end()
    if _registry.server is None:
        _registry.server = _Server(key, target, without)
    return _registry.server


def _end() -> None:
    server, _registry.server = _registry.server, None
    if server is not None:
        server.close()


def _forget() -> None:
    """In a fork of the owner, which is not the parent of what the server forks."""
    server, _registry.server, _registry.lock = _registry.server, None, threading.Lock()
    if server is not None:
        server.hang_up()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)


# --- in the server ---


def main(settings_json: str) -> None:
    """Entry point of the server: fork one worker for each request, until the owner is gone."""
    settings = json.loads(settings_json)
    os.chdir("/")
    requests = socket.socket(fileno=settings["socket_fd"])
    _import(settings["target"], settings["without"])
    while os.getppid() == settings["owner_pid"]:
        if not select.select([requests], [], [], _POLL_S)[0]:
            continue
        message, fds, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES, _N_FDS)
        if not message:
            return
        request = json.loads(message)
        _import(request["settings"]["target"], settings["without"])
        pid = _fork_for_owner()
        if pid == 0:
            requests.close()
            _become_worker(request, fds)
        for fd in fds:
            os.close(fd)
        requests.send(str(pid).encode())


def _import(target: str, without: list[str]) -> None:
    """Import the target's module. If that fails, it does so again in the worker, which can say why."""
    with contextlib.suppress(BaseException), hidden(without):
        importlib.import_module(target.partition(":")[0])


def _fork_for_owner() -> int:
    """As `os.fork`, but the owner is the parent; -1 if there is no new process.

    The C library is not told of the fork. The new process has one thread and forks the worker in the usual way.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        return -1
    flags = _CLONE_PARENT | signal.SIGCHLD
    return ctypes.PyDLL(None).syscall(ctypes.c_long(_CLONE_NUMBERS[platform.machine()]), flags, 0, 0, 0, 0)


def _become_worker(request: dict[str, Any], fds: list[int]) -> None:
    """Be as a process that the owner has started now: its folder, variables and files."""
    *standard, lifeline_fd, cwd_fd = fds
    os.setsid()
    os.fchdir(cwd_fd)
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    for fd in (*standard, cwd_fd):
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["environment"])
    run({**request["settings"], "lifeline_fd": lifeline_fd})
