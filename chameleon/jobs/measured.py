"""What has been measured of a task: its trials, its best schedules, and which of them were timed again.

The best schedule is chosen by the best measurement that there is. First by the trials. Then by those that were timed
again, with cold caches where that was done. Then by those that were compared in the network itself. Every other time,
`now_s` among them, is that of a kernel that runs again and again, so that trials and schedules can be compared.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from chameleon.jobs.ledger import Config, Confirmation, Event, Exchange, TaskRecords
from chameleon.jobs.records import Records
from chameleon.search import Trial
from tuners.outcomes import environment_cause, failed_trial, failure_reason


class Measured:
    """The trials and confirmations of one task.

    Args:
        key: of the task.
        events: the trials, confirmations and exchanges, in the order of measuring.
        n_contenders: how many schedules count as the few best.
        origins: by configuration the key of the task whose schedule it was; the others are the task's own.
    """

    def __init__(
        self,
        key: str,
        events: Sequence[Event],
        n_contenders: int,
        origins: Mapping[Config, str] = MappingProxyType({}),
    ) -> None:
        self.key = key
        self.origins = origins
        self.trials: list[Trial] = []
        self.failures: Counter[str] = Counter()
        self.best: Trial | None = None
        self.now_s: float | None = None  # seconds of the best schedule so far, None before the first success
        self.best_s: list[float] = []
        self.n_contenders = n_contenders
        self._succeeded: list[Trial] = []
        self._confirmed: dict[Config, float] = {}  # median of the rounds, infinite if it failed this time
        self._cold: dict[Config, float] = {}  # the same with cold caches
        self._compared: set[tuple[Config, Config]] = set()  # pairs in the network, either way round
        self._lost: dict[Config, Config] = {}  # for each schedule that lost in the network the one that won
        for event in events:
            if isinstance(event, Confirmation):
                self.confirm(event)
            elif isinstance(event, Exchange):
                self.exchange(event)
            else:
                self.note(event)

    def note(self, trial: Trial) -> None:
        """Take a trial."""
        now_s = self.now_s or math.inf
        self.trials.append(trial)
        if trial.seconds is None:
            self.failures[failure_reason(trial.message)] += 1
        else:
            self._succeeded.append(trial)
            if trial.seconds < now_s:
                self.best = trial
                self.now_s = now_s = trial.seconds
        self.best_s.append(now_s)

    def confirm(self, confirmation: Confirmation) -> None:
        """Take the times of the best schedules, timed again: the best of these medians is the best schedule."""
        for config, seconds in confirmation.seconds.items():
            self._confirmed[config] = statistics.median(seconds) if seconds else math.inf
        for config, seconds in confirmation.cold.items():
            self._cold[config] = statistics.median(seconds) if seconds else math.inf
        self._choose()

    def exchange(self, exchange: Exchange) -> None:
        """Take which of two schedules makes the network faster."""
        winner, loser = exchange.winner, exchange.loser
        self._compared |= {(winner, loser), (loser, winner)}
        self._lost.pop(winner, None)
        self._lost[loser] = winner
        self._choose()

    def drop(self, config: Config) -> None:
        """Take the next best schedule for the best: that of this configuration computes wrong values."""
        self._succeeded = [t for t in self._succeeded if t.config != config]
        self._choose()

    def contenders(self) -> list[Trial]:
        """The few best schedules, the best first, by their confirmed times where there are some."""
        return heapq.nsmallest(self.n_contenders, self._believed(), key=self._believed_s)

    def rivals(self, factor: float) -> list[Trial]:
        """The schedules that may be better than the best in the network, and were not compared with it there.

        Args:
            factor: a schedule that is slower than the best by this factor has no chance.
        """
        best = self.best
        if best is None or self.now_s is None:
            return []
        limit_s = factor * self.now_s
        return [
            t
            for t in self.contenders()
            if t.config != best.config
            and self._believed_s(t) <= limit_s
            and t.config not in self._lost
            and (t.config, best.config) not in self._compared
        ]

    @property
    def cold_s(self) -> float | None:
        """Seconds of the best schedule with cold caches; None if it was not timed so."""
        return self._cold.get(self.best.config) if self.best else None

    @property
    def chosen_by(self) -> str | None:
        """What chose the best schedule: `trial`, `confirmation` or `network`; None if there is no best."""
        if self.best is None:
            return None
        config = self.best.config
        if config in self._lost.values():
            return "network"
        return "confirmation" if config in self._confirmed else "trial"

    def slowness(self) -> dict[Config, float]:
        """For each schedule that works its time, where that of the best is 1."""
        return {t.config: self._believed_s(t) / self.now_s for t in self._believed()} if self.now_s else {}

    def ranking(self) -> list[Config]:
        """The schedules that work: the best first, and one that lost in the network behind the one that won."""
        slowness, best = self.slowness(), self.best.config if self.best else None

        def losses(config: Config) -> int:
            beaten = [config]
            while (winner := self._lost.get(beaten[-1])) in slowness and winner not in beaten:
                beaten.append(winner)
            return len(beaten)

        return sorted(slowness, key=lambda config: (config != best, losses(config), slowness[config]))

    @property
    def unconfirmed(self) -> bool:
        """Whether the best schedule may only have been lucky: it has rivals and was not timed again beside them."""
        return self.best is not None and self.best.config not in self._confirmed and len(self.contenders()) > 1

    def _choose(self) -> None:
        """Take the best of the confirmed schedules for the best; where there are none, the best of all.

        Times with cold caches decide where there are some. What lost in the network is not taken.
        """
        rivals = self._believed()
        confirmed = [t for t in rivals if t.config in self._confirmed]
        cold = [t for t in confirmed if t.config in self._cold]
        pool = cold or confirmed or rivals
        known = {t.config for t in rivals}
        undefeated = [t for t in pool if self._lost.get(t.config) not in known]
        seconds = (lambda t: self._cold[t.config]) if cold else self._believed_s
        self.best = min(undefeated or pool, key=seconds, default=None)
        self.now_s = self._believed_s(self.best) if self.best else None

    def _believed(self) -> list[Trial]:
        """The trials that succeeded, without those that failed when they were timed again."""
        return [t for t in self._succeeded if self._believed_s(t) < math.inf]

    def _believed_s(self, trial: Trial) -> float:
        if self._cold.get(trial.config) == math.inf:
            return math.inf
        return self._confirmed.get(trial.config, trial.seconds or math.inf)


def usable_events(records: Records, key: str, model: str | None = None) -> list[Event]:
    """What is on record of a task: wrong schedules as failures, without failures of the environment.

    Args:
        model: what was compared in the network of another model says nothing about this one; None: take all.
    """
    return usable(records.tasks[key], model)


def usable(task: TaskRecords, model: str | None = None) -> list[Event]:
    """The same of what is on record of a task, in whichever environment."""
    events = (usable_event(event, task.wrong) for event in task.events)
    return [event for event in events if event is not None and not _is_of_another(event, model)]


def _is_of_another(event: Event, model: str | None) -> bool:
    return isinstance(event, Exchange) and model is not None and event.model != model


def usable_event(event: Event, wrong: Collection[Config]) -> Event | None:
    """An event, a wrong schedule as a failure; None if the environment was to blame for it.

    Earlier versions recorded failures of the environment.
    """
    if not isinstance(event, Trial):
        return event
    if event.config in wrong:
        return failed_trial(event.config, "wrong_values: the network's outputs were wrong with it", event.timings)
    return None if event.seconds is None and environment_cause(event.message) is not None else event
