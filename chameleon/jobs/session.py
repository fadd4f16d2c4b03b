"""Tunes the tasks of one network: choose a task, propose candidates for it, build, time and record them, and repeat.

The engine (`chameleon.search`) proposes configurations. `tuners.trace_space` turns them into schedules. Any
MetaSchedule builder and runner measure these. Every result is on disk before the next candidate is timed.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.jobs.allocate import Progress, next_task
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.records import Records
from chameleon.kernels.lower import Task
from chameleon.search import Trial, make_searcher
from tuners.meta_schedule import args_info_of
from tuners.outcomes import failed_trial, failure_reason, measured_trial
from tuners.proposals import Config, Proposals
from tuners.trace_space import TraceSpace


class TaskTuner:
    """One task: its space, its searcher, and what has been measured.

    Args:
        task: the workload.
        history: trials of earlier runs; the searcher is told of them first.
        shared: whether the history comes from tuning another model; if so, the task counts as done.
    """

    def __init__(
        self,
        task: Task,
        traces: TraceSpace,
        config: TuneConfig,
        rng: np.random.Generator,
        history: Sequence[Trial],
        shared: bool,
    ) -> None:
        self.task = task
        self.traces = traces
        self.shared = shared
        self.failures: Counter[str] = Counter()
        self.best: Trial | None = None
        self.best_s: list[float] = []
        self._succeeded: list[Trial] = []
        self._given_up = False
        self._searcher = make_searcher(config.searcher, traces.space, rng, **config.options)
        self._proposals = Proposals(traces, self._searcher, config.max_refusals)
        self.tell(history)

    @property
    def progress(self) -> Progress:
        done = self.shared or self._given_up or self._searcher.exhausted
        return Progress(operator_of(self.task.name), self.task.weight, self.task.flop, self.best_s, exhausted=done)

    @property
    def now_s(self) -> float | None:
        """Seconds of the best schedule so far, `None` before the first success."""
        return self.best.seconds if self.best else None

    @property
    def refusals(self) -> Counter[str]:
        """What TVM refused before anything was built, by reason."""
        return self._proposals.refusals

    def propose(self, n: int) -> list[tuple[Config, Schedule]]:
        """Up to `n` configurations with their schedules; none when the space is exhausted or everything is refused."""
        found = self._proposals.next(n)
        self._given_up = not found
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the results of proposals, or of earlier runs."""
        self._proposals.tell(trials)
        for trial in trials:
            self._note(trial)

    def drop(self, config: Config) -> None:
        """Take the next best schedule for the best: that of this configuration computes wrong values."""
        self._succeeded = [t for t in self._succeeded if t.config != config]
        self.best = min(self._succeeded, key=lambda t: t.seconds or float("inf"), default=None)

    def _note(self, trial: Trial) -> None:
        now_s = self.now_s or float("inf")
        if trial.seconds is None:
            self.failures[failure_reason(trial.message)] += 1
        else:
            self._succeeded.append(trial)
            if trial.seconds < now_s:
                self.best, now_s = trial, trial.seconds
        self.best_s.append(now_s)


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

    def __call__(self, candidates: Sequence[tuple[Config, Schedule]]) -> Iterator[Trial]:
        """Build all candidates, then time them; a trial is yielded as soon as it is known, failures included."""
        start = time.perf_counter()
        built = self._builder.build([ms.builder.BuilderInput(s.mod, self._target) for _, s in candidates])
        build_s = (time.perf_counter() - start) / len(candidates)
        ready = []
        for (config, schedule), result in zip(candidates, built, strict=True):
            if result.error_msg is None:
                run_input = ms.runner.RunnerInput(result.artifact_path, self._target.kind.name, args_info_of(schedule))
                ready.append((config, run_input))
            else:
                yield failed_trial(config, str(result.error_msg), {"build": round(build_s, 4)}, building=True)
        for i in range(0, len(ready), self._together):
            yield from self._run(ready[i : i + self._together], build_s)

    def _run(self, ready: Sequence[tuple[Config, ms.runner.RunnerInput]], build_s: float) -> Iterator[Trial]:
        start = time.perf_counter()
        futures = self._runner.run([run_input for _, run_input in ready])
        for (config, run_input), future in zip(ready, futures, strict=True):
            result = future.result()
            timings = {"build": round(build_s, 4), "run": round((time.perf_counter() - start) / len(ready), 4)}
            # The builder leaves the artifact to whoever ran it. In MetaSchedule its own tuning loop removes it.
            shutil.rmtree(Path(run_input.artifact_path).parent, ignore_errors=True)
            yield measured_trial(config, result.run_secs, result.error_msg, timings)


@dataclass
class Session:
    """The state of tuning one network, also for those who watch it."""

    tasks: list[TaskTuner]
    config: TuneConfig
    elapsed_s: float
    current: int | None = None

    @property
    def trials(self) -> int:
        return sum(len(t.best_s) for t in self.tasks if not t.shared)

    @property
    def failures(self) -> Counter[str]:
        return sum((t.failures for t in self.tasks), Counter())

    @property
    def used_up(self) -> bool:
        c = self.config
        return (c.trials is not None and self.trials >= c.trials) or (
            c.time_budget_s is not None and self.elapsed_s >= c.time_budget_s
        )

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the budget is used up.

        `None` if only the number of trials is bounded and there was no trial yet.
        """
        by_time = None if self.config.time_budget_s is None else self.config.time_budget_s - self.elapsed_s
        by_trials = None
        if self.config.trials is not None and self.trials:
            by_trials = (self.config.trials - self.trials) * self.elapsed_s / self.trials
        known = [s for s in (by_time, by_trials) if s is not None]
        return max(0.0, min(known)) if known else None


def open_session(tasks: Sequence[Task], target: Target, records: Records, config: TuneConfig, model: str) -> Session:
    """Make the spaces and searchers of all tasks, and tell the searchers what the records hold."""
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(len(tasks))]
    tuners = []
    for task, rng in zip(tasks, rngs, strict=True):
        traces = TraceSpace(task.mod, target, seed=config.seed)
        history = records.add_task(task.key, task.name, traces.space)
        shared = any(owner != model for _, owner in records.tasks[task.key].trials)
        wrong = records.wrong.get(task.key, ())
        history = [_wrong_trial(t) if t.config in wrong else t for t in history]
        tuners.append(TaskTuner(task, traces, config, rng, history, shared))
    return Session(tuners, config, records.elapsed_s.get(model, 0.0))


def _wrong_trial(trial: Trial) -> Trial:
    """The trial of a schedule that turned out to compute wrong values: a failure, whatever its time was."""
    return failed_trial(trial.config, "wrong_values: the network's outputs were wrong with it", trial.timings)


def tune(session: Session, measurer: Measurer, records: Records, model: str, watch: Callable[[Session], None]) -> int:
    """Measure until the budget is used up or nothing is left to try.

    Args:
        model: name of the model that is tuned, for the records.
        watch: called before each batch and after each trial.

    Returns:
        How many trials were made now.
    """
    made, before_s, start = 0, session.elapsed_s, time.monotonic()
    while not session.used_up:
        session.current = next_task([t.progress for t in session.tasks], session.config.allocation)
        if session.current is None:
            break
        tuner = session.tasks[session.current]
        watch(session)
        candidates = tuner.propose(_batch_size(session, tuner))
        for trial in measurer(candidates) if candidates else ():
            session.elapsed_s = before_s + time.monotonic() - start
            records.append(tuner.task.key, trial, model=model, elapsed_s=session.elapsed_s)
            tuner.tell([trial])
            made += 1
            watch(session)
    session.current = None
    return made


def database_of(tasks: Sequence[TaskTuner], target: Target) -> ms.database.Database:
    """The best schedule of each task as a MetaSchedule database, for `compile_model` or any other use."""
    database = ms.database.MemoryDatabase()
    for tuner in tasks:
        if tuner.best is None or tuner.now_s is None:
            continue
        schedule = tuner.traces.schedule(tuner.best.config)
        database.commit_tuning_record(
            ms.database.TuningRecord(
                schedule.trace,
                database.commit_workload(tuner.task.mod),
                [tuner.now_s],
                target,
                args_info_of(schedule),
            )
        )
    return database


def operator_of(name: str) -> str:
    """The leading operator of a task: `conv2d` of `fused_conv2d12_add_relu`."""
    match = re.match(r"(?:fused_)?([a-z_]+?(?:[123]d)?)\d*(?:_|$)", name)
    return match[1] if match else name


def _batch_size(session: Session, tuner: TaskTuner) -> int:
    """How many candidates to propose for a task; a first batch leaves a share of a small budget to the others."""
    config = session.config
    n = config.batch if tuner.best_s else config.first_batch
    if config.trials is None:
        return n
    if not tuner.best_s:
        n = max(1, min(n, config.trials // len(session.tasks)))
    return min(n, config.trials - session.trials)
