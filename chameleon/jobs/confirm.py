"""Times the few best schedules of each task again, in turns, at the end of a run.

The best of many measurements is often only the luckiest. So at the end of a run the few best schedules of a task are
built again and timed in several rounds, each at full length. The best median of the rounds decides.

A kernel that is run again and again finds its weights in the caches. In a network other kernels ran before, and only
its input was just written. So each round also times the schedules with cold caches, all but the first argument, where
the runner can do that. Then these times decide.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from chameleon.jobs.config import ConfirmConfig
from chameleon.jobs.ledger import Confirmation
from chameleon.jobs.measurer import Measures, Prepared
from chameleon.jobs.records import Records
from chameleon.jobs.session import Session
from chameleon.jobs.task_tuner import TaskTuner


def confirm_best(
    session: Session, measurer: Measures, records: Records, model: str, watch: Callable[[Session], None]
) -> int:
    """Time the best schedules of each task again, unless that was done since the best changed.

    Tasks that matter most for the network come first. A task is left as it is where the time budget has no room for
    it.

    Args:
        model: name of the model that is tuned, for the records.
        watch: called before each task.

    Returns:
        How many tasks were confirmed now.
    """
    confirmed = 0
    in_time = lambda: session.time_left_s > 0  # noqa: E731
    for tuner in session.by_importance():
        if not tuner.unconfirmed or tuner.confirming_s > session.time_left_s:
            continue
        session.current = session.tasks.index(tuner)
        watch(session)
        found = _time_again(tuner, measurer, session.config.confirm, in_time)
        if found is not None:
            records.confirm(tuner.task.key, found, model=model, elapsed_s=session.elapsed_s)
            tuner.confirm(found)
            confirmed += 1
    session.current = None
    return confirmed


def _time_again(
    tuner: TaskTuner, measurer: Measures, config: ConfirmConfig, in_time: Callable[[], bool]
) -> Confirmation | None:
    """The times of a task's best schedules; None if the time was over before each had its turn."""
    built = measurer.build([(t.config, tuner.traces.schedule(t.config)) for t in tuner.contenders()])
    cools = config.cold and measurer.can_cool
    seconds: dict[tuple[int, ...], list[float]] = {candidate.config: [] for candidate in built}
    cold: dict[tuple[int, ...], list[float]] = {candidate.config: [] for candidate in built if cools}
    racing = [candidate for candidate in built if candidate.ready]
    try:
        for number in range(config.rounds):
            for candidate in racing if number % 2 == 0 else racing[::-1]:
                if not in_time():
                    return Confirmation(seconds, cold) if number > 0 else None
                trial = measurer.time(candidate)
                seconds[candidate.config] = [*seconds[candidate.config], trial.seconds] if trial.seconds else []
                if cools and trial.seconds:
                    again = measurer.time(candidate, cold=True)
                    cold[candidate.config] = [*cold[candidate.config], again.seconds] if again.seconds else []
            racing = [candidate for candidate in racing if seconds[candidate.config]]
            if number > 0:  # one round alone may have been disturbed
                racing = _still_racing(racing, seconds, config.drop_factor)
            if len(racing) < 2:
                break
    finally:
        for candidate in built:
            candidate.discard()
    return Confirmation(seconds, cold)


def _still_racing(
    racing: Sequence[Prepared], seconds: Mapping[tuple[int, ...], Sequence[float]], drop_factor: float
) -> list[Prepared]:
    """Those that were not clearly slower than the best in every round."""
    limit_s = drop_factor * min((statistics.median(seconds[c.config]) for c in racing), default=0.0)
    return [c for c in racing if min(seconds[c.config]) <= limit_s]
