"""Finds out what AutoTVM's records of earlier tuning say about a task. Nothing here imports tvm.

There are the task's own trials, and the records of its kin: the other workloads of its template, and the same workload
on another target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chameleon.search import Kin, Trial
from tuners.autotvm_results import Outages, Outcome, outcome_of
from tuners.config_space import ConfigKnobs, values_of

Config = tuple[int, ...]
Record = tuple[Any, Any]  # AutoTVM's MeasureInput and MeasureResult


@dataclass(frozen=True)
class Past:
    """Records, sorted by what they are worth to a task.

    Attributes:
        own: trials of the same workload on the same target; each configuration occurs once.
        kin: the other workloads of its template, nearest first.
        foreign: how many records belong to neither.
    """

    own: tuple[Trial, ...]
    kin: tuple[Kin, ...]
    foreign: int


def past_of(task: Any, knobs: ConfigKnobs, records: Iterable[Record]) -> Past:
    """Sorts `records` by task. Failures of kin are left out, and so are failures that look like the device's fault."""
    workload, target = frozen(task.workload), str(task.target)
    own: list[Outcome] = []
    groups: dict[tuple[Any, str], list[tuple[float, Any]]] = {}
    foreign = 0
    for inp, result in records:
        theirs = frozen(inp.task.workload), str(inp.target)
        digits = knobs.find(inp.config) if theirs == (workload, target) else None
        if digits is not None:
            own.append(outcome_of(digits.tolist(), result))
        elif inp.task.name == task.name:
            seconds = outcome_of((), result).trial.seconds
            groups.setdefault(theirs, []).extend([(seconds, inp.config)] if seconds else [])
        else:
            foreign += 1
    kin = [_kin(distance(workload, w), runs) for (w, _), runs in groups.items() if runs]
    return Past(_best_of_each(_settled(own)), tuple(sorted(kin, key=lambda k: k.distance)), foreign)


def distance(one: Any, other: Any) -> float:
    """How much two workloads differ, in doublings of their sizes; infinite if they differ in anything else."""
    a, b = list(_leaves(one)), list(_leaves(other))
    if len(a) != len(b):
        return math.inf
    total = 0.0
    for x, y in zip(a, b, strict=True):
        if _is_size(x) and _is_size(y):
            total += abs(math.log2((1 + x) / (1 + y)))
        elif x != y:
            return math.inf
    return total


def frozen(value: Any) -> Any:
    """The value with all nested sequences as tuples, so that a workload compares equal to its copy from a log."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), frozen(v)) for k, v in value.items()))
    return tuple(frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _kin(far: float, runs: Sequence[tuple[float, Any]]) -> Kin:
    runs = sorted(runs, key=lambda run: run[0])
    return Kin(tuple(values_of(config) for _, config in runs), tuple(runs[0][0] / seconds for seconds, _ in runs), far)


def _settled(outcomes: Iterable[Outcome]) -> Iterator[Trial]:
    outages = Outages()
    for outcome in outcomes:
        for settled in outages.settle(outcome)[0]:
            yield settled.trial


def _best_of_each(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The fastest trial of each configuration; a failed trial if it never succeeded."""
    best: dict[Config, Trial] = {}
    for trial in trials:
        known = best.get(trial.config)
        if known is None or (trial.seconds or math.inf) < (known.seconds or math.inf):
            best[trial.config] = trial
    return tuple(best.values())
