"""A MetaSchedule runner with one warm, isolated worker and adaptive timing."""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import tvm
from tvm.ir.utils import derived_object
from tvm.runtime import Device
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerFuture, RunnerInput, RunnerResult

from chameleon.deploy.derived import as_context
from chameleon.deploy.target import usable_cores
from chameleon.deploy.workers import Outcome, PoolConfig, WorkerPool

Signature = tuple[tuple[str, tuple[int, ...]], ...]  # dtype and shape of each argument


@dataclass(frozen=True)
class TimingConfig:
    """How long a candidate is timed."""

    quick_runs: int = 3  # runs of the first estimate, after one warm-up
    quick_budget_s: float = 0.1  # the first estimate stops here; one run, the warm-up, is enough
    slow_factor: float = 2.0  # slower than the best by this factor: the first estimate is the result
    repeats: int = 5  # of the long measurement, whose median is the result
    min_repeat_s: float = 0.02  # runs in one repeat are as many as fill this

    def __post_init__(self) -> None:
        if self.quick_runs < 1 or self.repeats < 1 or self.slow_factor < 1:
            raise ValueError(f"TimingConfig: quick_runs, repeats and slow_factor must be at least 1, got {self}")


@dataclass(frozen=True)
class RunConfig:
    """How candidates are run."""

    timing: TimingConfig = TimingConfig()
    timeout_s: float = 30.0
    n_threads: int | None = None  # of a CPU kernel; None: all usable cores
    memory_limit_bytes: int | None = None  # None: three quarters of the machine's memory
    recycle_after: int = 500  # runs, after which the worker is replaced


@dataclass(frozen=True)
class RunRequest:
    """What the worker needs to time one candidate."""

    artifact_path: str
    device_type: str
    signature: Signature
    slow_above_s: float | None  # a first estimate above this is the result
    timing: TimingConfig


@derived_object
class ReadyFuture(PyRunnerFuture):
    """A result that is already there."""

    def __init__(self, run_secs: list[float] | None, error_msg: str | None) -> None:
        super().__init__()
        self._result = RunnerResult(run_secs, error_msg)

    def done(self) -> bool:
        """Always."""
        return True

    def result(self) -> RunnerResult:
        """The seconds, or the message of the failure."""
        return self._result


@as_context
@derived_object
class WarmRunner(PyRunner):
    """Times candidates one after the other; for any MetaSchedule call that takes a runner.

    `run` returns when all are timed, so nothing of the same tuning loop is built meanwhile. The result is one number of
    seconds: the median of the long measurement's repeats; or, for a candidate whose first estimate is slower than
    `slow_factor` times the best so far with the same arguments, that estimate. Tasks whose arguments have equal shapes share
    this best; `forget` starts anew. The same random inputs serve all candidates with the same arguments.

    The stock runner takes the mean of one repeat of at least 100 ms, for every candidate.
    """

    def __init__(self, config: RunConfig | None = None, **options: Any) -> None:
        """Args:
        config: the settings; or give its fields as keywords.
        """
        super().__init__()
        self.config = config or RunConfig(**options)
        threads = str(self.config.n_threads or usable_cores())
        self.last_run_s: list[float] = []
        self._best_s: dict[Signature, float] = {}
        self._pool = WorkerPool(
            PoolConfig(
                target="chameleon.deploy.runner:Timer",
                factory=True,
                timeout_s=self.config.timeout_s,
                memory_limit_bytes=self.config.memory_limit_bytes or psutil.virtual_memory().total * 3 // 4,
                recycle_after=self.config.recycle_after,
                environment={"TVM_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},  # else TVM takes half the cores
            )
        )

    def close(self) -> None:
        """Stop the worker."""
        self._pool.close()

    def forget(self) -> None:
        """Forget the best times: the next candidates are measured at full length."""
        self._best_s.clear()

    def worker_pids(self) -> list[int]:
        """Process id of the worker's supervisor."""
        return self._pool.pids()

    def run(self, runner_inputs: list[RunnerInput]) -> list[RunnerFuture]:
        """One finished future an input, in order; a failure's `error_msg` begins with its reason."""
        self.last_run_s = []
        return [self._run_one(runner_input) for runner_input in runner_inputs]

    def _run_one(self, runner_input: RunnerInput) -> RunnerFuture:
        try:
            signature = signature_of(runner_input)
        except ValueError as error:
            return ReadyFuture(None, f"run_error: {error}")
        best_s, timing = self._best_s.get(signature), self.config.timing
        slow_above_s = None if best_s is None else best_s * timing.slow_factor
        request = RunRequest(
            str(runner_input.artifact_path), device_name(str(runner_input.device_type)), signature, slow_above_s, timing
        )
        outcome = self._pool.map([request])[0]
        self.last_run_s.append(outcome.wall_s)
        if not outcome.ok:
            return ReadyFuture(None, _error_message(outcome))
        self._best_s[signature] = min(outcome.value, best_s or math.inf)
        return ReadyFuture([outcome.value], None)


def _error_message(outcome: Outcome) -> str:
    word = "run_error" if outcome.reason == "error" else outcome.reason
    return f"{word}:{outcome.message.partition(':')[2]}"


def device_name(name: str) -> str:
    """The device of a target kind: MetaSchedule says `cpu`, other callers give the kind, `llvm`, which TVM no longer takes."""
    return "cpu" if name in ("llvm", "c") else name


def signature_of(runner_input: RunnerInput) -> Signature:
    """Dtype and shape of each argument.

    Raises:
        ValueError: if an argument is not a tensor.
    """
    signature = []
    for info in runner_input.args_info:
        kind, *rest = info.as_json()
        if kind != "TENSOR":
            raise ValueError(f"only tensor arguments can be timed, got {kind}")
        signature.append((str(rest[0]), tuple(int(n) for n in rest[1])))
    return tuple(signature)


# --- inside the worker ---


class Timer:
    """Times candidates; keeps the inputs of the last few signatures."""

    def __init__(self, cache_bytes: int = 1 << 28) -> None:
        self._cache_bytes = cache_bytes
        self._arguments: OrderedDict[tuple[str, Signature], list[Any]] = OrderedDict()
        self._fill = tvm.get_global_func("tvm.contrib.random.random_fill_for_measure")

    def __call__(self, request: RunRequest) -> float:
        """Seconds of one run."""
        device = tvm.runtime.device(request.device_type, 0)
        module = tvm.runtime.load_module(request.artifact_path)
        arguments = self._arguments_for(device, request)
        function = module[module.entry_name]
        give_up_s = math.inf if request.slow_above_s is None else 2 * request.slow_above_s
        estimate_s = quick_estimate_s(lambda: function(*arguments), device, request.timing, give_up_s)
        if request.slow_above_s is not None and estimate_s > request.slow_above_s:
            return estimate_s
        number = max(1, math.ceil(request.timing.min_repeat_s / estimate_s))
        evaluator = module.time_evaluator(module.entry_name, device, number=number, repeat=request.timing.repeats)
        return statistics.median(float(s) for s in evaluator(*arguments).results)

    def _arguments_for(self, device: Device, request: RunRequest) -> list[Any]:
        key = (request.device_type, request.signature)
        if key not in self._arguments:
            size = _size_bytes(request.signature)
            while self._arguments and size + sum(_size_bytes(s) for _, s in self._arguments) > self._cache_bytes:
                self._arguments.popitem(last=False)
            self._arguments[key] = [self._random(device, dtype, shape) for dtype, shape in request.signature]
        self._arguments.move_to_end(key)
        return self._arguments[key]

    def _random(self, device: Device, dtype: str, shape: tuple[int, ...]) -> Any:
        tensor = tvm.runtime.empty(shape, dtype, device)
        self._fill(tensor)
        return tensor


def _size_bytes(signature: Signature) -> int:
    return sum(math.prod(shape) * max(1, tvm.DataType(dtype).bits // 8) for dtype, shape in signature)


def quick_estimate_s(run: Callable[[], Any], device: Device, timing: TimingConfig, give_up_s: float) -> float:
    """Shortest of a few runs, the first of them cold.

    Stops early when the time for it is used up, and when a second run, too, took longer than `give_up_s`.
    """
    seconds: list[float] = []
    begin_s = time.perf_counter()
    while len(seconds) <= timing.quick_runs and time.perf_counter() - begin_s < timing.quick_budget_s:
        device.sync()
        start_s = time.perf_counter()
        run()
        device.sync()
        seconds.append(time.perf_counter() - start_s)
        if len(seconds) == 2 and min(seconds) > give_up_s:
            break
    return max(min(seconds), 1e-9)
