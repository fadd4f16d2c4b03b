"""A pool of worker processes that are warm, isolated from each other, and recycled. Nothing here knows tvm.

MetaSchedule's own pool is restarted at every batch and pays for the import of tvm each time. If it is kept instead,
its processes grow; and when its owner is killed, they stay behind and hold the terminal.

Here a worker imports its target once. If it crashes, hangs or takes too much memory, only the payload that it was
serving is lost. No process outlives its owner (see `chameleon.workers.child`). Scripts need no `__main__` guard, since
a worker never imports the user's main module.
"""

from __future__ import annotations

import logging
import pickle
import selectors
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from chameleon.workers import fork_server
from chameleon.workers.faults import EnvironmentFault, cause_of, last_line
from chameleon.workers.handle import Outcome, PoolConfig, Worker

__all__ = ["Outcome", "PoolConfig", "WorkerPool", "WorkerStartError"]

_START_ATTEMPTS = 2
_KILLED_RETRIES = 2
"""So many times a payload is tried again whose worker was killed by somebody else."""


logger = logging.getLogger(__name__)


class WorkerStartError(EnvironmentFault):
    """A worker could not be started. The cause is the installation, not a payload."""


class WorkerPool:
    """Has warm workers serve payloads; runs at most one `map` at a time.

    Workers start when they are first needed, or earlier with `start`. Use the pool as a context manager, or call
    `close`. The workers also end when the pool is dropped or its owner dies.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self._slots: list[Worker | None] = [None] * config.n_workers
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._finalizer = weakref.finalize(self, _stop_all, self._slots)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the imports, without waiting: they run beside whatever the owner does next."""
        if self.config.forked and fork_server.prepare(self.config.target, self.config.without):
            return
        with self._lock:
            self._slots[:] = [worker or _hire(self.config) for worker in self._slots]

    def close(self) -> None:
        """Stop every worker and wait for its end.

        A `map` that runs in another thread ends. A later `map` starts new workers.
        """
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
        """Serve the payloads and return their outcomes, in the same order.

        Args:
            payloads: picklable values, each handed to the target function in some worker.
            timeout_s: time limit for one payload, in seconds, instead of the configured one.

        Raises:
            WorkerStartError: if a worker cannot be started.
        """
        with self._lock:
            batch = _Batch(self.config, self._slots, payloads, timeout_s or self.config.timeout_s, self._closing)
            try:
                return batch.run()
            except BaseException:  # Ctrl-C as well: nobody waits any more for what is still being served
                _stop_all(self._slots)
                raise


def _hire(config: PoolConfig) -> Worker:
    """Start a worker.

    Raises:
        WorkerStartError: if its process or its files cannot be made, or its imports take too long.
    """
    try:
        return Worker(config)
    except TimeoutError as error:
        raise _too_late(config) from error
    except OSError as error:
        raise WorkerStartError(f"a worker cannot be started: {cause_of(error) or error}") from error


def _too_late(config: PoolConfig) -> WorkerStartError:
    return WorkerStartError(f"a worker for {config.target} did not start in {config.start_timeout_s:g} s")


def _stop_all(slots: list[Worker | None]) -> None:
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
        slots: list[Worker | None],
        payloads: Sequence[Any],
        timeout_s: float,
        closing: threading.Event,
    ) -> None:
        self._config, self._slots, self._timeout_s, self._closing = config, slots, timeout_s, closing
        self._payloads = payloads
        self._outcomes: list[Outcome | None] = [None] * len(payloads)
        self._waiting = deque(range(len(payloads)))
        self._retries: Counter[int] = Counter()
        self._failed_starts = 0

    def run(self) -> list[Outcome]:
        """Serve until every payload has its outcome."""
        while any(outcome is None for outcome in self._outcomes):
            if self._closing.is_set():
                return [
                    outcome or Outcome("error", message="error: the pool was closed") for outcome in self._outcomes
                ]
            for slot in range(len(self._slots)):
                self._employ(slot)
            self._wait()
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _employ(self, slot: int) -> None:
        """While there is work, give the slot a worker if it has none, or else give its worker a payload."""
        worker = self._slots[slot]
        if not self._waiting:
            return
        if worker is not None and worker.task is None and (worker.is_dead() or self._is_worn(worker)):
            self._dismiss(slot)
            worker = None
        if worker is None:
            self._slots[slot] = _hire(self._config)
        elif worker.ready and worker.task is None:
            index = self._waiting.popleft()
            try:
                body = pickle.dumps(self._payloads[index], protocol=pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                self._outcomes[index] = Outcome("error", message=f"error: the payload cannot be sent: {error}")
                return
            worker.assign(index, body, self._timeout_s)

    def _is_worn(self, worker: Worker) -> bool:
        limit = self._config.memory_limit_bytes
        grown = limit is not None and worker.served > 0 and worker.resident_bytes > limit // 2
        return worker.served >= self._config.recycle_after or grown

    def _wait(self) -> None:
        """Sleep until a worker sends something, can be written to, or has used up its time; then act on it."""
        active = [
            (slot, w) for slot, w in enumerate(self._slots) if w is not None and (w.task is not None or not w.ready)
        ]
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
                logger.debug("a worker could not load %s:\n%s", self._config.target, value)
                raise WorkerStartError(
                    f"a worker could not load {self._config.target}: {last_line(value)}; `chameleon doctor` checks "
                    "the installation"
                )
            elif worker.task is not None:
                message = "" if kind == "ok" else f"{kind}: {value}"
                self._settle(worker, Outcome(kind, value if kind == "ok" else None, message))

    def _settle(self, worker: Worker, outcome: Outcome) -> None:
        if worker.task is None:
            return
        wall_s = time.monotonic() - worker.sent_s
        self._outcomes[worker.task] = Outcome(outcome.reason, outcome.value, outcome.message, wall_s)
        worker.finish()

    def _ended(self, slot: int, worker: Worker) -> None:
        """Act on the end of a worker's process: settle its payload, or put it back into the queue."""
        if self._closing.is_set():
            return
        outcome = worker.autopsy(self._config.memory_limit_bytes)
        if not worker.ready:
            self._dismiss(slot)
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS:
                raise WorkerStartError(f"a worker for {self._config.target} ended while it started: {outcome.message}")
            return
        task = worker.task
        if task is not None and self._tries_again(task, worker, outcome):
            self._retries[task] += 1
            self._waiting.appendleft(task)
        else:
            self._settle(worker, outcome)
        self._dismiss(slot)

    def _tries_again(self, task: int, worker: Worker, outcome: Outcome) -> bool:
        """Whether a payload may not be to blame for a crash.

        An earlier payload may have damaged the worker. And a SIGKILL that neither we nor a lack of memory explains
        came from somebody else; only a payload that ends so again and again is its own cause.
        """
        if not self._config.retry_crash or outcome.reason != "crash":
            return False
        if worker.was_killed:
            return self._retries[task] < _KILLED_RETRIES
        return worker.served > 0 and not self._retries[task]

    def _out_of_time(self, slot: int, worker: Worker) -> None:
        self._settle(worker, Outcome("timeout", message=f"timeout: killed after {self._timeout_s:g} s"))
        starting = not worker.ready
        self._dismiss(slot)
        if starting:
            raise _too_late(self._config)

    def _dismiss(self, slot: int) -> None:
        worker, self._slots[slot] = self._slots[slot], None
        if worker is not None:
            worker.hang_up()
            worker.wait()
