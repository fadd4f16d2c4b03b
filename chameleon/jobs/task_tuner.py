"""One task of a network while it is tuned: its space, its searcher, and what has been measured of it."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from tvm.s_tir import Schedule

from chameleon.jobs.allocate import Progress
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.ledger import Event, algorithm_in
from chameleon.jobs.measured import Measured
from chameleon.jobs.teachers import Teacher
from chameleon.kernels.lower import Task
from chameleon.search import Trial, make_searcher, warm_start
from chameleon.search.kin import STARTS, kin_among
from tuners.proposals import Config, Proposals
from tuners.trace_space import Refused, TraceSpace


class TaskTuner(Measured):
    """One task: its space, its searcher, and what has been measured.

    Args:
        task: the workload.
        history: what earlier runs recorded, in that order; the searcher is told of it first.
        borrowed: how many trials of the history were made while another model was tuned.
        first: configurations to measure before the searcher is asked.
        teachers: the spaces and trials of other tasks, asked for when a batch is proposed for the first time.
        shared: whether tuning another model has done all that there is to do; if so, the task counts as done.
        origins: by configuration the key of the task whose schedule it was; the others are the task's own.
        algorithms: the alternatives in its space, with their sketches (`chameleon.kernels.alternatives`).
    """

    def __init__(
        self,
        task: Task,
        traces: TraceSpace,
        config: TuneConfig,
        rng: np.random.Generator,
        history: Sequence[Event],
        borrowed: int = 0,
        shared: bool = False,
        origins: Mapping[Config, str] = MappingProxyType({}),
        teachers: Callable[[], Sequence[Teacher]] = tuple,
        first: Sequence[Config] = (),
        algorithms: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        super().__init__(task.key, history, config.confirm.contenders, origins)
        self._algorithms = algorithms
        self.task = task
        self.traces = traces
        self.borrowed = borrowed
        self.shared = shared
        self.given_up = False
        self.tried: set[Config] = {t.config for t in self.trials}  # measured, or offered
        self._rounds = config.confirm.rounds * (2 if config.confirm.cold else 1)
        self._heard: set[Config] = set()
        self._first = [config for config in first if config not in self.tried]
        self._teachers, self._taught = teachers, False
        self._searcher = make_searcher(config.searcher, traces.space, rng, **config.options)
        self._proposals = Proposals(traces, self._searcher, config.max_refusals)
        self._proposals.tell(self.trials)

    @property
    def progress(self) -> Progress:
        done = self.shared or self.given_up or self._searcher.exhausted
        task, kind = self.task, operator_of(self.task.name)
        return Progress(kind, task.weight, task.flop, self.best_s, exhausted=done, trial_s=self.trial_s)

    @property
    def trial_s(self) -> float:
        """Seconds that a trial of this task has taken lately, building and running; 1 before the first one."""
        lately = [sum(t.timings.values()) for t in self.trials[-16:]]
        return max(statistics.fmean(lately), 1e-3) if lately else 1.0

    @property
    def algorithm(self) -> str | None:
        """The alternative that the best schedule is of; None: TVM's own space of the operator as it is written."""
        return algorithm_in(self._algorithms, self.best)

    def give_up(self) -> None:
        """Propose nothing any more."""
        self.given_up = True

    @property
    def refusals(self) -> Counter[str]:
        """What TVM refused before anything was built, by reason."""
        return self._proposals.refusals

    def hear(self, trials: Iterable[Trial]) -> None:
        """Tell the searcher trials of another task with the same main block; this task's own trials go before."""
        news = [t for t in trials if t.config not in self.tried | self._heard]
        self._heard.update(t.config for t in news)
        self._proposals.tell(news)

    def propose(self, n: int) -> list[tuple[Config, Schedule]]:
        """Up to `n` configurations with their schedules; none when the space is exhausted or everything is refused."""
        while self._first:
            chosen, self._first = self._first[:n], self._first[n:]
            if found := self.offer(chosen):
                return found
        if not self._taught:
            self._taught = True
            kin = kin_among(self.traces.space, self._teachers())
            warm_start(self._searcher, kin, starts=0 if self.best_s else STARTS)
        found = self._proposals.next(n)
        if not found:
            self.give_up()
        return found

    def offer(self, configs: Iterable[Config]) -> list[tuple[Config, Schedule]]:
        """The schedules of configurations that are good elsewhere, without those that do not apply or were tried."""
        found = []
        for config in configs:
            if config in self.tried:  # another run has just measured it
                continue
            self.tried.add(config)
            try:
                schedule, digits = self.traces.replay(config)
                if tuple(digits) != config:
                    raise Refused("replay: it gives another schedule than for the task that it comes from")
                found.append((config, self.traces.post_process(schedule, digits)))
            except Refused as refusal:
                self.refusals[str(refusal)] += 1
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the results of proposals."""
        self._proposals.tell([t for t in trials if t.config not in self._heard])
        self.tried.update(t.config for t in trials)
        for trial in trials:
            self.note(trial)

    @property
    def confirming_s(self) -> float:
        """Estimated seconds that timing the best schedules again takes, 0 if there is no need."""
        if not self.unconfirmed:
            return 0.0
        return sum(t.timings.get("build", 0.3) + self._rounds * t.timings.get("run", 0.3) for t in self.contenders())

    @property
    def teacher(self) -> Teacher:
        """What this task tells others: its space and its successful trials."""
        return self.traces.space, self._succeeded


def operator_of(name: str) -> str:
    """The leading operator of a task: `conv2d` of `fused_conv2d12_add_relu`."""
    match = re.match(r"(?:fused_)?([a-z_]+?(?:[123]d)?)\d*(?:_|$)", name)
    return match[1] if match else name
