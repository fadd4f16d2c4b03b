"""Tasks that are searched as one, because their main blocks are equal: the leader is searched, the others follow.

The kernels of a network often hold the same convolution with other element-wise work behind it. A schedule of the one
is then nearly always as good for the others (MetaSchedule's anchor blocks, see `tuners.anchors`). So only the searcher
of one task proposes. The other tasks get the few best schedules of the group, which are measured on each task itself.
"""

from __future__ import annotations

import dataclasses
import heapq
import logging
from collections.abc import Iterator, Sequence

from chameleon.jobs.allocate import AllocationConfig, Progress, is_barren
from chameleon.jobs.measured import Measured
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.search import Trial
from tuners.proposals import Config

logger = logging.getLogger("chameleon")


@dataclasses.dataclass(frozen=True)
class Group:
    """One search for several tasks.

    Attributes:
        leader: the task that is searched.
        followers: the tasks that get the best schedules.
        others: what is known of tasks of other models with the same main block.
        done: whether tuning another model has done all the search that there is to do.
    """

    leader: TaskTuner
    followers: Sequence[TaskTuner]
    others: Sequence[Measured]
    done: bool

    @classmethod
    def of(cls, members: Sequence[TaskTuner], others: Sequence[Measured], *, done: bool) -> Group:
        """Make a group, and tell the leader's searcher what is known of the others.

        The leader is the member with the most arithmetic, its occurrences counted: nothing else is known before the
        first trial, and members differ little in the time of one run. Its key decides between equals, so that a run
        that goes on has the same leader.
        """
        leader, *followers = sorted(members, key=lambda t: (-t.task.weight * t.task.flop, t.key))
        for source in (*followers, *others):
            leader.hear(_as_of(source, leader))
        return cls(leader, followers, others, done or any(t.shared for t in members))

    @property
    def members(self) -> list[TaskTuner]:
        return [self.leader, *self.followers]

    @property
    def progress(self) -> Progress:
        """The group as one task: that of the leader, with the weights of all members."""
        mine = self.leader.progress
        done = self.done and (self.leader.best is not None or bool(self.due(self.leader)))
        weight = sum(t.task.weight for t in self.members)
        return dataclasses.replace(mine, weight=weight, exhausted=mine.exhausted or done)

    def due(self, tuner: TaskTuner) -> dict[Config, str]:
        """The few best schedules of the others that a member has not tried, and the task that each comes from."""
        return {config: key for config, key in self._best_for(tuner).items() if config not in tuner.tried}

    def parted(self, config: AllocationConfig) -> Iterator[Group]:
        """The group, without members that its schedules are of no use for: these are searched alone."""
        if not self.followers:
            yield self
            return
        progress = self.leader.progress
        if self.leader.best is None and (progress.exhausted or is_barren(progress, config)):
            logger.warning(
                "%s has no schedule that works, so the tasks like it are tuned without it", self.leader.task.name
            )
            yield dataclasses.replace(self, followers=[])
            yield from Group.of(self.followers, self.others, done=self.done).parted(config)
            return
        lost = [t for t in self.followers if self._is_lost(t)]
        for tuner in lost:
            logger.warning("%s is tuned alone: no schedule of %s works for it", tuner.task.name, self.leader.task.name)
            yield Group(tuner, [], [], False)
        yield dataclasses.replace(self, followers=[t for t in self.followers if t not in lost])

    def _is_lost(self, tuner: TaskTuner) -> bool:
        """Whether a member has tried the few best schedules, and none of them works for it."""
        best = self._best_for(tuner)
        return bool(best) and not best.keys() - tuner.tried and not best.keys() & tuner.slowness().keys()

    def _best_for(self, tuner: TaskTuner) -> dict[Config, str]:
        """The few best schedules of the tasks other than this one, the best first, and the task each comes from.

        A schedule is as good as its time relative to the best of the same task. The leader's time counts before that
        of another task.
        """
        found: dict[Config, tuple[float, str]] = {}
        for source in (*self.members, *self.others):
            for config, slowness in source.slowness().items() if source is not tuner else ():
                found.setdefault(config, (slowness, source.origins.get(config, source.key)))
        best = heapq.nsmallest(self.leader.n_contenders, found, key=lambda config: found[config][0])
        return {config: found[config][1] for config in best}


def _as_of(source: Measured, leader: Measured) -> Iterator[Trial]:
    """The trials of another task with times as if they were the leader's: the best times of both count as equal."""
    factor = leader.now_s / source.now_s if leader.now_s and source.now_s else 1.0
    for trial in source.trials:
        yield dataclasses.replace(trial, seconds=trial.seconds * factor) if trial.seconds else trial
