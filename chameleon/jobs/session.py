"""Tunes the tasks of one network: choose a task, propose candidates for it, build, time and record them, and repeat.

The engine (`chameleon.search`) proposes configurations. `tuners.trace_space` turns them into schedules. Any
MetaSchedule builder and runner measure these. Every result is on disk before the next candidate is timed. Tasks with
the same main block are searched as one (`chameleon.jobs.group`).
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from types import MappingProxyType

import numpy as np
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.errors import first_line
from chameleon.jobs.allocate import forecast_gain, next_task
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.failure_row import FailureRow
from chameleon.jobs.group import Group
from chameleon.jobs.ledger import TaskRecords
from chameleon.jobs.measured import Measured, usable, usable_events
from chameleon.jobs.measurer import Measures
from chameleon.jobs.records import Records, RecordsError
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.jobs.teachers import Teacher
from chameleon.kernels.alternatives import ALGORITHMS, DOTS, EXACT
from chameleon.kernels.lower import Task
from tuners.anchors import anchor_key
from tuners.proposals import Config
from tuners.task_space import commit_schedule, task_space

FIRST_TRIAL_S = 1.0
"""Seconds that a trial takes, for want of knowledge before the first one."""


@dataclass
class Session:
    """The state of tuning one network, also for those who watch it.

    Attributes:
        groups: the same tasks; those that are searched as one stand together.
        model: name of the network.
        target: that its kernels are built for.
        before_s: seconds of tuning until the clock was started.
        current: position of the task that is being measured.
        row: ends the run where all candidates fail for one reason.
    """

    tasks: list[TaskTuner]
    groups: list[Group]
    config: TuneConfig
    before_s: float
    model: str = ""
    target: str = ""
    current: int | None = None
    row: FailureRow = field(default_factory=lambda: FailureRow(TuneConfig.max_failures_in_row))
    curve: list[tuple[float, float]] = field(default_factory=list)  # seconds of tuning, and expected of all kernels
    untunable: dict[str, str] = field(default_factory=dict)  # why TVM makes no design space, by the task's name
    _started_s: float | None = None
    exchange_kept_s: float = 0.0  # seconds to keep for comparing schedules in the network
    exchanged_s: float = 0.0  # seconds that this has taken now
    _search_s: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=4))

    @property
    def elapsed_s(self) -> float:
        """Seconds of tuning, earlier runs included."""
        return self.before_s + (0.0 if self._started_s is None else time.monotonic() - self._started_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside this context the time counts as tuning."""
        self._started_s = time.monotonic()
        try:
            yield
        finally:
            self.before_s, self._started_s = self.elapsed_s, None

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Inside this context the time counts as the searcher's."""
        start_s = time.monotonic()
        yield
        self._search_s += time.monotonic() - start_s

    def take_search_s(self) -> float:
        """The seconds that the searchers took since this was asked last."""
        taken, self._search_s = self._search_s, 0.0
        return taken

    @property
    def trials(self) -> int:
        """Trials of this network, without those that came from tuning another one."""
        return sum(len(t.best_s) - t.borrowed for t in self.tasks)

    @property
    def failures(self) -> Counter[str]:
        return sum((t.failures for t in self.tasks), Counter())

    @property
    def time_left_s(self) -> float:
        """Seconds until the deadline, infinite if there is none."""
        budget_s = self.config.time_budget_s
        return math.inf if budget_s is None else budget_s - self.elapsed_s

    @property
    def search_left_s(self) -> float:
        """Seconds until the deadline, without those that are kept for sharing and confirming the best schedules."""
        if self.config.time_budget_s is None:
            return math.inf
        return self.time_left_s - self._kept_s(self.config.time_budget_s * self.config.confirm.budget_share)

    def _kept_s(self, limit_s: float) -> float:
        """Seconds to keep at the end, as far as the limit has room.

        First the best schedules of each group are measured on its other tasks. Then the best of each task are timed
        again, and then close ones are compared in the network.
        """
        kept_s = min(limit_s, self.trial_s * self._n_due)
        for tuner in self.by_importance():
            if kept_s + tuner.confirming_s <= limit_s:
                kept_s += tuner.confirming_s
        return min(limit_s, kept_s + self.exchange_kept_s)

    @property
    def exchange_left_s(self) -> float:
        """Seconds that comparing schedules in the network may take from now on.

        Where no time budget bounds it, it gets the share of the time so far that it would get of a budget.
        """
        config, confirm = self.config, self.config.confirm
        free_s = confirm.exchange_s - self.exchanged_s
        if config.time_budget_s is not None:
            return min(free_s, self.time_left_s)
        return min(free_s, confirm.budget_share * self.elapsed_s - self.exchanged_s)

    @property
    def _n_due(self) -> int:
        """How many trials it takes until every task has tried the best schedules of its group."""
        return sum(len(group.due(tuner)) for group in self.groups for tuner in group.members)

    def by_importance(self) -> list[TaskTuner]:
        """The tasks, those first that take the network most time."""
        return sorted(self.tasks, key=lambda t: t.task.weight * (t.now_s or 0.0), reverse=True)

    @property
    def trial_s(self) -> float:
        """Seconds that a trial has taken lately, building and the searcher's own time included."""
        made = sum(n for _, n in self._recent)
        if made:
            return sum(s for s, _ in self._recent) / made
        return self.elapsed_s / self.trials if self.trials and self.elapsed_s else FIRST_TRIAL_S

    def note_batch(self, seconds: float, trials: int) -> None:
        """Remember how long a batch took, and how far the kernels have come.

        Where several tasks share a search, its best time counts for all of them: they get its schedules at the end.
        """
        if trials:
            self._recent.append((seconds, trials))
        if all(t.now_s for t in self.tasks if not t.given_up):
            shared = [(group.progress.weight, group.leader.now_s or 0.0) for group in self.groups]
            self.curve.append((self.elapsed_s, sum(weight * now_s for weight, now_s in shared)))

    @property
    def forecast(self) -> float | None:
        """The share by which the rest of the budget is expected to lower the kernels' time; None if unknown."""
        left_s = self.left_s
        return forecast_gain(self.curve, math.inf if left_s is None else left_s)

    @property
    def enough(self) -> bool:
        """Whether the rest of the budget is expected to gain less than `config.until`."""
        forecast = self.forecast
        return self.config.until is not None and forecast is not None and forecast < self.config.until

    @property
    def trials_left(self) -> float:
        """Trials until the budget is used up, infinite if there is no bound."""
        return math.inf if self.config.trials is None else self.config.trials - self.trials

    @property
    def search_left(self) -> float:
        """Trials until the budget is used up, without those that are kept for sharing the best schedules."""
        if self.config.trials is None:
            return math.inf
        return self.trials_left - min(self._n_due, int(self.config.trials * self.config.confirm.budget_share))

    @property
    def used_up(self) -> bool:
        """Whether the budget leaves no room for another trial of the search."""
        return self.search_left <= 0 or self.search_left_s < self.trial_s or self.enough

    @property
    def has_room(self) -> bool:
        """Whether the whole budget leaves room for another trial."""
        return self.trials_left > 0 and self.time_left_s >= self.trial_s

    @property
    def has_work(self) -> bool:
        """Whether the budget leaves room for a trial, or for timing the best schedules of a task again."""
        return (
            not self.used_up
            or (self.has_room and self._n_due > 0)
            or any(t.unconfirmed and t.confirming_s <= self.time_left_s for t in self.tasks)
        )

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the budget is used up.

        `None` if only the number of trials is bounded and there was no trial yet.
        """
        by_trials = None
        if self.config.trials is not None and self.trials:
            by_trials = (self.config.trials - self.trials) * self.elapsed_s / self.trials
        known = [s for s in (self.time_left_s, by_trials) if s is not None and s < math.inf]
        return max(0.0, min(known)) if known else None


def open_session(
    tasks: Sequence[Task],
    target: Target,
    records: Records,
    config: TuneConfig,
    model: str,
    teachers: Sequence[Teacher] = (),
) -> Session:
    """Make the spaces and searchers of all tasks, and tell the searchers what the records hold.

    What was best in another environment is measured before anything else: its time there says nothing here.

    Failures on record that the environment was to blame for are left out; earlier versions recorded them. A task for
    which TVM fails to make a design space is left out as well: it keeps its default schedule.

    Args:
        teachers: what was measured elsewhere. With `config.learn` a new task begins with what was fastest there, and
            with what was fastest of the other tasks here.
    """
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(len(tasks))]
    share = math.inf if config.trials is None else config.trials / max(len(tasks), 1)
    is_done = partial(
        _is_done_elsewhere, finished=records.finished, model=model, share=share, first=config.first_batch
    )
    tuners: list[TaskTuner] = []
    untunable = {}

    def taught(task: Task) -> list[Teacher]:
        return [*teachers, *(t.teacher for t in tuners if t.task is not task)] if config.learn else []

    for task, rng in zip(tasks, rngs, strict=True):
        names = _algorithms(records.tasks.get(task.key), config)
        try:
            traces, algorithms = task_space(task.mod, target, names, seed=config.seed)
        except Exception as error:  # TVM's rules fail in many ways, such as a ScheduleError
            untunable[task.name] = first_line(error)
            continue
        anchor = anchor_key(task.mod, traces)
        known = records.add_task(task.key, task.name, traces.space, anchor, algorithms)
        borrowed = sum(owner != model for owner in known.owners.values())
        shared = is_done(known)
        events = usable_events(records, task.key, model)
        first = _best_elsewhere(records.elsewhere(task.key, known.space), config.confirm.contenders)
        history = (events, borrowed, shared, known.origins)
        tuners.append(TaskTuner(task, traces, config, rng, *history, partial(taught, task), first, known.algorithms))
    groups = _groups(tuners, records, config, model, is_done)
    elapsed_s = records.elapsed_s.get(model, 0.0) if any(tuner.best_s for tuner in tuners) else 0.0
    row = FailureRow(config.max_failures_in_row)
    return Session(tuners, groups, config, elapsed_s, model, str(target), row=row, untunable=untunable)


def _best_elsewhere(known: Sequence[TaskRecords], n: int) -> list[Config]:
    """The best `n` schedules of a task in each other environment, those first that were best there."""
    ranked = [Measured("", usable(task), n).ranking()[:n] for task in known]
    return list(dict.fromkeys(config for place in zip_longest(*ranked) for config in place if config is not None))


def _algorithms(known: TaskRecords | None, config: TuneConfig) -> Collection[str]:
    """The names of the alternatives that a task may have: those on record if it is known.

    Raises:
        RecordsError: if those on record are not exact, and the configuration asks for that.
    """
    if known is None:
        return EXACT if config.exact else ALGORITHMS
    others = [name for name in known.algorithms if name not in (*EXACT, DOTS)]
    if config.exact and others:
        raise RecordsError(
            f"the records of task {known.name!r} were made with {', '.join(others)}, which --exact rules "
            "out; give another --out"
        )
    return known.algorithms.keys()


def _groups(
    tuners: Sequence[TaskTuner],
    records: Records,
    config: TuneConfig,
    model: str,
    is_done: Callable[[TaskRecords], bool],
) -> list[Group]:
    """The tasks with the same main block together; if nothing is to be shared, each task alone.

    Args:
        is_done: whether tuning other models has done for a task on record what tuning this one would do.
    """
    if not config.share:
        return [Group.of([tuner], [], done=False) for tuner in tuners]
    ours = {tuner.key for tuner in tuners}
    alike: dict[str, list[TaskTuner]] = {}
    for tuner in tuners:
        alike.setdefault(records.tasks[tuner.key].anchor or tuner.key, []).append(tuner)
    groups = []
    for anchor, members in alike.items():
        known = {key: t for key, t in records.tasks.items() if key not in ours and t.anchor == anchor and t.events}
        others = [
            Measured(key, usable_events(records, key, model), config.confirm.contenders, t.origins)
            for key, t in known.items()
        ]
        groups.append(Group.of(members, others, done=any(map(is_done, known.values()))))
    return groups


def _is_done_elsewhere(known: TaskRecords, finished: set[str], model: str, share: float, first: int) -> bool:
    """Whether tuning other models has done for a workload what tuning this model would do.

    That is judged by its trials and their success, whoever made the first of them: a schedule works, and it has this
    model's share of trials from others. A first batch is enough where the tuning of another model that measured it
    has ended: that one gave it no more for a reason. Otherwise the trials are only a start.

    Args:
        share: the trials of this model's budget that fall to a task, infinite where the time alone is bounded.
        first: the number of candidates of a task's first batch.
    """
    others = Counter(owner for owner in known.owners.values() if owner != model)
    if not others or not any(trial.seconds is not None for trial in known.trials):
        return False
    ended = any(owner in finished for owner in others)
    return others.total() >= (min(share, first) if ended else share)


def tune(session: Session, measurer: Measures, records: Records, model: str, watch: Callable[[Session], None]) -> int:
    """Measure until the budget has no room for another trial or nothing is left to try.

    Args:
        model: name of the model that is tuned, for the records.
        watch: called before each batch and after each trial.

    Returns:
        How many trials were made now.

    Raises:
        EnvironmentFault: if no candidate could be built or run. What was measured is kept.
        ChameleonError: if too many candidates in a row fail for the same reason.
    """
    made = 0
    while not session.used_up:
        session.groups = [part for group in session.groups for part in group.parted(session.config.allocation)]
        chosen = next_task([group.progress for group in session.groups], session.config.allocation)
        if chosen is not None:
            tuner = session.groups[chosen].leader
            n, left_s = _batch_size(session, tuner), session.search_left_s
            made += _measure(
                session, tuner, lambda t=tuner, n=n: t.propose(n), left_s, measurer, records, model, watch
            )
        started = share_best(session, measurer, records, model, watch, only_first=True)
        if chosen is None and not started:
            break
        made += started
    session.current = None
    return made


def share_best(
    session: Session,
    measurer: Measures,
    records: Records,
    model: str,
    watch: Callable[[Session], None],
    *,
    only_first: bool = False,
) -> int:
    """Measure the few best schedules of each group on those of its tasks that have not tried them.

    Args:
        only_first: only tasks without any schedule that works, and only until they have one.

    Returns:
        How many trials were made now.
    """
    made = 0
    group_of = {tuner.key: group for group in session.groups for tuner in group.members}
    for tuner in session.by_importance():
        while not (only_first and tuner.best) and session.has_room and (due := group_of[tuner.key].due(tuner)):
            n = 1 if only_first else int(min(len(due), session.trials_left))
            offer = lambda t=tuner, configs=list(due)[:n]: t.offer(configs)  # noqa: E731
            made += _measure(session, tuner, offer, session.time_left_s, measurer, records, model, watch, due)
    session.current = None
    return made


def _measure(
    session: Session,
    tuner: TaskTuner,
    propose: Callable[[], Sequence[tuple[Config, Schedule]]],
    left_s: float,
    measurer: Measures,
    records: Records,
    model: str,
    watch: Callable[[Session], None],
    origins: Mapping[Config, str] = MappingProxyType({}),
) -> int:
    """Measure candidates of a task. Nothing of them is run after the time for it, `left_s`, is over.

    Args:
        origins: by configuration the key of the task whose schedule it is; the others are the task's own.
    """
    made, start_s = 0, session.elapsed_s
    _hear_others(session, records, model)
    in_time = lambda: session.elapsed_s < start_s + left_s  # noqa: E731
    session.current = session.tasks.index(tuner)
    watch(session)
    with session.searching():
        candidates = propose()
    if candidates and in_time():
        for trial in measurer(candidates, task=tuner.key, in_time=in_time):
            origin, search_s = origins.get(trial.config), session.take_search_s()
            now_s = session.elapsed_s
            records.append(tuner.key, trial, model=model, elapsed_s=now_s, origin=origin, search_s=search_s)
            with session.searching():
                tuner.tell([trial])
            made += 1
            watch(session)
            session.row.note(tuner, trial, session.tasks)
    session.note_batch(session.elapsed_s - start_s, made)
    return made


def _hear_others(session: Session, records: Records, model: str) -> None:
    """Tell the searchers what other runs have written to the same store meanwhile."""
    news = records.refresh()
    for tuner in session.tasks if news else ():
        found = [(t, owner) for t, owner in news.get(tuner.key, ()) if t.config not in tuner.tried]
        tuner.borrowed += sum(owner != model for _, owner in found)
        tuner.tell([trial for trial, _ in found])


def database_of(tasks: Sequence[TaskTuner], target: Target) -> ms.database.Database:
    """The best schedule of each task as a MetaSchedule database, for `compile_model` or any other use."""
    database = ms.database.MemoryDatabase()
    for tuner in tasks:
        if tuner.best is None or tuner.now_s is None:
            continue
        commit_schedule(database, tuner.traces, tuner.best.config, tuner.now_s, target)
    return database


def _batch_size(session: Session, tuner: TaskTuner) -> int:
    """How many candidates to propose for a task: as many as the rest of the budget has room for.

    A first batch leaves a share of a small budget to the others.
    """
    config = session.config
    n = config.batch if tuner.best_s else config.first_batch
    if session.search_left_s < n * session.trial_s:
        n = max(1, int(session.search_left_s / session.trial_s))
    if config.trials is None:
        return n
    if not tuner.best_s:
        n = max(1, min(n, config.trials // len(session.tasks)))
    return min(n, int(session.search_left))
