"""The owner's handle of one worker process; also the settings of a pool and the outcomes that it gives."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

from chameleon.cores import allowed_cores
from chameleon.workers import fork_server
from chameleon.workers.child import (
    EXIT_KERNEL_OUT_OF_MEMORY,
    EXIT_MACHINE_OUT_OF_MEMORY,
    EXIT_OUT_OF_MEMORY,
    HEADER,
)
from chameleon.workers.faults import ENVIRONMENT, cause_in

_STDERR_TAIL_BYTES = 2000
_MACHINE_OUT_OF_MEMORY = (
    "the kernel killed a worker because memory ran out, while the worker took less than half of what it may; "
    "end other programs, or give this container more memory"
)
_MEMORY_WORDS = ("bad_alloc", "out of memory", "Cannot allocate memory", "MemoryError")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one payload.

    Attributes:
        reason: `ok`, `error` (the function raised), `timeout`, `crash`, `out-of-memory`, or `environment` (no payload
            would have succeeded: see `chameleon.workers.faults`).
        value: what the function returned, when `reason` is `ok`.
        message: why it failed, beginning with the reason; empty when ok.
        wall_s: seconds from sending the payload to its outcome.
    """

    reason: str
    value: Any = None
    message: str = ""
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the payload succeeded, so that there is a value."""
        return self.reason == "ok"


@dataclass(frozen=True)
class PoolConfig:
    """How a pool's workers are started and limited."""

    target: str  # module:function, called with each payload inside the worker
    n_workers: int = 1
    timeout_s: float = 30.0  # for one payload
    start_timeout_s: float = 180.0  # for the import of the target's module
    memory_limit_bytes: int | None = None  # resident memory of one worker
    recycle_after: int = 200  # number of payloads after which a fresh worker replaces the old one
    forked: bool = False  # fork workers from one process that has imported the target's module once (on Linux)
    factory: bool = False  # call the target once, without arguments; the function that it returns serves the payloads
    environment: dict[str, str] = field(default_factory=dict)  # added to the worker's environment
    # modules that seem not to exist while the target is imported; a payload may import them later
    without: tuple[str, ...] = ()
    # try a payload once more, in a fresh worker, if it crashed a worker that had served other payloads before
    retry_crash: bool = True

    def __post_init__(self) -> None:
        for name in ("n_workers", "timeout_s", "start_timeout_s", "recycle_after"):
            if not getattr(self, name) > 0:
                raise ValueError(f"PoolConfig.{name} must be positive, got {getattr(self, name)!r}")


class Worker:
    """The owner's handle of one worker process."""

    def __init__(self, config: PoolConfig) -> None:
        self.ready = False
        self.task: int | None = None
        self.served = 0
        self.resident_bytes = 0
        self.sent_s = 0.0
        self.outbox = memoryview(b"")
        self.deadline_s = time.monotonic() + config.start_timeout_s
        self._inbox = bytearray()
        self._stderr = _scratch()
        self.process, self._requests, self._replies, self._lifeline = _start(config, self._stderr.fileno())
        self.request_fd, self.reply_fd = self._requests.fileno(), self._replies.fileno()
        os.set_blocking(self.request_fd, False)
        os.set_blocking(self.reply_fd, False)

    def is_dead(self) -> bool:
        """Whether the process has ended, for instance because it was killed while idle."""
        return self.process.poll() is not None

    def assign(self, task: int, body: bytes, timeout_s: float) -> None:
        """Start to send a payload; from now on its time limit runs."""
        self._stderr.truncate(0)
        self.task, self.sent_s = task, time.monotonic()
        self.deadline_s = self.sent_s + timeout_s
        self.outbox = memoryview(HEADER.pack(len(body)) + body)
        self.pump()

    def pump(self) -> None:
        """Send as much as the pipe takes. If the worker is dead, `receive` will notice."""
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.request_fd, self.outbox) :]
        except BlockingIOError:
            return
        except OSError:
            self.outbox = memoryview(b"")

    def receive(self) -> bool:
        """Read what the worker has sent; returns False if the process has ended."""
        try:
            data = os.read(self.reply_fd, 1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._inbox += data
        return bool(data)

    def messages(self) -> list[tuple[str, Any, int]]:
        """The messages that were received completely; each is returned once."""
        found = []
        while len(self._inbox) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._inbox)[0]
            if len(self._inbox) < end:
                break
            found.append(pickle.loads(self._inbox[HEADER.size : end]))
            del self._inbox[:end]
        return found

    def finish(self) -> None:
        """Note that the payload has its outcome: the worker is idle."""
        self.task, self.deadline_s = None, float("inf")
        self.served += 1

    def autopsy(self, memory_limit_bytes: int | None) -> Outcome:
        """Find out why the process ended."""
        code = self.wait()
        tail = self._stderr_tail()
        if code == EXIT_OUT_OF_MEMORY:
            limit = f"{(memory_limit_bytes or 0) / 2**20:.0f} MiB"
            return Outcome("out-of-memory", message=f"out-of-memory: killed when it took more than {limit}")
        if code == EXIT_KERNEL_OUT_OF_MEMORY:
            return Outcome("out-of-memory", message="out-of-memory: the kernel killed it because memory ran out")
        if code == EXIT_MACHINE_OUT_OF_MEMORY:
            return Outcome(ENVIRONMENT, message=f"{ENVIRONMENT}: {_MACHINE_OUT_OF_MEMORY}")
        if cause := cause_in(tail):
            return Outcome(ENVIRONMENT, message=f"{ENVIRONMENT}: {cause}")
        if any(word in tail for word in _MEMORY_WORDS):
            return Outcome("out-of-memory", message=f"out-of-memory: {tail}")
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else "unknown"
            return Outcome("crash", message=f"crash: signal {-code} ({name}) {tail}".strip())
        return Outcome("crash", message=f"crash: the process ended with exit code {code} {tail}".strip())

    @property
    def was_killed(self) -> bool:
        """Whether a SIGKILL ended the process that no lack of memory explains."""
        return self.process.returncode == -signal.SIGKILL

    def _stderr_tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        return self._stderr.read().decode(errors="replace").strip()

    def hang_up(self) -> None:
        """Tell the supervisor to end the worker and everything that the worker started."""
        self._lifeline.close()

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code, which is negative if a signal ended it."""
        try:
            code = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:  # the supervisor itself does not run, for instance because it was stopped
            self.process.kill()
            code = self.process.wait()
        self._requests.close()
        self._replies.close()
        return code


def _scratch() -> Any:
    """A file for what a worker says: in memory, so that it can say that the disk is full."""
    if not hasattr(os, "memfd_create"):
        return tempfile.TemporaryFile("a+b")
    fd = os.memfd_create("worker-stderr")
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return os.fdopen(fd, "a+b")


def _start(
    config: PoolConfig, stderr_fd: int
) -> tuple[subprocess.Popen[bytes] | fork_server.Forked, FileIO, FileIO, FileIO]:
    """Start the process; returns it and our ends of three pipes.

    They are for requests, for replies, and the lifeline, which is closed when we end.

    Raises:
        TimeoutError: if the import in the fork server takes too long.
        OSError: if there can be no process or no pipe.
    """
    (requests, our_requests), (our_replies, replies), (lifeline, our_lifeline) = _pipe(), _pipe(), _pipe()
    with requests, replies, lifeline:
        settings = {
            "owner_pid": os.getpid(),
            "lifeline_fd": lifeline.fileno(),
            "memory_limit_bytes": config.memory_limit_bytes,
            "target": config.target,
            "factory": config.factory,
            "without": config.without,
            "cores": sorted(allowed_cores()),
        }
        environment = {**os.environ, **config.environment}
        process = None
        if config.forked:
            fds = (requests.fileno(), replies.fileno(), stderr_fd, lifeline.fileno())
            process = fork_server.fork(settings, environment, fds, config.start_timeout_s)
        if process is None:
            process = subprocess.Popen(
                fork_server.command("chameleon.workers.child", settings),
                stdin=requests,
                stdout=replies,
                stderr=stderr_fd,
                pass_fds=(lifeline.fileno(),),
                start_new_session=True,  # Ctrl-C reaches only the owner
                env=environment,
            )
    return process, our_requests, our_replies, our_lifeline


def _pipe() -> tuple[FileIO, FileIO]:
    """Its end to read from and its end to write to."""
    reader, writer = os.pipe()
    return FileIO(reader, "rb"), FileIO(writer, "wb")
