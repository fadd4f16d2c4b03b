"""The owner's handle of one worker process; also the settings of a pool and the outcomes that it gives."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

from chameleon.cores import allowed_cores
from chameleon.workers.child import (
    EXIT_KERNEL_OUT_OF_MEMORY,
    EXIT_MACHINE_OUT_OF_MEMORY,
    EXIT_OUT_OF_MEMORY,
    HEADER,
)
from chameleon.workers.faults import ENVIRONMENT, cause_in

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from chameleon.workers.child import main; main(sys.argv[1])"
)
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
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the worker
        self.process, lifeline_fd = _spawn(config, self._stderr.fileno())
        self._lifeline_fd: int | None = lifeline_fd
        self.request_fd, self.reply_fd = _pipe_fd(self.process.stdin), _pipe_fd(self.process.stdout)
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

    def _stderr_tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        return self._stderr.read().decode(errors="replace").strip()

    def hang_up(self) -> None:
        """Tell the supervisor to end the worker and everything that the worker started."""
        lifeline_fd, self._lifeline_fd = self._lifeline_fd, None
        if lifeline_fd is not None:
            os.close(lifeline_fd)

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code, which is negative if a signal ended it."""
        try:
            code = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:  # the supervisor itself does not run, for instance because it was stopped
            self.process.kill()
            code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


def _pipe_fd(pipe: Any) -> int:
    if pipe is None:
        raise RuntimeError("a worker's pipes are missing; it must be started with both of them")
    return pipe.fileno()


def _spawn(config: PoolConfig, stderr_fd: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; returns it and our end of the lifeline, a pipe that is closed when we end."""
    theirs, ours = os.pipe()
    settings = {
        "owner_pid": os.getpid(),
        "lifeline_fd": theirs,
        "memory_limit_bytes": config.memory_limit_bytes,
        "target": config.target,
        "factory": config.factory,
        "without": config.without,
        "cores": sorted(allowed_cores()),
    }
    path = [os.path.abspath(entry) for entry in sys.path]
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(settings), json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr_fd,
            pass_fds=(theirs,),
            start_new_session=True,  # Ctrl-C reaches only the owner
            env={**os.environ, **config.environment},
            bufsize=0,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours
