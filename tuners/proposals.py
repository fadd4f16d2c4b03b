"""Turns a searcher's configurations into schedules worth measuring; each schedule is measured once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from tvm.s_tir import Schedule

from chameleon.search import Searcher, Status, Trial
from tuners.trace_space import Refused, TraceSpace

Config = tuple[int, ...]


class Proposals:
    """What a searcher proposes, without what TVM refuses and without a schedule that came before under other digits.

    A refusal costs no measurement: the searcher is told at once (`Status.INVALID`) and is asked for another
    configuration. TVM moves compute locations that do not fit, so several configurations can give the same schedule.
    This schedule is measured once, under its canonical digits. The searcher is told the outcome for all of these
    configurations.

    Args:
        max_refusals: how many configurations in a row may give nothing to measure before `next` gives up.
    """

    def __init__(self, traces: TraceSpace, searcher: Searcher, max_refusals: int = 2000) -> None:
        if max_refusals < 1:
            raise ValueError(f"max_refusals must be at least 1, got {max_refusals}")
        self.refusals: Counter[str] = Counter()
        self.repeats = 0
        self._traces = traces
        self._searcher = searcher
        self._max_refusals = max_refusals
        self._outcomes: dict[Config, Trial] = {}
        # for the canonical digits of each schedule that is being measured: the configurations that give it
        self._aliases: dict[Config, list[Config]] = {}
        self._told: set[Config] = set()

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
        told: list[Trial] = []
        for trial in trials:
            if trial.config in self._outcomes:
                raise ValueError(f"configuration {trial.config} was told before; tell each configuration once")
            self._outcomes[trial.config] = trial
            others = [a for a in self._aliases.pop(trial.config, ()) if a != trial.config]
            told += [trial, *(dataclasses.replace(trial, config=a) for a in others)]
        self._tell(told)

    def _candidate(self, config: Config) -> tuple[Config, Schedule] | None:
        """The schedule of a configuration, or None if it is refused, or was measured or is being measured already."""
        try:
            schedule, digits = self._traces.replay(config)
            canonical = tuple(int(d) for d in digits)
            if canonical in self._outcomes:
                self.repeats += 1
                self._tell([dataclasses.replace(self._outcomes[canonical], config=config)])
                return None
            if canonical in self._aliases:
                self.repeats += 1
                self._aliases[canonical].append(config)
                return None
            self._traces.post_process(schedule, digits)
        except Refused as refusal:
            self.refusals[str(refusal)] += 1
            self._tell([Trial(config, Status.INVALID, message=str(refusal))])
            return None
        self._aliases[canonical] = [config]
        return canonical, schedule

    def _tell(self, trials: Sequence[Trial]) -> None:
        fresh = [t for t in trials if t.config not in self._told]
        self._told.update(t.config for t in fresh)
        self._searcher.tell(fresh)
