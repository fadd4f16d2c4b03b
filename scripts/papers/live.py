"""Experiment 1 on hardware: all tuners in one run, in turns, with the same builder and runner.

AutoTVM's own builder and RPC runner measure for all tuners. One tracker and one server serve the whole session, so
that a turn costs no more than its trials. A turn is a number of trials of one tuner on one task. The turns go round
over tasks and tuners, so that whatever else the machine does hits all of them alike. A tuner's clock runs during its
own turns only.
"""

# Pyright sees today's TVM, which has no AutoTVM:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tvm import autotvm
from tvm.rpc.server import Server
from tvm.rpc.tracker import Tracker

from chameleon.errors import unknown
from chameleon.workers.pool import PoolConfig, WorkerPool
from scripts.common.experiment_stats import Run
from scripts.papers.autotvm_kernels import BuildRequest, RunRequest
from scripts.papers.collect_landscape import CATALOGUE, task_spec, this_machine
from scripts.papers.tuners import TUNERS, load_libraries
from tuners.autotvm_replay import make_task

KEY = "papers-live"


@dataclass(frozen=True)
class LivePlan:
    """Which tuners run, and what each of them gets."""

    tuners: tuple[str, ...]
    budget_s: float  # optimisation time of each tuner on each task
    trials: int  # at most so many measurements of each tuner on each task
    slice_trials: int  # trials of one turn
    seed: int


@dataclass
class Contest:
    """The state of one tuner on one task, kept between its turns."""

    task_name: str
    tuner_name: str
    plan: LivePlan
    tuner: Any
    seconds: list[float | None] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    spent_s: float = 0.0
    measuring_s: float = 0.0
    gave_up: bool = False
    _random: tuple[Any, Any] | None = None

    @property
    def over(self) -> bool:
        return self.gave_up or self.spent_s >= self.plan.budget_s or len(self.seconds) >= self.plan.trials

    def turn(self, option: dict[str, Any]) -> None:
        """Let the tuner make its next trials; a turn that runs over the budget still ends."""
        wanted = min(self.plan.slice_trials, self.plan.trials - len(self.seconds))
        before, started = len(self.seconds), time.perf_counter()

        def note(_tuner: Any, _inputs: Any, results: Any) -> None:
            now_s = self.spent_s + time.perf_counter() - started
            for result in results:
                self.seconds.append(None if result.error_no else float(np.mean(result.costs)))
                self.at_s.append(now_s)

        with self._own_random_state():
            self.tuner.tune(n_trial=wanted, measure_option=option, callbacks=[note])
        self.spent_s += time.perf_counter() - started
        self.gave_up = len(self.seconds) - before < wanted

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Give this tuner a random state of its own, from the seed: AutoTVM's tuners all use the global one."""
        outside = random.getstate(), np.random.get_state()  # noqa: NPY002
        if self._random is None:
            random.seed(self.plan.seed)
            np.random.seed(self.plan.seed)  # noqa: NPY002
        else:
            random.setstate(self._random[0])
            np.random.set_state(self._random[1])  # noqa: NPY002
        try:
            yield
        finally:
            self._random = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(outside[0])
            np.random.set_state(outside[1])  # noqa: NPY002

    def run(self) -> Run:
        """The result as a `Run`; the tuner's own time is that of its turns without building and running."""
        tuner_s = round(self.spent_s - self.measuring_s, 3)
        return Run(
            self.task_name,
            self.tuner_name,
            self.plan.seed,
            tuple(self.seconds),
            tuple(self.at_s),
            tuner_s,
            self.gave_up,
        )


@dataclass
class LiveTask:
    """One task with the contests of all tuners."""

    name: str
    spec: dict[str, Any]
    contests: list[Contest]


class Stopwatch:
    """Wraps a builder or runner and notes how long it was at work; everything else is passed on."""

    def __init__(self, real: Any, method: str) -> None:
        self._real, self._method, self.spent_s = real, method, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name != self._method:
            return found

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return found(*arguments)
            finally:
                self.spent_s += time.perf_counter() - started

        return timed


def tasks_named(names: str) -> list[str]:
    """Find tasks of the catalogue by name or, if no name is equal, by prefix; several are separated by commas.

    Raises:
        UsageError: if there is none of that name.
    """
    catalogue, found = list(yaml.safe_load(CATALOGUE.read_text())), []
    for name in names.split(","):
        matching = [name] if name in catalogue else [known for known in catalogue if known.startswith(name)]
        if not matching:
            raise unknown("task", name, catalogue)
        found += matching
    return found


@contextmanager
def local_measuring() -> Iterator[dict[str, Stopwatch]]:
    """Start AutoTVM's builder and RPC runner, with one tracker and one server for all tuners."""
    tracker = Tracker(port=9100, port_end=9900, silent=True)
    server = Server(port=9100, port_end=9900, key=KEY, silent=True, tracker_addr=("127.0.0.1", tracker.port))
    try:
        runner = autotvm.RPCRunner(
            KEY, "127.0.0.1", tracker.port, n_parallel=1, number=1, repeat=5, min_repeat_ms=10, cooldown_interval=0.0
        )
        yield {"builder": Stopwatch(autotvm.LocalBuilder(), "build"), "runner": Stopwatch(runner, "run")}
    finally:
        server.terminate()
        tracker.terminate()


def run_live(plan: LivePlan, names: str, out: Path) -> list[LiveTask]:
    """Run all tuners on all tasks, in turns, until each has spent its budget.

    What was found is written after each round.
    """
    load_libraries()
    out.mkdir(parents=True, exist_ok=True)
    target, session = this_machine(), []
    for name in tasks_named(names):
        spec = task_spec(name, target)
        contests = [Contest(name, t, plan, TUNERS[t].make(make_task(spec), plan.seed)) for t in plan.tuners]
        session.append(LiveTask(name, spec, contests))
    with local_measuring() as option:
        number = 0
        while waiting := [c for task in session for c in task.contests if not c.over]:
            turn = number % len(plan.tuners)  # another tuner begins in each round
            for contest in waiting[turn:] + waiting[:turn]:
                before_s = sum(part.spent_s for part in option.values())
                contest.turn(option)
                contest.measuring_s += sum(part.spent_s for part in option.values()) - before_s
            number += 1
            _save([c.run() for task in session for c in task.contests], out / "runs.jsonl")
            spent_s = sum(c.spent_s for task in session for c in task.contests)
            print(f"round {number}: {len(waiting)} at work, {spent_s:.0f} s of optimisation time", flush=True)
    return session


def _save(runs: Sequence[Run], path: Path) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"kind": "runs"}, *(r.to_json() for r in runs)]))


def best_kernels(session: Sequence[LiveTask], rounds: int) -> dict[str, dict[str, float]]:
    """Build the best configuration of each tuner on each task again and time them in turns: median microseconds."""
    found: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerPool(PoolConfig("scripts.papers.autotvm_kernels:build", 1)) as builder,
        WorkerPool(
            PoolConfig("scripts.papers.autotvm_kernels:one_thread", 1, factory=True, recycle_after=10**6)
        ) as runner,
    ):
        for task in session:
            best = [
                (c.tuner_name, int(c.tuner.best_config.index))
                for c in task.contests
                if c.tuner.best_config is not None
            ]
            requests = [BuildRequest(json.dumps(task.spec), i, f"{folder}/{task.name}-{t}.so") for t, i in best]
            built = builder.map(requests)
            runs = [RunRequest(r.path, o.value, 3, 0.02) for r, o in zip(requests, built, strict=True) if o.ok]
            names = [t for (t, _), o in zip(best, built, strict=True) if o.ok]
            times = np.array([[np.median(o.value) for o in runner.map(runs)] for _ in range(rounds)])
            found[task.name] = {
                n: float(f"{us:.5g}") for n, us in zip(names, np.median(times, axis=0) * 1e6, strict=True)
            }
    return found
