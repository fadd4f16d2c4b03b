"""One task of a network while it is tuned: its space, its searcher, and what has been measured of it."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import heapq
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from tvm.s_tir import Schedule

from chameleon.jobs.allocate import Progress
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.records import Confirmation
from chameleon.jobs.teachers import Teacher
from chameleon.kernels.lower import Task
from chameleon.search import Trial, make_searcher, warm_start
from chameleon.search.kin import kin_among
from tuners.outcomes import failure_reason
from tuners.proposals import Config, Proposals
from tuners.trace_space import TraceSpace


class TaskTuner:
    """One task: its space, its searcher, and what has been measured.

    Args:
        task: the workload.
        history: what earlier runs recorded, in that order; the searcher is told of it first.
        borrowed: how many trials of the history were made while another model was tuned.
        teachers: the spaces and trials of other tasks, asked for when a batch is proposed for the first time.
        shared: whether tuning another model has done all that there is to do; if so, the task counts as done.
    """

    def __init__(
        self,
        task: Task,
        traces: TraceSpace,
        config: TuneConfig,
        rng: np.random.Generator,
        history: Sequence[Trial | Confirmation],
        borrowed: int = 0,
        shared: bool = False,
        teachers: Callable[[], Sequence[Teacher]] = tuple,
    ) -> None:
        self.task = task
        self.traces = traces
        self.borrowed = borrowed
        self.shared = shared
        self.failures: Counter[str] = Counter()
        self.best: Trial | None = None
        self.now_s: float | None = None  # seconds of the best schedule so far, None before the first success
        self.best_s: list[float] = []
        self._confirm = config.confirm
        self._succeeded: list[Trial] = []
        self._confirmed: dict[Config, float] = {}  # median of the rounds, infinite if it failed this time
        self._given_up = False
        self._teachers, self._taught = teachers, False
        self._searcher = make_searcher(config.searcher, traces.space, rng, **config.options)
        self._proposals = Proposals(traces, self._searcher, config.max_refusals)
        for event in history:
            if isinstance(event, Confirmation):
                self.confirm(event)
            else:
                self._note(event)
        self._proposals.tell([event for event in history if isinstance(event, Trial)])

    @property
    def progress(self) -> Progress:
        done = self.shared or self._given_up or self._searcher.exhausted
        return Progress(operator_of(self.task.name), self.task.weight, self.task.flop, self.best_s, exhausted=done)

    def give_up(self) -> None:
        """Propose nothing any more."""
        self._given_up = True

    @property
    def refusals(self) -> Counter[str]:
        """What TVM refused before anything was built, by reason."""
        return self._proposals.refusals

    def propose(self, n: int) -> list[tuple[Config, Schedule]]:
        """Up to `n` configurations with their schedules; none when the space is exhausted or everything is refused."""
        if not self._taught:
            self._taught = True
            kin = kin_among(self.traces.space, self._teachers())
            warm_start(self._searcher, kin, **({"starts": 0} if self.best_s else {}))
        found = self._proposals.next(n)
        if not found:
            self.give_up()
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the results of proposals, or of earlier runs."""
        self._proposals.tell(trials)
        for trial in trials:
            self._note(trial)

    def contenders(self) -> list[Trial]:
        """The few best schedules, the best first, by their confirmed times where there are some."""
        believed = [t for t in self._succeeded if self._believed_s(t) < math.inf]
        return heapq.nsmallest(self._confirm.contenders, believed, key=self._believed_s)

    @property
    def unconfirmed(self) -> bool:
        """Whether the best schedule may only have been lucky: it has rivals and was not timed again beside them."""
        return self.best is not None and self.best.config not in self._confirmed and len(self.contenders()) > 1

    @property
    def confirming_s(self) -> float:
        """Estimated seconds that timing the best schedules again takes, 0 if there is no need."""
        if not self.unconfirmed:
            return 0.0
        rounds = self._confirm.rounds
        return sum(t.timings.get("build", 0.3) + rounds * t.timings.get("run", 0.3) for t in self.contenders())

    @property
    def teacher(self) -> Teacher:
        """What this task tells others: its space and its successful trials."""
        return self.traces.space, self._succeeded

    def confirm(self, confirmation: Confirmation) -> None:
        """Take the times of the best schedules, timed again: the best of these medians is the best schedule."""
        for config, seconds in confirmation.seconds.items():
            self._confirmed[config] = statistics.median(seconds) if seconds else math.inf
        self._choose()

    def drop(self, config: Config) -> None:
        """Take the next best schedule for the best: that of this configuration computes wrong values."""
        self._succeeded = [t for t in self._succeeded if t.config != config]
        self._choose()

    def _choose(self) -> None:
        """Take the best of the confirmed schedules for the best; where there are none, the best of all."""
        rivals = [t for t in self._succeeded if self._believed_s(t) < math.inf]
        confirmed = [t for t in rivals if t.config in self._confirmed]
        self.best = min(confirmed or rivals, key=self._believed_s, default=None)
        self.now_s = self._believed_s(self.best) if self.best else None

    def _believed_s(self, trial: Trial) -> float:
        return self._confirmed.get(trial.config, trial.seconds or math.inf)

    def _note(self, trial: Trial) -> None:
        now_s = self.now_s or math.inf
        if trial.seconds is None:
            self.failures[failure_reason(trial.message)] += 1
        else:
            self._succeeded.append(trial)
            if trial.seconds < now_s:
                self.best = trial
                self.now_s = now_s = trial.seconds
        self.best_s.append(now_s)


def operator_of(name: str) -> str:
    """The leading operator of a task: `conv2d` of `fused_conv2d12_add_relu`."""
    match = re.match(r"(?:fused_)?([a-z_]+?(?:[123]d)?)\d*(?:_|$)", name)
    return match[1] if match else name
