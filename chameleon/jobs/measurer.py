"""From candidates to trials, through any builder and runner of MetaSchedule."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.measure import WarmBuilder, WarmRunner
from chameleon.measure.preflight import check_environment
from chameleon.search import Trial
from chameleon.target import usable_cores
from chameleon.workers.faults import EnvironmentFault
from tuners.meta_schedule import args_info_of
from tuners.outcomes import environment_cause, failed_trial, measured_trial
from tuners.proposals import Config

POLL_S = 0.005
"""Pause between two looks at what devices elsewhere and the builder have done."""


class Prepared(Protocol):
    """A candidate after its build, wherever it was built."""

    @property
    def config(self) -> Config:
        """Its configuration."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it was built, so that it can be run."""
        ...

    def discard(self) -> None:
        """Remove what was built."""
        ...


class Measures(Protocol):
    """Turns candidates into trials: on this machine, on devices at a tracker, or on the nodes of a cluster."""

    def check(self) -> None:
        """Build and time one tiny kernel, see `Measurer.check`."""
        ...

    def __call__(
        self, candidates: Sequence[tuple[Config, Schedule]], *, task: str, in_time: Callable[[], bool]
    ) -> Iterator[Trial]:
        """Build and time candidates, see `Measurer.__call__`."""
        ...

    def build(self, candidates: Sequence[tuple[Config, Schedule]]) -> Sequence[Prepared]:
        """Build candidates, see `Measurer.build`."""
        ...

    def report(self) -> list[str]:
        """What failed elsewhere than on this machine, a line for each device or node."""
        ...

    @property
    def can_cool(self) -> bool:
        """Whether candidates can be timed with cold caches."""
        ...

    def time(self, candidate: Any, *, cold: bool = False) -> Trial:
        """Time one candidate that `build` gave at full length, see `Measurer.time`."""
        ...


@dataclass(frozen=True)
class Built:
    """A candidate after its build: `run_input` if it can be run, otherwise why not."""

    config: Config
    run_input: ms.runner.RunnerInput | None
    error: str
    build_s: float

    @property
    def ready(self) -> bool:
        return self.run_input is not None

    def discard(self) -> None:
        """Remove its artifact: the builder leaves it to whoever runs it. In MetaSchedule its own loop removes it."""
        if self.run_input is not None:
            shutil.rmtree(Path(str(self.run_input.artifact_path)).parent, ignore_errors=True)


class Measurer:
    """Measures candidates with any MetaSchedule builder and runner; the results are trials.

    Args:
        room: says how many more candidates would find a free device elsewhere now; asked again and again. None: the
            runner times on this machine. Then nothing is built while a candidate is timed, and each result is recorded
            before the next candidate is timed.
    """

    def __init__(
        self, target: Target, builder: ms.Builder, runner: ms.Runner, room: Callable[[], int] | None = None
    ) -> None:
        self._target = target
        self._builder = builder
        self._runner = runner
        self._room = room

    def check(self) -> None:
        """Build and time one tiny kernel, with the same builder and runner.

        Raises:
            EnvironmentFault: if that fails, so that no candidate could succeed.
        """
        check_environment(self._target, self._builder, self._runner)

    def __call__(
        self, candidates: Sequence[tuple[Config, Schedule]], *, task: str, in_time: Callable[[], bool]
    ) -> Iterator[Trial]:
        """Build all candidates and time them; a trial is yielded as soon as it is known, failures included.

        Args:
            task: the key of their task; the runner compares a candidate with the best of its task.
            in_time: asked before candidates are run; once it says no, the candidates that are left are dropped.
        """
        if self._room is not None:
            yield from self._elsewhere(candidates, in_time, self._room)
            return
        built = self.build(candidates)
        yield from _not_built(built)
        ready = [candidate for candidate in built if candidate.run_input is not None]
        for i, candidate in enumerate(ready):
            if not in_time():
                for left in ready[i:]:
                    left.discard()
                return
            trial = self.time_in_task(candidate, task)
            candidate.discard()
            yield trial

    def _elsewhere(
        self,
        candidates: Sequence[tuple[Config, Schedule]],
        in_time: Callable[[], bool],
        room: Callable[[], int],
    ) -> Iterator[Trial]:
        """Build some candidates while others are timed on devices elsewhere.

        No more candidates are sent than there are free devices, so that none starts after its time is over.
        """
        n = usable_cores()
        parts = deque(candidates[i : i + n] for i in range(0, len(candidates), n))
        ready: deque[Built] = deque()
        running: list[_Running] = []
        with ThreadPoolExecutor(1) as aside:
            building = aside.submit(self.build, parts.popleft()) if parts else None
            try:
                while building or ready or running:
                    while ready and room() > 0 and in_time():
                        running.append(self._start(ready.popleft()))
                    if building and (building.done() or not running):
                        built, building = building.result(), None
                        yield from _not_built(built)
                        ready += [candidate for candidate in built if candidate.run_input is not None]
                        if parts and in_time():
                            building = aside.submit(self.build, parts.popleft())
                    elif ended := [r for r in running if r.future.done()]:
                        for r in ended:
                            running.remove(r)
                            yield r.ended()
                    elif running:
                        time.sleep(POLL_S)
                    else:  # the time is over
                        return
            finally:
                left = [*ready, *(r.candidate for r in running)]
                if building is not None and building.exception() is None:
                    left += building.result()
                for candidate in left:
                    candidate.discard()

    def _start(self, candidate: Built) -> _Running:
        start_s = time.perf_counter()
        return _Running(candidate, self._runner.run([candidate.run_input])[0], start_s)

    def build(self, candidates: Sequence[tuple[Config, Schedule]]) -> list[Built]:
        """Build all candidates. Whoever asked for it runs and discards them.

        Raises:
            EnvironmentFault: at a failure that no candidate is to blame for; there is no trial for it.
        """
        start = time.perf_counter()
        results = self._builder.build([ms.builder.BuilderInput(s.mod, self._target) for _, s in candidates])
        build_s = (time.perf_counter() - start) / len(candidates)
        built = []
        for (config, schedule), result in zip(candidates, results, strict=True):
            _stop_at_fault(result.error_msg)
            run_input, error = None, "" if result.error_msg is None else str(result.error_msg)
            if not error:
                run_input = ms.runner.RunnerInput(result.artifact_path, self._target.kind.name, args_info_of(schedule))
            built.append(Built(config, run_input, error, build_s))
        return built

    def report(self) -> list[str]:
        """What devices elsewhere failed at, a line for each."""
        return self._runner.report() if self._room is not None else []

    @property
    def can_cool(self) -> bool:
        """Whether candidates can be timed with cold caches: on a CPU, with a runner of Chameleon's."""
        return self._target.kind.name == "llvm" and hasattr(self._runner, "cold")

    def time(self, candidate: Built, *, cold: bool = False) -> Trial:
        """Time one candidate that was built at full length, whatever is known of its task; keep the artifact.

        Args:
            cold: with cold caches, all arguments but the first; only if `can_cool`.
        """
        if not cold:
            return self._timed(candidate, None)
        runner: Any = self._runner
        runner.cold = True
        try:
            return self._timed(candidate, None)
        finally:
            runner.cold = False

    def time_in_task(self, candidate: Built, task: str) -> Trial:
        """Time one candidate as far as it takes to compare it with the best of its task; keep the artifact."""
        return self._timed(candidate, task)

    def _timed(self, candidate: Built, task: str | None) -> Trial:
        if isinstance(self._runner, WarmRunner):
            self._runner.task = task
        running = self._start(candidate)
        return _trial(candidate, running.future.result(), time.perf_counter() - running.start_s)


@dataclass(frozen=True)
class _Running:
    """A candidate on a device."""

    candidate: Built
    future: ms.runner.RunnerFuture
    start_s: float

    def ended(self) -> Trial:
        """Its trial, once the future is done; the artifact is removed."""
        self.candidate.discard()
        return _trial(self.candidate, self.future.result(), time.perf_counter() - self.start_s)


def local_measurer(target: Target, stack: ExitStack) -> Measurer:
    """A measurer on the machine that this process runs on; the stack closes what it holds."""
    return Measurer(target, stack.enter_context(WarmBuilder()), stack.enter_context(WarmRunner()))


def _trial(candidate: Built, result: ms.runner.RunnerResult, run_s: float) -> Trial:
    _stop_at_fault(result.error_msg)
    timings = {"build": round(candidate.build_s, 4), "run": round(run_s, 4)}
    return measured_trial(candidate.config, result.run_secs, result.error_msg, timings)


def _not_built(built: Sequence[Built]) -> Iterator[Trial]:
    """The trials of the candidates that could not be built."""
    for candidate in built:
        if candidate.run_input is None:
            timings = {"build": round(candidate.build_s, 4)}
            yield failed_trial(candidate.config, candidate.error, timings, building=True)


def _stop_at_fault(error_msg: str | None) -> None:
    if (cause := environment_cause(error_msg)) is not None:
        raise EnvironmentFault(cause)
