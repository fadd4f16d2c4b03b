"""A MetaSchedule runner with one warm, isolated worker and adaptive timing."""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.s_tir.meta_schedule.runner import RunnerFuture, RunnerInput, RunnerResult
from tvm.s_tir.meta_schedule.runner.runner import _PyRunner

from chameleon.cores import usable_memory_bytes
from chameleon.ir import tensor_bytes
from chameleon.measure.inputs import Ranges, Signature, make_inputs, read_ranges
from chameleon.target import TVM_WITHOUT, usable_cores
from chameleon.workers.faults import EnvironmentFault
from chameleon.workers.pool import Outcome, PoolConfig, WorkerPool


@dataclass(frozen=True)
class TimingConfig:
    """How long a candidate is timed."""

    quick_runs: int = 3  # runs of the first estimate, after one warm-up
    quick_budget_s: float = 0.1  # the first estimate stops after this time, even if only the warm-up has run
    # A candidate slower than the best by this factor is not measured any longer: the first estimate is its result.
    slow_factor: float = 2.0
    repeats: int = 5  # of the long measurement, whose median is the result
    close_factor: float = 1.1  # if the first two repeats are slower than the best by this factor, they are enough
    min_repeat_s: float = 0.02  # one repeat has as many runs as fill this time

    def __post_init__(self) -> None:
        if min(self.quick_runs, self.repeats, self.slow_factor, self.close_factor) < 1:
            raise ValueError(f"TimingConfig: runs, repeats and factors must be at least 1, got {self}")


@dataclass(frozen=True)
class RunConfig:
    """How candidates are run."""

    timing: TimingConfig = TimingConfig()
    timeout_s: float = 30.0
    n_threads: int | None = None  # threads of a CPU kernel; None: as many as there are usable cores
    memory_limit_bytes: int | None = None  # None: three quarters of the machine's memory
    recycle_after: int = 500  # the worker is replaced after so many runs


FLUSH = "cache_flush_cpu_non_first_arg"
"""TVM's function that throws all arguments of a kernel but the first out of the CPU's caches."""


@dataclass(frozen=True)
class RunRequest:
    """What the worker needs to time one candidate."""

    artifact_path: str
    device_type: str
    signature: Signature
    best_s: float  # the best so far of the same task, infinite before the first
    timing: TimingConfig
    cold: bool = False


class WarmRunner(_PyRunner):
    """Times candidates one after the other; for any MetaSchedule call that takes a runner.

    `run` returns when all candidates are timed. So the same tuning loop builds nothing while a candidate is timed.

    The result of a candidate is one number of seconds. There are two cases:

    - Its first estimate is slower than `slow_factor` times the best so far: the result is this estimate.
    - Otherwise it gets a long measurement: the result is the median of the repeats. The repeats end early for a
      candidate that is clearly not the best.

    "The best so far" is that of one task, never that of another task whose arguments happen to have equal shapes. A
    runner is not told which task its inputs belong to, so whoever knows sets `task` before `run`. Where nobody does,
    only the candidates of one call that have the same arguments are compared: MetaSchedule's loop gives a call the
    candidates of a single task. A call with one candidate then measures it at full length. All candidates with the
    same arguments get the same random inputs.

    The stock runner differs: for every candidate it takes the mean of one repeat of at least 100 ms. `WarmBuilder`
    says why the base class is what it is.
    """

    __slots__ = ("__dict__",)

    def __init__(self, config: RunConfig | None = None, **options: Any) -> None:
        """Take the settings.

        Args:
            config: the settings; or give its fields as keywords.
        """
        self._engine = _RunEngine(config or RunConfig(**options))
        super().__init__(self._engine.run)

    def __enter__(self) -> WarmRunner:
        self._engine.pool.start()  # so the imports run while the caller prepares the first candidate
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker. A later `run` starts a new one."""
        self._engine.pool.close()

    @property
    def task(self) -> str | None:
        """A key of the task whose candidates come next; None: unknown, so each call of `run` stands alone."""
        return self._engine.task

    @task.setter
    def task(self, key: str | None) -> None:
        self._engine.task = key

    @property
    def cold(self) -> bool:
        """Whether each timed run finds cold caches: all arguments but the first are thrown out of them before it.

        For CPUs only. The result is then the median over runs that are timed one by one, and no best time is kept.
        """
        return self._engine.cold

    @cold.setter
    def cold(self, wanted: bool) -> None:
        self._engine.cold = wanted

    def forget(self) -> None:
        """Forget the best times of all tasks: the next candidate of each is measured at full length."""
        self._engine.best_s.clear()

    def run(self, runner_inputs: Sequence[RunnerInput]) -> list[RunnerFuture]:
        """Run all inputs: one finished future for each, in order; a failure's `error_msg` begins with its reason."""
        return self._engine.run(runner_inputs)

    @property
    def last_run_s(self) -> list[float]:
        """Seconds that each candidate of the last call took, from sending it to getting its outcome."""
        return self._engine.last_run_s

    def worker_pids(self) -> list[int]:
        """Process id of the worker's supervisor."""
        return self._engine.pool.pids()


class _RunEngine:
    """Does the work of a runner; as in the builder, this object does not hold TVM's object."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        threads = str(config.n_threads or usable_cores())
        self.last_run_s: list[float] = []
        self.task: str | None = None
        self.cold = False
        self.best_s: dict[str, float] = {}  # by task
        self.pool = WorkerPool(
            PoolConfig(
                target="chameleon.measure.runner:Timer",
                forked=True,
                factory=True,
                timeout_s=config.timeout_s,
                memory_limit_bytes=config.memory_limit_bytes or usable_memory_bytes() * 3 // 4,
                recycle_after=config.recycle_after,
                environment={"TVM_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},  # else TVM takes half the cores
                without=TVM_WITHOUT,
            )
        )

    def run(self, runner_inputs: Sequence[RunnerInput]) -> list[RunnerFuture]:
        """One finished future for each input."""
        self.last_run_s = []
        of_this_call: dict[Signature, float] = {}
        return [ready(self._run_one(runner_input, of_this_call)) for runner_input in runner_inputs]

    def _run_one(self, runner_input: RunnerInput, of_this_call: dict[Signature, float]) -> RunnerResult:
        try:
            signature = signature_of(runner_input)
        except ValueError as error:
            return RunnerResult(None, f"run_error: {error}")
        task = self.task
        best_s = of_this_call.get(signature, math.inf) if task is None else self.best_s.get(task, math.inf)
        device = device_name(str(runner_input.device_type))
        best_s = math.inf if self.cold else best_s
        timing = self.config.timing
        request = RunRequest(str(runner_input.artifact_path), device, signature, best_s, timing, self.cold)
        outcome = self.pool.map([request])[0]
        self.last_run_s.append(outcome.wall_s)
        if not outcome.ok:
            if device != "cpu" and outcome.reason == "error":
                self.pool.close()  # after some errors a GPU's driver refuses all that this process asks for
            return RunnerResult(None, _error_message(outcome))
        if self.cold:
            return RunnerResult([outcome.value], None)
        if task is None:
            of_this_call[signature] = min(outcome.value, best_s)
        else:
            self.best_s[task] = min(outcome.value, best_s)
        return RunnerResult([outcome.value], None)


def ready(result: RunnerResult) -> RunnerFuture:
    """A future that has its result already."""
    return RunnerFuture(lambda: True, lambda: result)


def _error_message(outcome: Outcome) -> str:
    word = "run_error" if outcome.reason == "error" else outcome.reason
    return f"{word}:{outcome.message.partition(':')[2]}"


def device_name(name: str) -> str:
    """The name of a target kind's device.

    MetaSchedule says `cpu`. Other callers give the kind, `llvm`, which TVM no longer takes as the name of a device.
    """
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

MOST_COLD_RUNS = 50


class Timer:
    """Times candidates; keeps the inputs of the last few signatures."""

    def __init__(self, cache_bytes: int = 1 << 28) -> None:
        self._cache_bytes = cache_bytes
        self._arguments: OrderedDict[tuple[str, Signature, Ranges], list[Any]] = OrderedDict()
        self._fill = tvm.get_global_func("tvm.contrib.random.random_fill_for_measure")

    def __call__(self, request: RunRequest) -> float:
        """Seconds of one run."""
        device: Any = tvm.runtime.device(request.device_type, 0)
        if not device.exist:
            raise EnvironmentFault(f"this machine has no {request.device_type} device; check it and its driver")
        module: Any = tvm.runtime.load_module(request.artifact_path)
        arguments = self._arguments_for(device, request)
        function = module[module.entry_name]
        timing = request.timing
        slow_above_s = request.best_s * timing.slow_factor
        estimate_s = quick_estimate_s(lambda: function(*arguments), device, timing, 2 * slow_above_s)
        if estimate_s > slow_above_s:
            return estimate_s
        number = max(1, math.ceil(timing.min_repeat_s / estimate_s))
        if request.cold:
            runs = min(max(number, timing.repeats), MOST_COLD_RUNS)
            cold = module.time_evaluator(module.entry_name, device, number=1, repeat=runs, f_preproc=FLUSH)
            return statistics.median(float(s) for s in cold(*arguments).results)
        evaluator = module.time_evaluator(module.entry_name, device, number=number, repeat=1)
        return raced_s(lambda: float(evaluator(*arguments).mean), timing, request.best_s * timing.close_factor)

    def _arguments_for(self, device: Any, request: RunRequest) -> list[Any]:
        ranges = read_ranges(Path(request.artifact_path), request.signature)
        key = (request.device_type, request.signature, ranges)
        if key not in self._arguments:
            size = _size_bytes(request.signature)
            while self._arguments and size + sum(_size_bytes(s) for _, s, _ in self._arguments) > self._cache_bytes:
                self._arguments.popitem(last=False)
            self._arguments[key] = make_inputs(request.signature, ranges, device, self._fill)
        self._arguments.move_to_end(key)
        return self._arguments[key]


def _size_bytes(signature: Signature) -> int:
    return sum(tensor_bytes(shape, dtype) for dtype, shape in signature)


def raced_s(repeat: Callable[[], float], timing: TimingConfig, close_s: float) -> float:
    """Median of `timing.repeats` calls of `repeat`, or of the first two alone if both exceed `close_s`."""
    seconds = [repeat() for _ in range(min(2, timing.repeats))]
    if min(seconds) <= close_s:
        seconds += [repeat() for _ in range(timing.repeats - len(seconds))]
    return statistics.median(seconds)


def quick_estimate_s(run: Callable[[], Any], device: Any, timing: TimingConfig, give_up_s: float) -> float:
    """The shortest time of a few runs, of which the first is cold and serves as the warm-up.

    It stops early when its time is used up, or when the first two runs both took longer than `give_up_s`.
    """
    seconds: list[float] = []
    begin_s = time.perf_counter()
    while not seconds or (len(seconds) <= timing.quick_runs and time.perf_counter() - begin_s < timing.quick_budget_s):
        device.sync()
        start_s = time.perf_counter()
        run()
        device.sync()
        seconds.append(time.perf_counter() - start_s)
        if len(seconds) == 2 and min(seconds) > give_up_s:
            break
    return max(min(seconds), 1e-9)  # a clock may stand still
