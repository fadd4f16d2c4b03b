"""A pool of warm, isolated, recycled worker processes. Knows nothing of tvm.

MetaSchedule's own pool is restarted at every batch and pays the import of tvm each time; one that is kept grows and, when
its owner is killed, stays behind and holds the terminal. Here a worker imports its target once, a crash, a hang or
excessive memory costs the one payload it was serving, and no process outlives its owner (see `worker_child`).
Scripts need no `__main__` guard: a worker never imports the user's main module.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chameleon.deploy.worker_child import EXIT_OUT_OF_MEMORY, HEADER

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from chameleon.deploy.worker_child import main; main(sys.argv[1])"
)
_START_ATTEMPTS = 2
_STDERR_TAIL_BYTES = 2000
_MEMORY_WORDS = ("bad_alloc", "out of memory", "Cannot allocate memory", "MemoryError")


@dataclass(frozen=True)
class Outcome:
    """What came of one payload.

    Attributes:
        reason: `ok`, `error` (the function raised), `timeout`, `crash` or `out-of-memory`.
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
        """Whether there is a value."""
        return self.reason == "ok"


class WorkerStartError(RuntimeError):
    """A worker could not be started: the installation is at fault, not a payload."""


@dataclass(frozen=True)
class PoolConfig:
    """How a pool's workers are started and limited."""

    target: str  # module:function, called with each payload inside the worker
    n_workers: int = 1
    timeout_s: float = 30.0  # for one payload
    start_timeout_s: float = 180.0  # for the import of the target's module
    memory_limit_bytes: int | None = None  # resident memory of one worker
    recycle_after: int = 200  # payloads, after which a worker is replaced by a fresh one
    factory: bool = False  # the target is called once, without arguments, and what it returns serves the payloads
    environment: dict[str, str] = field(default_factory=dict)  # added to the worker's environment
    retry_crash: bool = True  # a crash in a worker that had served others is tried once more in a fresh one

    def __post_init__(self) -> None:
        for name in ("n_workers", "timeout_s", "start_timeout_s", "recycle_after"):
            if not getattr(self, name) > 0:
                raise ValueError(f"PoolConfig.{name} must be positive, got {getattr(self, name)!r}")


class WorkerPool:
    """Maps payloads over warm workers, at most one map at a time.

    Workers start when first needed. Use as a context manager, or call `close`; a pool that is dropped or whose owner
    dies takes its workers along.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self._slots: list[_Worker | None] = [None] * config.n_workers
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._finalizer = weakref.finalize(self, _stop_all, self._slots)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every worker and wait for its end. A later `map` starts new ones; one that runs in another thread ends."""
        self._closing.set()
        for worker in list(self._slots):
            if worker is not None:
                worker.hang_up()
        with self._lock:
            _stop_all(self._slots)
            self._closing.clear()

    def pids(self) -> list[int]:
        """Process ids of the workers' supervisors; the workers are their children."""
        return [worker.process.pid for worker in self._slots if worker is not None]

    def map(self, payloads: Sequence[Any], timeout_s: float | None = None) -> list[Outcome]:
        """Outcomes of the payloads, in their order.

        Args:
            payloads: picklable values, each handed to the target function in some worker.
            timeout_s: overrides the configured time for one payload.

        Raises:
            WorkerStartError: if a worker cannot be started.
        """
        with self._lock:
            batch = _Batch(self.config, self._slots, payloads, timeout_s or self.config.timeout_s, self._closing)
            try:
                return batch.run()
            except BaseException:  # Ctrl-C as well: what is still being served has no one to wait for it
                _stop_all(self._slots)
                raise


def _stop_all(slots: list[_Worker | None]) -> None:
    workers = [worker for worker in slots if worker is not None]
    slots[:] = [None] * len(slots)
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.wait()


class _Batch:
    """The event loop of one `map`: every worker is starting, idle or serving one payload."""

    def __init__(
        self,
        config: PoolConfig,
        slots: list[_Worker | None],
        payloads: Sequence[Any],
        timeout_s: float,
        closing: threading.Event,
    ) -> None:
        self._config, self._slots, self._timeout_s, self._closing = config, slots, timeout_s, closing
        self._payloads = payloads
        self._outcomes: list[Outcome | None] = [None] * len(payloads)
        self._waiting = deque(range(len(payloads)))
        self._retried: set[int] = set()
        self._failed_starts = 0

    def run(self) -> list[Outcome]:
        """Serve until each payload has its outcome."""
        while any(outcome is None for outcome in self._outcomes):
            if self._closing.is_set():
                return [outcome or Outcome("error", message="error: the pool was closed") for outcome in self._outcomes]
            for slot in range(len(self._slots)):
                self._employ(slot)
            self._wait()
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _employ(self, slot: int) -> None:
        """Give the slot a worker and the worker a payload, as far as there is work."""
        worker = self._slots[slot]
        if not self._waiting:
            return
        if worker is not None and worker.task is None and (worker.is_dead() or self._is_worn(worker)):
            self._dismiss(slot)
            worker = None
        if worker is None:
            self._slots[slot] = _Worker(self._config)
        elif worker.ready and worker.task is None:
            index = self._waiting.popleft()
            try:
                body = pickle.dumps(self._payloads[index], protocol=pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                self._outcomes[index] = Outcome("error", message=f"error: the payload cannot be sent: {error}")
                return
            worker.assign(index, body, self._timeout_s)

    def _is_worn(self, worker: _Worker) -> bool:
        limit = self._config.memory_limit_bytes
        grown = limit is not None and worker.served > 0 and worker.resident_bytes > limit // 2
        return worker.served >= self._config.recycle_after or grown

    def _wait(self) -> None:
        """Sleep until a worker speaks, can be written to, or has used up its time; then act on it."""
        active = [(slot, w) for slot, w in enumerate(self._slots) if w is not None and (w.task is not None or not w.ready)]
        if not active:
            return
        with selectors.DefaultSelector() as selector:
            for slot, worker in active:
                selector.register(worker.reply_fd, selectors.EVENT_READ, slot)
                if worker.outbox:
                    selector.register(worker.request_fd, selectors.EVENT_WRITE, slot)
            until_s = min(worker.deadline_s for _, worker in active)
            for key, event in selector.select(max(0.0, until_s - time.monotonic())):
                if event & selectors.EVENT_READ:
                    self._hear(key.data)
                elif (worker := self._slots[key.data]) is not None:
                    worker.pump()
        for slot, worker in active:
            if self._slots[slot] is worker and time.monotonic() >= worker.deadline_s:
                self._out_of_time(slot, worker)

    def _hear(self, slot: int) -> None:
        worker = self._slots[slot]
        if worker is None:
            return
        if not worker.receive():
            self._ended(slot, worker)
            return
        for kind, value, resident in worker.messages():
            worker.resident_bytes = resident
            if kind == "ready":
                worker.ready, worker.deadline_s = True, float("inf")
            elif kind == "start_error":
                self._dismiss(slot)
                raise WorkerStartError(f"a worker could not load {self._config.target}:\n{value}")
            elif worker.task is not None:
                message = "" if kind == "ok" else f"{kind}: {value}"
                self._settle(worker, Outcome(kind, value if kind == "ok" else None, message))

    def _settle(self, worker: _Worker, outcome: Outcome) -> None:
        if worker.task is None:
            return
        wall_s = time.monotonic() - worker.sent_s
        self._outcomes[worker.task] = Outcome(outcome.reason, outcome.value, outcome.message, wall_s)
        worker.finish()

    def _ended(self, slot: int, worker: _Worker) -> None:
        """The worker's process is gone."""
        if self._closing.is_set():
            return
        outcome = worker.autopsy(self._config.memory_limit_bytes)
        if not worker.ready:
            self._dismiss(slot)
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS:
                raise WorkerStartError(f"a worker for {self._config.target} ended while it started: {outcome.message}")
            return
        task, fresh = worker.task, worker.served == 0
        if (
            task is not None
            and self._config.retry_crash
            and not fresh
            and outcome.reason == "crash"
            and task not in self._retried
        ):
            self._retried.add(task)  # an earlier payload may have damaged the worker
            self._waiting.appendleft(task)
        else:
            self._settle(worker, outcome)
        self._dismiss(slot)

    def _out_of_time(self, slot: int, worker: _Worker) -> None:
        self._settle(worker, Outcome("timeout", message=f"timeout: killed after {self._timeout_s:g} s"))
        starting = not worker.ready
        self._dismiss(slot)
        if starting:
            raise WorkerStartError(f"a worker for {self._config.target} did not start in {self._config.start_timeout_s:g} s")

    def _dismiss(self, slot: int) -> None:
        worker, self._slots[slot] = self._slots[slot], None
        if worker is not None:
            worker.hang_up()
            worker.wait()


class _Worker:
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
        """Whether the process has ended, for instance killed while idle."""
        return self.process.poll() is not None

    def assign(self, task: int, body: bytes, timeout_s: float) -> None:
        """Start sending a payload; its clock starts."""
        self._stderr.truncate(0)
        self.task, self.sent_s = task, time.monotonic()
        self.deadline_s = self.sent_s + timeout_s
        self.outbox = memoryview(HEADER.pack(len(body)) + body)
        self.pump()

    def pump(self) -> None:
        """Send as much as the pipe takes; a dead worker is noticed on its other pipe."""
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.request_fd, self.outbox) :]
        except BlockingIOError:
            return
        except OSError:
            self.outbox = memoryview(b"")

    def receive(self) -> bool:
        """Read what there is; False at the end of the process."""
        try:
            data = os.read(self.reply_fd, 1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._inbox += data
        return bool(data)

    def messages(self) -> list[tuple[str, Any, int]]:
        """Complete messages received so far."""
        found = []
        while len(self._inbox) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._inbox)[0]
            if len(self._inbox) < end:
                break
            found.append(pickle.loads(self._inbox[HEADER.size : end]))
            del self._inbox[:end]
        return found

    def finish(self) -> None:
        """The payload has its outcome."""
        self.task, self.deadline_s = None, float("inf")
        self.served += 1

    def autopsy(self, memory_limit_bytes: int | None) -> Outcome:
        """Why the process ended."""
        code = self.wait()
        tail = self._stderr_tail()
        if code == EXIT_OUT_OF_MEMORY:
            limit = f"{(memory_limit_bytes or 0) / 2**20:.0f} MiB"
            return Outcome("out-of-memory", message=f"out-of-memory: killed when it took more than {limit}")
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
        """Tell the supervisor to end the worker and all it started."""
        lifeline_fd, self._lifeline_fd = self._lifeline_fd, None
        if lifeline_fd is not None:
            os.close(lifeline_fd)

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code, negative for a signal."""
        try:
            code = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:  # the supervisor itself was stopped
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
    """Start the process; returns it and our end of its lifeline."""
    theirs, ours = os.pipe()
    settings = {
        "owner_pid": os.getpid(),
        "lifeline_fd": theirs,
        "memory_limit_bytes": config.memory_limit_bytes,
        "target": config.target,
        "factory": config.factory,
    }
    path = [os.path.abspath(entry) for entry in sys.path]
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(settings), json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr_fd,
            pass_fds=(theirs,),
            start_new_session=True,  # Ctrl-C is the owner's alone
            env={**os.environ, **config.environment},
            bufsize=0,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours
