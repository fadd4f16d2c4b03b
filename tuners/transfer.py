"""Finds out what AutoTVM's records of earlier tuning say about a task. Nothing here imports tvm.

There are the task's own trials, and the records of its kin. The best configurations of the kin are starting points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search import Digits, Trial
from tuners.autotvm_results import Outages, Outcome, outcome_of
from tuners.config_space import ConfigKnobs

Config = tuple[int, ...]
Record = tuple[Any, Any]  # AutoTVM's MeasureInput and MeasureResult


@dataclass(frozen=True)
class Kin:
    """The records of one other workload of the same template, or of the same workload on another target.

    Attributes:
        distance: between its workload and the task's workload, in doublings of sizes.
        configs: the configurations that ran, as AutoTVM has them, fastest first.
        seconds: the run time of each of them, `[n]`.
    """

    distance: float
    configs: tuple[Any, ...]
    seconds: tuple[float, ...]


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


def starting_points(knobs: ConfigKnobs, kin: Sequence[Kin], most: int) -> list[Digits]:
    """The configurations of this space that are nearest to what ran fastest elsewhere, `[n_knobs]` each.

    They are all different, and at most `most`. They come in rounds: first the best of every kin, nearest kin first;
    then the second best of every kin; and so on.
    """
    found: dict[Config, Digits] = {}
    for place in range(most):
        for group in kin:
            row = knobs.nearest(group.configs[place]) if place < len(group.configs) else None
            if row is not None and knobs.space.is_valid(row[None])[0]:
                found.setdefault(tuple(row.tolist()), row)
            if len(found) == most:
                return list(found.values())
    return list(found.values())


def beliefs(knobs: ConfigKnobs, kin: Sequence[Kin], most: int) -> tuple[Digits, NDArray[np.float64]]:
    """What ran elsewhere, as configurations of this space `[n, n_knobs]`, and its throughput `[n]`.

    The throughput is relative to the best one there. At most `most` configurations are taken from all kin together.
    They are spread evenly over good and bad ones.
    """
    rows, throughput = [], []
    for group in kin:
        take = min(len(group.configs), max(most // len(kin), 1))
        for i in np.linspace(0, len(group.configs) - 1, take).astype(int).tolist():
            row = knobs.nearest(group.configs[i])
            if row is not None:
                rows.append(row)
                throughput.append(group.seconds[0] / group.seconds[i])
    return np.array(rows, dtype=np.int64).reshape(-1, knobs.space.n_knobs), np.array(throughput, dtype=np.float64)


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
    order = np.argsort([seconds for seconds, _ in runs], kind="stable")
    return Kin(far, tuple(runs[i][1] for i in order), tuple(runs[i][0] for i in order))


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
