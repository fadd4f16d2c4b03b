"""Times candidates on remote devices through TVM's RPC tracker and servers.

The work on the device is done by TVM's own code: the functions behind its `RPCRunner`, its `RPCConfig`, its evaluator.
This module only changes where that code runs: in isolated workers, with a time limit that also covers the wait for a
free device. The stock runner waits for ever when no device is left. And when its owner is killed, its worker stays
behind and goes on waiting.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm import rpc
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RPCConfig, RunnerFuture, RunnerInput, RunnerResult
from tvm.s_tir.meta_schedule.runner import rpc_runner as stock
from tvm.s_tir.meta_schedule.runner.runner import _PyRunner

from chameleon.errors import UsageError
from chameleon.measure.inputs import make_inputs, read_ranges
from chameleon.measure.runner import device_name
from chameleon.target import TVM_WITHOUT
from chameleon.workers.faults import ENVIRONMENT, EnvironmentFault, last_line
from chameleon.workers.pool import Outcome, PoolConfig, WorkerPool

TRACKER_TIMEOUT_S = 5.0
"""How long a tracker may take to answer when it is asked for its devices."""

_GRACE_S = 5.0  # for connecting, uploading and linking


@dataclass(frozen=True)
class RemoteConfig:
    """How candidates are run on devices at a tracker."""

    tracker: str  # host:port
    device_key: str  # the key under which the devices registered
    session_timeout_s: int = 30  # for one candidate on the device; after that the server ends the session
    wait_timeout_s: float = 60.0  # how long to wait for a free device
    n_devices: int = 1  # devices used at the same time
    number: int = 3  # runs in one repeat, at least
    repeats: int = 3
    min_repeat_ms: int = 50  # the shortest repeat
    recycle_after: int = 500  # a worker is replaced after so many candidates


@dataclass(frozen=True)
class RemoteRequest:
    """What a worker needs to time one candidate remotely."""

    rpc: RPCConfig
    evaluator: EvaluatorConfig
    artifact_path: str
    device: str
    args_info: tuple[list[Any], ...]
    wait_s: float  # for a free device


def rpc_runner(tracker: str, device_key: str, **options: Any) -> RemoteRunner:
    """Make a runner for devices that registered at a tracker.

    Args:
        tracker: `host:port`.
        device_key: the key under which the devices registered.
        options: other fields of `RemoteConfig`.

    Raises:
        UsageError: if the tracker's address is not `host:port`.
    """
    return RemoteRunner(RemoteConfig(tracker, device_key, **options))


def parse_tracker(tracker: str) -> tuple[str, int]:
    """Split the address of a tracker into host and port.

    Raises:
        UsageError: if the text has not the form `host:port`.
    """
    host, colon, port = tracker.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"a tracker is given as host:port, such as 192.168.1.5:9190; got {tracker!r}")
    return host.strip("[]"), int(port)


class RemoteRunner(_PyRunner):
    """Times candidates on remote devices; for any MetaSchedule call that takes a runner.

    `run` returns at once with futures: building on this machine meanwhile does not disturb the device. Candidates must
    be exported in a form that the server links or loads (`WarmBuilder(export="tar")`). The result is one number of
    seconds for each repeat. `WarmBuilder` says why the base class is what it is.
    """

    __slots__ = ("__dict__",)

    def __init__(self, config: RemoteConfig) -> None:
        self._engine = _RemoteEngine(config)
        super().__init__(self._engine.run)

    def __enter__(self) -> RemoteRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; candidates that still wait fail."""
        self._engine.desk.close()

    def run(self, runner_inputs: Sequence[RunnerInput]) -> list[RunnerFuture]:
        """Run all inputs: one future for each, in order; the `error_msg` of a failure begins with its reason."""
        return self._engine.run(runner_inputs)

    @property
    def cold(self) -> bool:
        """Whether each timed run finds cold caches, all arguments but the first; for CPUs only."""
        return self._engine.cold

    @cold.setter
    def cold(self, wanted: bool) -> None:
        self._engine.cold = wanted

    def worker_pids(self) -> list[int]:
        """Process ids of the workers' supervisors."""
        return self._engine.desk.pids()


class _RemoteEngine:
    """Does the work of a remote runner; as in the builder, this object does not hold TVM's object."""

    def __init__(self, config: RemoteConfig) -> None:
        self._wait_s = config.wait_timeout_s
        host, port = parse_tracker(config.tracker)
        self._rpc = RPCConfig(host, port, config.device_key, session_timeout_sec=config.session_timeout_s)
        self._evaluator = EvaluatorConfig(config.number, config.repeats, config.min_repeat_ms, False)
        # One run a repeat: only the first run of a repeat finds cold caches.
        self._cold_evaluator = EvaluatorConfig(1, config.number * config.repeats, 0, True)
        self.cold = False
        pool = PoolConfig(
            target="chameleon.measure.remote:run_remote",
            forked=True,
            # A worker itself gives up waiting for a device: before the candidate, and once more after its failure.
            timeout_s=config.session_timeout_s + 2 * config.wait_timeout_s + _GRACE_S,
            recycle_after=config.recycle_after,
            environment={"TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            without=TVM_WITHOUT,
        )
        self.desk = _Desk([WorkerPool(pool) for _ in range(config.n_devices)])

    def run(self, runner_inputs: Sequence[RunnerInput]) -> list[RunnerFuture]:
        """One future for each input."""
        return [_RemoteFuture(_Answer(self.desk.submit(self._request(i)))) for i in runner_inputs]

    def _request(self, runner_input: RunnerInput) -> RemoteRequest:
        args = [info.as_json() for info in runner_input.args_info]
        return RemoteRequest(
            self._rpc,
            self._cold_evaluator if self.cold else self._evaluator,
            str(runner_input.artifact_path),
            device_name(str(runner_input.device_type)),
            tuple([str(kind), str(dtype), [int(n) for n in shape]] for kind, dtype, shape in args),
            self._wait_s,
        )


class _RemoteFuture(RunnerFuture):
    """A result that is still being measured.

    Python waits for it directly and not through C++, so that Ctrl-C works.
    """

    __slots__ = ("__dict__",)

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.done, answer.result)
        self._answer = answer

    def result(self) -> RunnerResult:
        """Wait for the seconds, or the message of the failure."""
        return self._answer.result()


@dataclass(frozen=True)
class _Answer:
    """Turns the future of a worker's outcome into a future of MetaSchedule's result."""

    future: Future[Outcome]

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self.future.done()

    def result(self) -> RunnerResult:
        """Wait for the seconds, or the message of the failure."""
        try:
            outcome = self.future.result()
        except Exception as error:  # a worker did not start: not the candidate's fault, but the batch must end
            return RunnerResult(None, f"{ENVIRONMENT}: {error}")
        if outcome.ok:
            return RunnerResult(outcome.value, None)
        return RunnerResult(None, self._message(outcome))

    def _message(self, outcome: Outcome) -> str:
        detail = outcome.message.partition(":")[2]
        if "session has expired" in detail or "RPCSessionTimeout" in detail:
            return f"timeout:{detail}"
        return f"{'run_error' if outcome.reason == 'error' else outcome.reason}:{detail}"


class _Desk:
    """Hands requests to several pools, so that several devices work at the same time.

    Each pool has one worker, and one thread that serves it.
    """

    def __init__(self, pools: list[WorkerPool]) -> None:
        self._pools = pools
        self._queue: queue.SimpleQueue[tuple[Future[Outcome], RemoteRequest] | None] = queue.SimpleQueue()
        for pool in pools:
            threading.Thread(target=_serve, args=(self._queue, pool), daemon=True).start()
        weakref.finalize(self, _send_home, self._queue, len(pools))

    def submit(self, request: RemoteRequest) -> Future[Outcome]:
        """Queue a request and return the future of its outcome."""
        future: Future[Outcome] = Future()
        self._queue.put((future, request))
        return future

    def pids(self) -> list[int]:
        """Process ids of the workers' supervisors."""
        return [pid for pool in self._pools for pid in pool.pids()]

    def close(self) -> None:
        """Let the requests that still wait fail, and stop the workers."""
        waiting = []
        while not self._queue.empty():
            waiting.append(self._queue.get())
        for entry in waiting:
            if entry is not None:
                entry[0].set_result(Outcome("error", message="error: the runner was closed"))
        for pool in self._pools:
            pool.close()


def _send_home(waiting: queue.SimpleQueue[Any], n_threads: int) -> None:
    """Tell all threads to end: `_serve` ends at None."""
    for _ in range(n_threads):
        waiting.put(None)


def _serve(waiting: queue.SimpleQueue[tuple[Future[Outcome], RemoteRequest] | None], pool: WorkerPool) -> None:
    """Serve requests from the queue with one pool, until None comes."""
    while (entry := waiting.get()) is not None:
        future, request = entry
        try:
            future.set_result(pool.map([request])[0])
        except BaseException as error:
            future.set_exception(error)
    pool.close()


def check_tracker(tracker: str, device_key: str) -> None:
    """Ask a tracker whether devices with a key have registered.

    Raises:
        EnvironmentFault: if the tracker does not answer within seconds, or knows no such device.
        UsageError: if the tracker's address is not `host:port`.
    """
    host, port = parse_tracker(tracker)
    advice = f"start it with `python -m tvm.exec.rpc_tracker --port {port}`, or give another --tracker"
    try:
        socket.create_connection((host, port), timeout=TRACKER_TIMEOUT_S).close()
    except OSError as error:
        raise EnvironmentFault(f"no RPC tracker answers at {tracker} ({error}); {advice}") from error
    keys: set[str] = set()
    try:
        with _alarm(TRACKER_TIMEOUT_S):
            session = rpc.connect_tracker(host, port)
            keys = {str(server["key"]).partition(":")[2] for server in session.summary()["server_info"]}
            session.close()
    except Exception as error:
        raise EnvironmentFault(f"what listens at {tracker} is no RPC tracker ({error}); {advice}") from error
    if device_key not in keys:
        known = f"there are {', '.join(sorted(keys))}" if keys else "no device has registered"
        raise EnvironmentFault(
            f"the tracker at {tracker} knows no device with the key {device_key!r}: {known}; register it with "
            f"`python -m tvm.exec.rpc_server --tracker {tracker} --key {device_key}`, or give another --device-key"
        )


class _OutOfTime(Exception):
    """An alarm rang. It is no OSError, at which TVM's client of the tracker would try again."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Inside the block, raise `_OutOfTime` after that many seconds. Only a main thread can; others wait on."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise _OutOfTime(f"no answer in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- inside a worker ---


def run_remote(request: RemoteRequest) -> list[float]:
    """Time one candidate with TVM's own functions: connect, upload, allocate, evaluate, clean up.

    Returns:
        The seconds of each repeat.

    Raises:
        EnvironmentFault: if no device answers, before the candidate or after it failed.
    """
    connected: list[Any] = []

    def connect(_: RPCConfig) -> Any:
        connected.append(_session(request))
        return connected[-1]

    try:
        costs = stock._worker_func(  # what TVM's RPCRunner runs in its own workers
            connect,
            None,
            lambda session, device, _info, _repeat: [_inputs(request, session, device)],
            None,
            None,
            request.rpc,
            request.evaluator,
            1,
            request.artifact_path,
            request.device,
            list(request.args_info),
        )
    except EnvironmentFault:
        raise
    except Exception:
        if connected and not _answers(connected[-1]):
            _session(request)  # the kernel may have ended the session; a device that is gone gives no other one
        raise
    return [float(cost) for cost in costs]


def _answers(session: Any) -> bool:
    try:
        session.get_function("tvm.rpc.server.remove")
    except Exception:  # the connection is broken, in whichever way
        return False
    return True


def _session(request: RemoteRequest) -> Any:
    """A session on a device.

    Raises:
        EnvironmentFault: if the tracker gives none in time.
    """
    key, where = request.rpc.tracker_key, f"{request.rpc.tracker_host}:{request.rpc.tracker_port}"
    try:
        with _alarm(request.wait_s):
            return request.rpc.connect_server()
    except _OutOfTime:
        raise EnvironmentFault(
            f"no device with the key {key!r} became free at the tracker {where} in {request.wait_s:g} s; check that "
            "the device is on and that nobody else holds it"
        ) from None
    except Exception as error:
        raise EnvironmentFault(
            f"the tracker {where} gives no device with the key {key!r}: {last_line(str(error))}"
        ) from error


def _inputs(request: RemoteRequest, session: Any, device: Any) -> list[Any]:
    signature = tuple((dtype, tuple(shape)) for _, dtype, shape in request.args_info)
    fill = session.get_function("tvm.contrib.random.random_fill_for_measure")
    return make_inputs(signature, read_ranges(Path(request.artifact_path), signature), device, fill)
