"""The figures of a run: what the page shows and what `chameleon report --json` writes are the same data."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from chameleon.jobs.ledger import Config, Confirmation, Event, Exchange, Stamp, TaskRecords, algorithm_in
from chameleon.jobs.measured import Measured, usable_event
from chameleon.jobs.records import Records
from chameleon.page.folders import Run, find_runs
from chameleon.search import Trial
from chameleon.search.space import KnobSpace
from chameleon.store.place import Place
from tuners.outcomes import failure_reason

TOP = 0.1
"""The fastest tenth of a task's schedules says which values of a knob win."""
PICTURES = ("memory.svg", "memory.png")


@dataclass(frozen=True)
class Point:
    """The best known time after so many trials and so many seconds of tuning."""

    trials: int
    elapsed_s: float
    us: float


@dataclass(frozen=True)
class WinningKnob:
    """A knob of a task, and how far its fastest schedules agree on its value.

    Attributes:
        value: that of the best schedule.
        top_share: the share of the fastest tenth that has this value.
        share: the same among all schedules that work.
    """

    name: str
    value: Any
    top_share: float
    share: float


@dataclass(frozen=True)
class Failure:
    """How many trials failed for a reason, and what the first of them said, in which task."""

    reason: str
    trials: int
    first: str
    task: str


@dataclass(frozen=True)
class TaskFacts:
    """One kernel.

    Attributes:
        trials: on record, those of other models included.
        first_us: the time of the first schedule that worked; None if none did.
        best_us: the time of the best one.
        share: of the time of all kernels together, each with its weight.
        algorithm: of the best schedule (`chameleon.kernels.alternatives`); None: as the operator is written.
        top: how many schedules the fastest tenth is.
    """

    name: str
    key: str
    weight: int
    flop: float
    trials: int
    failed: int
    first_us: float | None
    best_us: float | None
    share: float | None
    algorithm: str | None
    top: int
    curve: list[Point]
    knobs: list[WinningKnob]


@dataclass(frozen=True)
class TimeSpent:
    """Where the tuning time of a model went, in seconds.

    Attributes:
        search_s: choosing candidates, and learning from trials; None where the records do not tell.
        build_s: building candidates.
        run_s: timing them.
        confirm_s: building and timing the best ones again, in turns.
        rest_s: what is left: waiting, and what a run that was stopped did not record.
    """

    search_s: float | None
    build_s: float
    run_s: float
    confirm_s: float
    rest_s: float


@dataclass(frozen=True)
class RunFacts:
    """One run of `chameleon tune`.

    Attributes:
        state: `finished`, `running` or `interrupted`; in a zoo also `waiting` and `failed`; in a store `unfinished`.
        problem: why it failed, or why its records cannot be read; empty if nothing is wrong.
        trials: made while this model was tuned.
        borrowed: made while another model was tuned whose records this run shares.
        curve: all kernels that have a schedule together, from when each of them has one.
        latency_ms: of the network `untuned` and `tuned`, where it was timed.
        memory: the name of the memory picture in the folder; None if there is none.
    """

    folder: str
    model: str
    target: str
    state: str
    problem: str
    trials: int
    borrowed: int
    tuning_s: float
    finish_s: float
    latency_ms: dict[str, float]
    quartiles_ms: dict[str, list[float]]
    outputs: str
    warnings: list[str]
    time: TimeSpent
    curve: list[Point]
    tasks: list[TaskFacts]
    failures: list[Failure]
    memory: str | None
    config: dict[str, Any]
    manifest: dict[str, Any]


def facts_of(source: Place, store: Place | None = None) -> list[RunFacts]:
    """The figures of the run in a folder, of all runs of a zoo, or of all models in a store.

    Args:
        store: where the records of a folder's runs are; None: in the folder.

    Raises:
        UsageError: if there is no run.
        RecordsError: if a store cannot be reached.
    """
    return [_facts(run) for run in find_runs(source, store)]


def to_json(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """The figures as plain data."""
    return {"runs": [dataclasses.asdict(run) for run in runs]}


@dataclass
class _Task:
    """A task while its records are gone through."""

    name: str
    key: str
    weight: int
    flop: float
    records: TaskRecords
    measured: Measured
    curve: list[Point] = field(default_factory=list)
    first_s: float | None = None


@dataclass
class _Failures:
    """Failed trials by reason; what the first one said, and its task."""

    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, tuple[str, str]] = field(default_factory=dict)

    def note(self, trial: Trial, task: str) -> None:
        reason = failure_reason(trial.message)
        self.counts[reason] += 1
        self.firsts.setdefault(reason, (trial.message, task))

    def facts(self) -> list[Failure]:
        return [Failure(reason, n, *self.firsts[reason]) for reason, n in self.counts.most_common()]


def _facts(run: Run) -> RunFacts:
    records = run.records
    tasks = _tasks(run, records) if records else []
    curve, failures = _go_through(run.model, tasks)
    owners = [model for task in tasks for model in task.records.owners.values()]
    total_s = sum(t.weight * (t.measured.now_s or 0.0) for t in tasks)
    report = run.report
    return RunFacts(
        folder=run.name,
        model=run.model,
        target=str(run.known.get("target", "unknown")),
        state=run.state,
        problem=run.problem,
        trials=sum(owner == run.model for owner in owners),
        borrowed=sum(owner != run.model for owner in owners),
        tuning_s=records.elapsed_s.get(run.model, 0.0) if records else 0.0,
        finish_s=float(report.get("finish_s") or 0.0),
        latency_ms={k: v for k, v in (report.get("latency_ms") or {}).items() if v},
        quartiles_ms={k: list(v) for k, v in (report.get("quartiles_ms") or {}).items()},
        outputs=str((report.get("comparison") or {}).get("summary", "")),
        warnings=[str(w) for w in report.get("warnings", [])],
        time=_time_spent(run.model, tasks, records.elapsed_s.get(run.model, 0.0) if records else 0.0),
        curve=curve,
        tasks=[_task_facts(t, total_s) for t in tasks],
        failures=failures.facts(),
        memory=next((name for name in PICTURES if run.folder and (run.folder / name).is_file()), None),
        config=dict(run.known.get("config") or {}),
        manifest=run.manifest,
    )


def _tasks(run: Run, records: Records) -> list[_Task]:
    """The tasks of a run that are on record, in the order of the run; earlier versions did not write that down."""
    listed = run.known.get("tasks")
    if listed is None:
        weights = {t["name"]: t for t in run.report.get("tasks", [])}
        owned = [(key, t) for key, t in records.tasks.items() if run.model in t.owners.values()]
        listed = [
            {"weight": 1, "flop": 0.0, **weights.get(t.name, {}), "key": key, "name": t.name} for key, t in owned
        ]
    found = [(t, records.tasks[t["key"]]) for t in listed if t["key"] in records.tasks]
    return [
        _Task(str(t["name"]), str(t["key"]), int(t["weight"]), float(t["flop"]), known, Measured(t["key"], (), 1))
        for t, known in found
    ]


def _in_order(model: str, tasks: Sequence[_Task]) -> Iterator[tuple[_Task, Event, Stamp]]:
    """All events of the tasks: first those of other models, then this model's in the order of its tuning time."""
    events = [
        (task, event, stamp)
        for task in tasks
        for event, stamp in zip(task.records.events, task.records.stamps, strict=True)
    ]
    yield from sorted(events, key=lambda e: e[2].elapsed_s if e[2].model == model else -1.0)


def _go_through(model: str, tasks: Sequence[_Task]) -> tuple[list[Point], _Failures]:
    """Follow the tuning event by event; returns the curve of all kernels together, and the failures."""
    curve: list[Point] = []
    failures, made = _Failures(), 0
    working = sum(any(_works(e, t.records.wrong) for e in t.records.events) for t in tasks)
    for task, event, stamp in _in_order(model, tasks):
        event = usable_event(event, task.records.wrong)
        if event is None:
            continue
        elapsed_s = stamp.elapsed_s if stamp.model == model else 0.0
        if isinstance(event, Confirmation):
            task.measured.confirm(event)
        elif isinstance(event, Exchange):
            if event.model == model:
                task.measured.exchange(event)
        else:
            made += 1
            task.measured.note(event)
            if event.seconds is None:
                failures.note(event, task.name)
            else:
                task.first_s = task.first_s or event.seconds
        _add(task.curve, len(task.measured.trials), elapsed_s, task.measured.now_s)
        times = [t.weight * t.measured.now_s for t in tasks if t.measured.now_s]
        _add(curve, made, elapsed_s, sum(times) if len(times) == working else None)
    return curve, failures


def _works(event: Event, wrong: Collection[Config]) -> bool:
    event = usable_event(event, wrong) or event
    return isinstance(event, Trial) and event.seconds is not None


def _add(curve: list[Point], trials: int, elapsed_s: float, seconds: float | None) -> None:
    """Add a point where the best time changes; the last point moves along where it stays."""
    if not seconds or not math.isfinite(seconds):
        return
    point = Point(trials, round(elapsed_s, 3), seconds * 1e6)
    if len(curve) > 1 and curve[-1].us == curve[-2].us == point.us:
        curve.pop()
    curve.append(point)


def _time_spent(model: str, tasks: Sequence[_Task], elapsed_s: float) -> TimeSpent:
    search_s = build_s = run_s = confirm_s = before_s = 0.0
    for _, event, stamp in _in_order(model, tasks):
        if stamp.model != model:
            continue
        if not isinstance(event, Trial):
            confirm_s += max(0.0, stamp.elapsed_s - before_s)
        else:
            search_s += stamp.search_s
            build_s += event.timings.get("build", 0.0)
            run_s += event.timings.get("run", 0.0)
        before_s = stamp.elapsed_s
    known_s = search_s + build_s + run_s + confirm_s
    parts = [round(s, 2) for s in (build_s, run_s, confirm_s, max(0.0, elapsed_s - known_s))]
    return TimeSpent(round(search_s, 2) if search_s else None, *parts)


def _task_facts(task: _Task, total_s: float) -> TaskFacts:
    measured, best_s = task.measured, task.measured.now_s
    slowness = measured.slowness()
    ranked = sorted(slowness, key=lambda config: slowness[config])
    top = ranked[: max(1, round(TOP * len(ranked)))]
    return TaskFacts(
        name=task.name,
        key=task.key,
        weight=task.weight,
        flop=task.flop,
        trials=len(measured.trials),
        failed=measured.failures.total(),
        first_us=task.first_s * 1e6 if task.first_s else None,
        best_us=best_s * 1e6 if best_s else None,
        share=task.weight * best_s / total_s if best_s else None,
        algorithm=algorithm_in(task.records.algorithms, measured.best),
        top=len(top),
        curve=task.curve,
        knobs=_winning(task.records.knob_space(), measured.best, top, ranked),
    )


def _winning(
    space: KnobSpace | None, best: Trial | None, top: Sequence[Config], ranked: Sequence[Config]
) -> list[WinningKnob]:
    """The knobs that act in the best schedule, those first that the fastest schedules agree on most."""
    if space is None or best is None or len(best.config) != space.n_knobs:
        return []
    acting = space.active[best.config[0]] if len(space.active) > 1 else space.active[0]
    found = []
    for i, knob in enumerate(space.knobs):
        digit = best.config[i]
        if acting[i] and knob.cardinality > 1 and digit < knob.cardinality:
            top_share, share = (sum(c[i] == digit for c in cs) / len(cs) for cs in (top, ranked))
            value = knob.values[digit]
            found.append(WinningKnob(knob.name, list(value) if isinstance(value, tuple) else value, top_share, share))
    return sorted(found, key=lambda k: (-k.top_share, k.share))
