"""Hands candidates to the devices of a tracker, and decides whose fault it is when a device gives no answer.

The tracker queues, and the devices register themselves again: nothing of that is done here. As many candidates are in
flight as the tracker hands out devices, so a device that comes later is used, and one that is gone is not waited for.

A device that breaks off, hangs or is slow says nothing about the candidate that it had. The candidate is measured
again elsewhere. It is blamed only if that happens again and again (`blame`). A device that fails again and again
rests, longer each time (`Health`).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from chameleon.measure.tracker import (
    RETRY_S,
    Grant,
    Summary,
    Tracker,
    TrackerError,
    give_back,
    next_device,
)
from chameleon.workers.faults import ENVIRONMENT
from chameleon.workers.pool import Outcome, PoolConfig, WorkerPool

CRASH, GONE, TIMEOUT = "crash", "gone", "timeout"
"""What can happen to a candidate on a device besides a result.

The session broke off while the server lives on; the whole device is gone or hangs; the server ended the session for
its length. A fourth is `ENVIRONMENT`: the device lacks something, such as a compiler.
"""

MOST_GONE = 3
"""A candidate that so many devices in a row were gone with is blamed for it."""

ASK_S = 0.25
"""A tracker is asked at most this often how many devices are free, while none was handed out."""

MOST_REST_S = 300.0

logger = logging.getLogger("chameleon")


@dataclass(frozen=True)
class Setback:
    """What happened to a candidate on a device, in place of a result."""

    device: str
    kind: str
    message: str


def blame(setbacks: Sequence[Setback], *, others: bool) -> Setback | None:
    """Whether a candidate itself must be the cause of what happened to it; None: it is measured again.

    A crash, a time-out or something that is missing must have happened twice. The second time is on another device if
    there is one. Where there is none, one time-out is enough: the device itself has said so, so it lives. Devices that
    are gone or hang are seldom a candidate's work: three of them are enough.

    Args:
        setbacks: of the candidate, in order.
        others: whether there are other devices than the last one.

    Returns:
        The setback that is its result.
    """
    told = [setback for setback in setbacks if setback.kind != GONE]
    if len(told) >= 2 or (told and told[-1].kind == TIMEOUT and not others):
        return told[-1]
    if len(setbacks) >= MOST_GONE:
        names = ", ".join(setback.device for setback in setbacks)
        return Setback(setbacks[-1].device, CRASH, f"devices were gone or hung with it: {names}")
    return None


class Health:
    """Which devices are in trouble, and for how long they rest.

    One setback is forgiven: the device is taken back as soon as the tracker has it again. After two in a row it rests
    for 5 s, and twice as long after each further one.

    Args:
        clock_s: seconds that only grow.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._row: Counter[str] = Counter()  # setbacks since the device's last result
        self._until_s: dict[str, float] = {}
        self.total: Counter[str] = Counter()

    def failed(self, setback: Setback) -> None:
        """Count what was the device's own fault."""
        device = setback.device
        self._row[device] += 1
        self.total[device] += 1
        rest_s = min(MOST_REST_S, 5.0 * 2 ** (self._row[device] - 2)) if self._row[device] > 1 else 0.0
        self._until_s[device] = self._clock_s() + rest_s
        then = f"it rests for {rest_s:g} s" if rest_s else "it is used again when it answers"
        logger.warning("the device %s is left out, %s: %s", device, then, setback.message)

    def answered(self, device: str) -> None:
        """The device has given a result."""
        if self._row.pop(device, 0):
            logger.warning("the device %s answers again and is taken back", device)

    def rests(self, device: str) -> bool:
        """Whether the device gets nothing to do for now."""
        return self._clock_s() < self._until_s.get(device, 0.0)

    def report(self) -> list[str]:
        """A line for each device that failed, for the report of a run."""
        return [
            f"the device {device} gave no answer {n} times, which no candidate is blamed for"
            + ("; it was not taken back" if self._row[device] else "")
            for device, n in sorted(self.total.items())
        ]


@dataclass
class _Job:
    """A candidate that waits for a device, or is on one."""

    request: Any
    since_s: float
    future: Future[Outcome] = field(default_factory=Future)
    setbacks: list[Setback] = field(default_factory=list)


@dataclass(frozen=True)
class FleetConfig:
    """Where the devices are and how they are waited for."""

    tracker: str  # host:port
    key: str
    pool: PoolConfig  # of one worker, which talks to one device
    wait_s: float  # for a free device


class Fleet:
    """Gets each request to a device, and its outcome back.

    Args:
        on_device: from a request and a device to what the workers' function is called with.
        setback_of: from an outcome to what is wrong with the device; None if it is a result of the candidate.
    """

    def __init__(
        self,
        config: FleetConfig,
        on_device: Callable[[Any, Grant], Any],
        setback_of: Callable[[Outcome, str], Setback | None],
    ) -> None:
        self._office = _Office(config, on_device, setback_of)
        weakref.finalize(self, self._office.close)

    def submit(self, request: Any) -> Future[Outcome]:
        """Queue a request and return the future of its outcome."""
        return self._office.submit(request)

    def room(self) -> int:
        """How many more requests would find a free device at once; at least 1 where none waits or runs."""
        return self._office.room()

    def report(self) -> list[str]:
        """What the devices failed at."""
        return self._office.health.report()

    def pids(self) -> list[int]:
        """Process ids of the workers' supervisors."""
        return self._office.pids()

    def close(self) -> None:
        """Let the requests that still wait fail, and stop the workers."""
        self._office.close()


class _Office:
    """Does the work of a fleet. Its threads hold it, and it does not hold the fleet, which so ends with its owner."""

    def __init__(
        self,
        config: FleetConfig,
        on_device: Callable[[Any, Grant], Any],
        setback_of: Callable[[Outcome, str], Setback | None],
    ) -> None:
        self.health = Health()
        self._config, self._on_device, self._setback_of = config, on_device, setback_of
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: dict[WorkerPool, threading.Thread] = {}
        self._idle: list[WorkerPool] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._asked, self._asking = Tracker(config.tracker), threading.Lock()
        self._summary: Summary | None = None
        self._summary_s = 0.0

    def submit(self, request: Any) -> Future[Outcome]:
        job = _Job(request, time.monotonic())
        with self._changed:
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._dispatch, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job.future

    def pids(self) -> list[int]:
        return [pid for pool in [*self._idle, *self._running] for pid in pool.pids()]

    def room(self) -> int:
        with self._changed:
            waiting, idle = len(self._waiting), not self._waiting and not self._running
        summary = self._ask()
        free = summary.free if summary else 0
        return max(free - waiting, 1 if idle else 0)

    def _ask(self) -> Summary | None:
        """What the tracker knows, lately; None while it does not answer."""
        with self._asking:
            now_s = time.monotonic()
            if self._summary_s <= now_s - ASK_S:
                before = self._summary
                try:
                    self._summary = self._asked.summary(self._config.key)
                except TrackerError as error:
                    if before is not None:
                        logger.warning("%s; its devices are waited for", error)
                    self._summary = None
                self._summary_s = time.monotonic()
                if self._summary and (before is None or before.devices != self._summary.devices):
                    n = self._summary.devices
                    logger.warning("the tracker has %d devices with the key %s", n, self._config.key)
            return self._summary

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread, pools = self._thread, [*self._idle, *self._running]
            lanes = list(self._running.values())
        for pool in pools:
            pool.close()
        for ended in (*lanes, *([thread] if thread else ())):
            if ended is not threading.current_thread():
                ended.join()
        for pool in self._idle:  # those that were hired meanwhile
            pool.close()
        with self._changed:
            while self._waiting:
                self._fail(self._waiting.popleft(), "the runner was closed", "error")
            self._idle.clear()
            self._thread, self._closing = None, False
        self._asked.close()

    # --- the thread that gets devices from the tracker ---

    def _dispatch(self) -> None:
        tracker = Tracker(self._config.tracker)
        try:
            while self._wait_for_work():
                trouble = f"no device with the key {self._config.key!r} became free"
                grant = None
                try:
                    grant = next_device(tracker, self._config.key, self._in_time)
                except TrackerError as error:
                    trouble = str(error)
                if grant is None:
                    self._give_up(trouble)
                else:
                    self._send(grant)
        finally:
            tracker.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return not self._closing

    def _in_time(self) -> bool:
        """Whether to go on waiting for a device."""
        with self._changed:
            oldest_s = min((job.since_s for job in self._waiting), default=0.0)
            return not self._closing and time.monotonic() < oldest_s + self._config.wait_s

    def _give_up(self, trouble: str) -> None:
        """Let the requests fail that have waited for too long."""
        config = self._config
        with self._changed:
            if self._closing:
                return
            now_s = time.monotonic()
            late = [job for job in self._waiting if now_s >= job.since_s + config.wait_s]
            for job in late:
                self._waiting.remove(job)
                self._fail(
                    job,
                    f"{trouble} at the tracker {config.tracker} in {config.wait_s:g} s; check that the device is on "
                    "and that nobody else holds it",
                    ENVIRONMENT,
                )

    def _send(self, grant: Grant) -> None:
        """Start the next request on a device, or let go of the device if it is not to get any of them."""
        self._summary_s = 0.0
        summary = self._ask()
        alone = summary is None or summary.devices < 2
        with self._changed:
            job = None if self._closing else self._next_for(grant.device, alone)
            if job is not None:
                self._waiting.remove(job)
                pool = self._idle.pop() if self._idle else WorkerPool(self._config.pool)
                lane = threading.Thread(target=self._serve, args=(job, grant, pool), daemon=True)
                self._running[pool] = lane
                lane.start()
                return
        give_back(grant)
        time.sleep(RETRY_S)

    def _next_for(self, device: str, alone: bool) -> _Job | None:
        """The request that has waited longest and was not sent back by this device.

        Args:
            alone: whether there is no other device, so that this one gets the request again.
        """
        if self.health.rests(device):
            return None
        patience_s = time.monotonic() - self._config.wait_s / 2  # after that, any device will do
        for job in self._waiting:
            if alone or job.since_s < patience_s or all(s.device != device for s in job.setbacks):
                return job
        return None

    # --- a thread for each request that is on a device ---

    def _serve(self, job: _Job, grant: Grant, pool: WorkerPool) -> None:
        try:
            outcome = pool.map([self._on_device(job.request, grant)])[0]
        except BaseException as error:
            job.future.set_exception(error)
        else:
            self._settle(job, grant.device, outcome)
        with self._changed:
            del self._running[pool]
            self._idle.append(pool)
            self._summary_s = 0.0
            self._changed.notify_all()

    def _settle(self, job: _Job, device: str, outcome: Outcome) -> None:
        setback = None if self._closing else self._setback_of(outcome, device)
        if setback is None:
            for before in job.setbacks:
                if before.kind != GONE:  # here it was no trouble
                    self.health.failed(before)
            if not self._closing:
                self.health.answered(device)
            job.future.set_result(outcome)
            return
        job.setbacks.append(setback)
        if setback.kind == GONE:
            self.health.failed(setback)
        summary = self._ask()
        result = blame(job.setbacks, others=summary is not None and summary.devices > 1)
        if result is not None:
            job.future.set_result(Outcome(result.kind, message=f"{result.kind}: {result.message}"))
            return
        logger.warning("a candidate is measured again; on %s: %s (%s)", device, setback.message, setback.kind)
        with self._changed:
            job.since_s = time.monotonic()
            self._waiting.append(job)
            self._changed.notify_all()

    def _fail(self, job: _Job, why: str, reason: str) -> None:
        job.future.set_result(Outcome(reason, message=f"{reason}: {why}"))
