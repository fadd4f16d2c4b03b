"""Compares the next best schedules with the best ones in the compiled network itself, at the end of a run.

What is fastest alone need not be fastest in the network: other kernels run before and after, and all of them share
caches and threads. So for the kernels that take most of the network's time, the schedules that are nearly as good take
their turn. The network is compiled with each of them, compared with its reference, and timed beside the network as it
is. Only what makes it faster is kept.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from chameleon.jobs.bench import BenchConfig, rounds_of_executables
from chameleon.jobs.compile import compile_model
from chameleon.jobs.in_network import ProfileConfig, profile_network
from chameleon.jobs.ledger import Exchange
from chameleon.jobs.measurer import Measures
from chameleon.jobs.records import Records
from chameleon.jobs.run_folder import Opened
from chameleon.jobs.session import Session, database_of
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.jobs.verify import Verifier
from chameleon.kernels.lower import kernel_tasks
from chameleon.search import Trial

MIN_SHARE = 0.03
"""A kernel that takes a smaller share of the network's time is left as it is: its rivals cannot change much."""

CLOSE_FACTOR = 1.15
"""A schedule that is slower alone than the best by this factor is not tried in the network."""

WON_ROUNDS = 0.75
"""Share of the rounds in which a rival must be faster. Noise alone gives half."""

NETWORK_FACTOR = 3
"""How many times longer it takes to compile a network and to compare its outputs than to build each of its kernels."""

TURNS = BenchConfig(rounds=8, runs=4)


def exchange_best(
    job: Opened,
    session: Session,
    _measurer: Measures,
    records: Records,
    model: str,
    watch: Callable[[Session], None],
) -> int:
    """Try the rivals of the best schedules in the network, those of the costliest kernels first, while there is time.

    Args:
        model: name of the model that is tuned, for the records.
        watch: called before each task.

    Returns:
        How many schedules were compared now.
    """
    session.exchange_kept_s = 0.0  # what is not needed for it goes back to the search
    if not any(tuner.rivals(CLOSE_FACTOR) for tuner in session.tasks):
        return 0
    start_s, before_s = session.elapsed_s, session.exchanged_s
    builds_s = sum(t.best.timings.get("build", 0.3) for t in session.tasks if t.best)
    # The first network and one other have to be compiled before anything is learnt.
    if session.exchange_left_s < 2 * NETWORK_FACTOR * builds_s:
        return 0
    try:
        with Verifier(job.model, job.target) as verifier:
            trier = _Trier(job, session, verifier, lambda: before_s + session.elapsed_s - start_s)
            return trier.run(records, model, watch)
    finally:
        session.current = None
        session.exchanged_s = before_s + session.elapsed_s - start_s


class _Trier:
    """Compiles the network with one schedule exchanged, again and again.

    Args:
        spent_s: tells how many seconds all of this has taken so far.
    """

    def __init__(self, job: Opened, session: Session, verifier: Verifier, spent_s: Callable[[], float]) -> None:
        self._job, self._session, self._verifier, self._spent_s = job, session, verifier, spent_s
        self._longest_s = 0.0  # of one comparison, compiling included

    def run(self, records: Records, model: str, watch: Callable[[Session], None]) -> int:
        tuned = [t for t in self._session.tasks if t.best is not None]
        now = self._compiled(tuned)
        if now is None:
            return 0  # `ship` finds what is wrong
        made = 0
        for tuner in self._costliest(tuned, now):
            self._session.current = self._session.tasks.index(tuner)
            watch(self._session)
            while rivals := tuner.rivals(CLOSE_FACTOR):
                if not self._in_time():
                    return made
                found, other = self._compare(tuned, tuner, rivals[0], now, model)
                made += 1
                if found is None:
                    records.mark_wrong(tuner.key, rivals[0].config)
                    tuner.drop(rivals[0].config)
                    continue
                records.exchange(tuner.key, found, elapsed_s=self._session.elapsed_s)
                tuner.exchange(found)
                now = other if found.winner == rivals[0].config else now
        return made

    def _in_time(self) -> bool:
        """Whether another comparison is expected to end in time."""
        self._session.exchanged_s = self._spent_s()
        return self._session.exchange_left_s > self._longest_s

    def _costliest(self, tuned: Sequence[TaskTuner], executable: Any) -> list[TaskTuner]:
        """The tasks that have rivals and take a good share of the network's time, the largest share first."""
        profile = profile_network(self._job.model, self._job.target, executable, ProfileConfig(rounds=2))
        keys, seconds = kernel_tasks(self._job.lowered), Counter[str]()
        for name, s in profile.kernels_s.items():
            if name in keys:
                seconds[keys[name]] += s
        least_s = MIN_SHARE * sum(profile.kernels_s.values())
        found = [t for t in tuned if seconds[t.key] >= least_s and t.rivals(CLOSE_FACTOR)]
        return sorted(found, key=lambda t: -seconds[t.key])

    def _compare(
        self, tuned: Sequence[TaskTuner], tuner: TaskTuner, rival: Trial, now: Any, model: str
    ) -> tuple[Exchange | None, Any]:
        """Which of two schedules the network is faster with; None if it is wrong with the rival."""
        start_s, best = time.monotonic(), tuner.best
        assert best is not None  # it has rivals
        tuner.best = rival
        try:
            other = self._compiled(tuned)
        finally:
            tuner.best = best
        if other is None:
            return None, None
        rounds = rounds_of_executables(self._job.model, self._job.target, {"best": now, "rival": other}, TURNS)
        self._longest_s = max(self._longest_s, time.monotonic() - start_s)
        if is_faster(rounds["rival"], rounds["best"]):
            return Exchange(rival.config, best.config, (rounds["rival"], rounds["best"]), model), other
        return Exchange(best.config, rival.config, (rounds["best"], rounds["rival"]), model), None

    def _compiled(self, tuned: Sequence[TaskTuner]) -> Any | None:
        """The network with the best schedules; None if it does not compute what it should."""
        start_s = time.monotonic()
        compiled = compile_model(self._job.lowered, self._job.target, database_of(tuned, self._job.target))
        agrees = self._verifier.check_executable(compiled.executable).agrees
        self._longest_s = max(self._longest_s, time.monotonic() - start_s)
        return compiled.executable if agrees else None


def is_faster(rival_s: Sequence[float], best_s: Sequence[float]) -> bool:
    """Whether a network is faster with a rival: by the median, and in nearly every round.

    Args:
        rival_s: the latency in each round.
        best_s: the latency of the network as it is, in the same rounds.
    """
    won = sum(r < b for r, b in zip(rival_s, best_s, strict=True))
    return won >= WON_ROUNDS * len(best_s) and statistics.median(rival_s) < statistics.median(best_s)
