"""From candidates to trials, through any builder and runner of MetaSchedule."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.measure import WarmRunner
from chameleon.measure.preflight import check_environment
from chameleon.search import Trial
from chameleon.workers.faults import EnvironmentFault
from tuners.meta_schedule import args_info_of
from tuners.outcomes import environment_cause, failed_trial, measured_trial
from tuners.proposals import Config


@dataclass(frozen=True)
class Built:
    """A candidate after its build: `run_input` if it can be run, otherwise why not."""

    config: Config
    run_input: ms.runner.RunnerInput | None
    error: str
    build_s: float

    def discard(self) -> None:
        """Remove its artifact: the builder leaves it to whoever runs it. In MetaSchedule its own loop removes it."""
        if self.run_input is not None:
            shutil.rmtree(Path(str(self.run_input.artifact_path)).parent, ignore_errors=True)


class Measurer:
    """Measures candidates with any MetaSchedule builder and runner; the results are trials.

    Args:
        together: how many candidates the runner gets at once. On this machine it is 1, so that each result is recorded
            before the next candidate is timed. It is more where several devices wait at a tracker.
    """

    def __init__(self, target: Target, builder: ms.Builder, runner: ms.Runner, together: int = 1) -> None:
        self._target = target
        self._builder = builder
        self._runner = runner
        self._together = together

    def check(self) -> None:
        """Build and time one tiny kernel, with the same builder and runner.

        Raises:
            EnvironmentFault: if that fails, so that no candidate could succeed.
        """
        check_environment(self._target, self._builder, self._runner)

    def __call__(
        self, candidates: Sequence[tuple[Config, Schedule]], *, task: str, in_time: Callable[[], bool]
    ) -> Iterator[Trial]:
        """Build all candidates, then time them; a trial is yielded as soon as it is known, failures included.

        Args:
            task: the key of their task; the runner compares a candidate with the best of its task.
            in_time: asked before candidates are run; once it says no, the candidates that are left are dropped.
        """
        built = self.build(candidates)
        for candidate in built:
            if candidate.run_input is None:
                timings = {"build": round(candidate.build_s, 4)}
                yield failed_trial(candidate.config, candidate.error, timings, building=True)
        ready = [candidate for candidate in built if candidate.run_input is not None]
        for i in range(0, len(ready), self._together):
            if not in_time():
                for candidate in ready[i:]:
                    candidate.discard()
                return
            yield from self._run(ready[i : i + self._together], task)

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
            return next(self._timed([candidate], None))
        runner: Any = self._runner
        runner.cold = True
        try:
            return next(self._timed([candidate], None))
        finally:
            runner.cold = False

    def _run(self, ready: Sequence[Built], task: str) -> Iterator[Trial]:
        for candidate, trial in zip(ready, self._timed(ready, task), strict=True):
            candidate.discard()
            yield trial

    def _timed(self, ready: Sequence[Built], task: str | None) -> Iterator[Trial]:
        start = time.perf_counter()
        if isinstance(self._runner, WarmRunner):
            self._runner.task = task
        futures = self._runner.run([candidate.run_input for candidate in ready])
        for candidate, future in zip(ready, futures, strict=True):
            result = future.result()
            _stop_at_fault(result.error_msg)
            run_s = (time.perf_counter() - start) / len(ready)
            timings = {"build": round(candidate.build_s, 4), "run": round(run_s, 4)}
            yield measured_trial(candidate.config, result.run_secs, result.error_msg, timings)


def _stop_at_fault(error_msg: str | None) -> None:
    if (cause := environment_cause(error_msg)) is not None:
        raise EnvironmentFault(cause)
