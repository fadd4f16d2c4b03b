"""Turns a searcher's configurations into schedules worth measuring; each schedule is measured once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from tvm.s_tir import Schedule

from chameleon.search import Searcher, Status, Trial
from tuners.store_features import StoreFeatures
from tuners.trace_space import Refused, TraceSpace

Config = tuple[int, ...]


class Proposals:
    """What a searcher proposes, without what TVM refuses and without a schedule that came before under other digits.

    A refusal costs no measurement: the searcher is told at once (`Status.INVALID`) and is asked for another
    configuration. TVM moves compute locations that do not fit, so several configurations can give the same schedule.
    This schedule is measured once, and its outcome is told once, under its canonical digits. The other configurations
    are told as aliases: the searcher does not ask for them again, and does not count them.

    Args:
        max_refusals: how many configurations in a row may give nothing to measure before `next` gives up.
        programs: the searcher's features of programs, if it has them; schedules made for them are not made again.
    """

    def __init__(
        self,
        traces: TraceSpace,
        searcher: Searcher,
        max_refusals: int = 2000,
        programs: StoreFeatures | None = None,
    ) -> None:
        if max_refusals < 1:
            raise ValueError(f"max_refusals must be at least 1, got {max_refusals}")
        self.refusals: Counter[str] = Counter()
        self.repeats = 0
        self._traces = traces
        self._searcher = searcher
        self._max_refusals = max_refusals
        self._programs = programs
        self._seen: set[Config] = set()  # canonical digits of the schedules that were proposed, refused or told

    def next(self, n: int) -> list[tuple[Config, Schedule]]:
        """Up to `n` canonical configurations with their finished schedules.

        They are as many as the searcher gives at once, since its first plans are small. There are none when the space
        is exhausted, or when `max_refusals` configurations in a row gave nothing to measure (`refusals` says why).
        """
        found: list[tuple[Config, Schedule]] = []
        wanted, in_vain = n, 0
        while len(found) < wanted and in_vain < self._max_refusals:
            asked = self._searcher.ask_planned(wanted - len(found))
            if len(asked) == 0:
                break
            wanted = min(wanted, len(found) + len(asked))
            for row in asked:
                config = tuple(int(d) for d in row)
                candidate = self._candidate(config)
                in_vain = 0 if candidate else in_vain + 1
                found += [candidate] if candidate else []
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the outcomes of canonical configurations, whether they were asked for or not (history).

        Raises:
            ValueError: if one was told before, or is not of this space.
        """
        self._searcher.tell(trials)
        self._seen.update(t.config for t in trials)

    def _candidate(self, config: Config) -> tuple[Config, Schedule] | None:
        """The schedule of a configuration, or None if it is refused or came before."""
        canonical = config
        try:
            finished = self._programs.take(config) if self._programs else None
            schedule, digits = finished or self._traces.replay(config)
            canonical = tuple(int(d) for d in digits)
            if canonical != config:
                self._searcher.tell_aliases(np.array([config]))
            if canonical in self._seen:
                self.repeats += 1
                return None
            if finished is None:
                self._traces.post_process(schedule, digits)
        except Refused as refusal:
            self.refusals[str(refusal)] += 1
            self.tell([Trial(canonical, Status.INVALID, message=str(refusal))])
            return None
        self._seen.add(canonical)
        return canonical, schedule
