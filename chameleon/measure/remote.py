"""Times candidates on remote devices through TVM's RPC tracker and servers.

The work on the device is done by TVM's own code: the functions behind its `RPCRunner`, its `EvaluatorConfig`, its
evaluator. This module only changes where that code runs: in isolated workers, one for each device that is in use, with
a time limit that also covers a device that hangs. `chameleon.measure.fleet` gets the devices and decides whose fault a
failure is.

The stock runner waits for ever when no device is left. And when its owner is killed, its worker stays behind and goes
on waiting.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm import rpc
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RunnerFuture, RunnerInput, RunnerResult
from tvm.s_tir.meta_schedule.runner import rpc_runner as stock
from tvm.s_tir.meta_schedule.runner.runner import _PyRunner

from chameleon.measure.fleet import CRASH, GONE, TIMEOUT, Fleet, FleetConfig, Setback
from chameleon.measure.inputs import make_inputs, read_ranges
from chameleon.measure.runner import device_name
from chameleon.measure.tracker import Grant, parse_tracker
from chameleon.target import TVM_WITHOUT
from chameleon.workers.faults import ENVIRONMENT, cause_of, last_line
from chameleon.workers.pool import Outcome, PoolConfig

CONNECT_S = 10.0
"""How long a device may take to answer when it was handed out; a device that hangs costs this much."""

_GRACE_S = 5.0  # for uploading and linking


@dataclass(frozen=True)
class RemoteConfig:
    """How candidates are run on devices at a tracker."""

    tracker: str  # host:port
    device_key: str  # the key under which the devices registered
    session_timeout_s: int = 30  # for one candidate on the device; after that the server ends the session
    wait_timeout_s: float = 60.0  # how long to wait for a free device
    number: int = 3  # runs in one repeat, at least
    repeats: int = 3
    min_repeat_ms: int = 50  # the shortest repeat
    recycle_after: int = 500  # a worker is replaced after so many candidates


@dataclass(frozen=True)
class RemoteRequest:
    """What a worker needs to time one candidate remotely."""

    evaluator: EvaluatorConfig
    artifact_path: str
    device: str
    args_info: tuple[list[Any], ...]
    session_timeout_s: int
    grant: Grant | None = None  # where it runs; None: on whatever becomes free


@dataclass(frozen=True)
class Trouble:
    """What a worker saw of a device in place of a result; its kinds are those of `chameleon.measure.fleet`."""

    kind: str
    message: str


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


class RemoteRunner(_PyRunner):
    """Times candidates on remote devices; for any MetaSchedule call that takes a runner.

    `run` returns at once with futures: building on this machine meanwhile does not disturb the devices. As many
    candidates are in flight as the tracker has free devices with the key. Candidates must be exported in a form that
    the server links or loads (`WarmBuilder(export="tar")`). The result is one number of seconds for each repeat.
    `WarmBuilder` says why the base class is what it is.
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
        self._engine.fleet.close()

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

    def room(self) -> int:
        """How many more candidates would find a free device at once; at least 1 where none waits or runs."""
        return self._engine.fleet.room()

    def report(self) -> list[str]:
        """A line for each device that gave no answer: how often."""
        return self._engine.fleet.report()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers' supervisors."""
        return self._engine.fleet.pids()


class _RemoteEngine:
    """Does the work of a remote runner; as in the builder, this object does not hold TVM's object."""

    def __init__(self, config: RemoteConfig) -> None:
        parse_tracker(config.tracker)
        self._timeout_s = config.session_timeout_s
        self._evaluator = EvaluatorConfig(config.number, config.repeats, config.min_repeat_ms, False)
        # One run a repeat: only the first run of a repeat finds cold caches.
        self._cold_evaluator = EvaluatorConfig(1, config.number * config.repeats, 0, True)
        self.cold = False
        pool = PoolConfig(
            target="chameleon.measure.remote:run_remote",
            forked=True,
            timeout_s=CONNECT_S + config.session_timeout_s + _GRACE_S,  # a device that lives has ended it by then
            recycle_after=config.recycle_after,
            environment={"TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            without=TVM_WITHOUT,
            retry_crash=False,  # a device is handed out for one session
        )
        self.fleet = Fleet(
            FleetConfig(config.tracker, config.device_key, pool, config.wait_timeout_s),
            lambda request, grant: replace(request, grant=grant),
            _setback,
        )

    def run(self, runner_inputs: Sequence[RunnerInput]) -> list[RunnerFuture]:
        """One future for each input."""
        return [_RemoteFuture(_Answer(self.fleet.submit(self._request(i)))) for i in runner_inputs]

    def _request(self, runner_input: RunnerInput) -> RemoteRequest:
        args = [info.as_json() for info in runner_input.args_info]
        return RemoteRequest(
            self._cold_evaluator if self.cold else self._evaluator,
            str(runner_input.artifact_path),
            device_name(str(runner_input.device_type)),
            tuple([str(kind), str(dtype), [int(n) for n in shape]] for kind, dtype, shape in args),
            self._timeout_s,
        )


def _setback(outcome: Outcome, device: str) -> Setback | None:
    """What is wrong with a device, from the outcome of a worker; None if it is a result of the candidate."""
    if outcome.ok:
        found = outcome.value
        return Setback(device, found.kind, found.message) if isinstance(found, Trouble) else None
    detail = outcome.message.partition(":")[2].strip()
    if outcome.reason == "timeout":  # a server that lives ends a session before that
        return Setback(device, GONE, "it hangs: it did not even end the session in time")
    if outcome.reason == "crash":
        hangs = "SIGALRM" in outcome.message
        return Setback(device, GONE, f"it does not answer in {CONNECT_S:g} s" if hangs else detail)
    return None


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
        reason = "run_error" if outcome.reason == "error" else outcome.reason
        return RunnerResult(None, f"{reason}:{outcome.message.partition(':')[2]}")


# --- inside a worker ---


def run_remote(request: RemoteRequest) -> list[float] | Trouble:
    """Time one candidate with TVM's own functions: connect, upload, allocate, evaluate, clean up.

    Returns:
        The seconds of each repeat, or what is wrong with the device.

    Raises:
        Exception: what the candidate failed with on a device that still answers.
    """
    grant = request.grant
    assert grant is not None  # a fleet sends nothing without a device
    try:
        session = connect(grant, request.session_timeout_s)
    except Exception as error:
        return Trouble(GONE, f"it takes no connection: {last_line(str(error))}")
    try:
        costs = stock._worker_func(  # what TVM's RPCRunner runs in its own workers
            lambda _: session,
            None,
            lambda session, device, _info, _repeat: [_inputs(request, session, device)],
            None,
            None,
            None,  # type: ignore[arg-type] - the tracker has been asked
            request.evaluator,
            1,
            request.artifact_path,
            request.device,
            list(request.args_info),
        )
    except Exception as error:
        return _trouble(error, session, grant)
    return [float(cost) for cost in costs]


def connect(grant: Grant, timeout_s: int) -> Any:
    """Open a session on a device. A device that hangs ends this process: TVM would wait for it without limit.

    Args:
        timeout_s: after so long the server ends the session.
    """
    with _deadline(CONNECT_S):
        return rpc.connect(grant.host, grant.port, grant.match_key, timeout_s)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Let the kernel end this process after that many seconds, whatever it does then."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _trouble(error: Exception, session: Any, grant: Grant) -> Trouble:
    """What is wrong with a device on which a candidate failed.

    Raises:
        Exception: the error, if the device answers and lacks nothing: then the candidate is to blame.
    """
    text = "".join(traceback.format_exception(error))  # TVM's cleaning up after an error may fail as well
    if "session has expired" in text or "RPCSessionTimeout" in text:
        return Trouble(TIMEOUT, "its session has expired")
    if _answers(session):
        if cause := cause_of(error):
            return Trouble(ENVIRONMENT, cause)
        raise error
    while error.__context__ is not None:
        error = error.__context__  # type: ignore[assignment] - the first of them
    time.sleep(0.5)  # what has been killed stops listening
    if _listens(grant):
        return Trouble(CRASH, f"the session broke off: {last_line(str(error))}")
    return Trouble(GONE, f"it broke off and is gone: {last_line(str(error))}")


def _answers(session: Any) -> bool:
    try:
        with _deadline(CONNECT_S):
            session.get_function("tvm.rpc.server.remove")
    except Exception:  # the connection is broken, in whichever way
        return False
    return True


def _listens(grant: Grant) -> bool:
    """Whether a server is still there, so that only its session has ended."""
    try:
        socket.create_connection((grant.host, grant.port), timeout=2.0).close()
    except OSError:
        return False
    return True


def _inputs(request: RemoteRequest, session: Any, device: Any) -> list[Any]:
    signature = tuple((dtype, tuple(shape)) for _, dtype, shape in request.args_info)
    fill = session.get_function("tvm.contrib.random.random_fill_for_measure")
    return make_inputs(signature, read_ranges(Path(request.artifact_path), signature), device, fill)
