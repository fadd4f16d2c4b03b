"""What has been measured of a task: its trials, its best schedules, and which of them were timed again."""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from chameleon.jobs.records import Config, Confirmation, Records
from chameleon.search import Trial
from tuners.outcomes import environment_cause, failed_trial, failure_reason


class Measured:
    """The trials and confirmations of one task.

    Args:
        key: of the task.
        events: the trials and confirmations, in the order of measuring.
        n_contenders: how many schedules count as the few best.
        origins: by configuration the key of the task whose schedule it was; the others are the task's own.
    """

    def __init__(
        self,
        key: str,
        events: Sequence[Trial | Confirmation],
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
        for event in events:
            if isinstance(event, Confirmation):
                self.confirm(event)
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
        self._choose()

    def drop(self, config: Config) -> None:
        """Take the next best schedule for the best: that of this configuration computes wrong values."""
        self._succeeded = [t for t in self._succeeded if t.config != config]
        self._choose()

    def contenders(self) -> list[Trial]:
        """The few best schedules, the best first, by their confirmed times where there are some."""
        return heapq.nsmallest(self.n_contenders, self._believed(), key=self._believed_s)

    def slowness(self) -> dict[Config, float]:
        """For each schedule that works its time, where that of the best is 1."""
        return {t.config: self._believed_s(t) / self.now_s for t in self._believed()} if self.now_s else {}

    @property
    def unconfirmed(self) -> bool:
        """Whether the best schedule may only have been lucky: it has rivals and was not timed again beside them."""
        return self.best is not None and self.best.config not in self._confirmed and len(self.contenders()) > 1

    def _choose(self) -> None:
        """Take the best of the confirmed schedules for the best; where there are none, the best of all."""
        rivals = self._believed()
        confirmed = [t for t in rivals if t.config in self._confirmed]
        self.best = min(confirmed or rivals, key=self._believed_s, default=None)
        self.now_s = self._believed_s(self.best) if self.best else None

    def _believed(self) -> list[Trial]:
        """The trials that succeeded, without those that failed when they were timed again."""
        return [t for t in self._succeeded if self._believed_s(t) < math.inf]

    def _believed_s(self, trial: Trial) -> float:
        return self._confirmed.get(trial.config, trial.seconds or math.inf)


def usable_events(records: Records, key: str) -> list[Trial | Confirmation]:
    """What is on record of a task: wrong schedules as failures, without failures of the environment."""
    events = (usable_event(event, records.wrong.get(key, ())) for event in records.tasks[key].events)
    return [event for event in events if event is not None]


def usable_event(event: Trial | Confirmation, wrong: Collection[Config]) -> Trial | Confirmation | None:
    """An event, a wrong schedule as a failure; None if the environment was to blame for it.

    Earlier versions recorded failures of the environment.
    """
    if not isinstance(event, Trial):
        return event
    if event.config in wrong:
        return failed_trial(event.config, "wrong_values: the network's outputs were wrong with it", event.timings)
    return None if event.seconds is None and environment_cause(event.message) is not None else event
