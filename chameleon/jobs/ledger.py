"""What is on record of tasks: trials, schedules timed again or compared in the network, and spaces of knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chameleon.search import Knob, KnobSpace, Trial

Config = tuple[int, ...]


@dataclass(frozen=True)
class Confirmation:
    """The few best schedules of a task were timed again, in turns.

    Attributes:
        seconds: for each configuration the time of each round; none if it failed this time.
        cold: the same with cold caches; empty if it was not timed so.
    """

    seconds: Mapping[Config, Sequence[float]]
    cold: Mapping[Config, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """Two schedules of a task were compared in the network itself, in turns.

    Attributes:
        winner: the schedule that the network keeps.
        loser: the other one.
        seconds: the network's latency in each round, with the winner and with the loser.
        model: the network.
    """

    winner: Config
    loser: Config
    seconds: tuple[tuple[float, ...], tuple[float, ...]]
    model: str


Event = Trial | Confirmation | Exchange
"""What is on record of a task."""

SIDES = ("winner", "loser")
"""The fields of the line of an exchange that hold its schedules."""


@dataclass(frozen=True)
class Stamp:
    """When something was recorded.

    Attributes:
        model: whose tuning recorded it.
        elapsed_s: how long that tuning had taken.
        search_s: seconds of it that the searcher took since the trial before; 0 where the records do not tell.
    """

    model: str
    elapsed_s: float
    search_s: float = 0.0


def algorithm_in(algorithms: Mapping[str, Sequence[int]], best: Trial | None) -> str | None:
    """The alternative that a schedule is of; None: TVM's own space of the operator as it is written.

    Args:
        algorithms: the alternatives in the space, with their sketches: the first digit of a configuration is one.
    """
    sketch = best.config[0] if best and best.config else None
    return next((name for name, sketches in algorithms.items() if sketch in sketches), None)


@dataclass
class TaskRecords:
    """What is known of one workload, in the order of measuring.

    Attributes:
        space: the fingerprint of its space.
        knobs: the knobs and sketches of its space, as `space_to_json` writes them.
        anchor: what tasks with the same main block share (`tuners.anchors`); None if unknown.
        algorithms: the alternatives in its space, with their sketches (`chameleon.kernels.alternatives`).
        events: its trials, confirmations and exchanges.
        stamps: when each of the events was recorded.
        owners: for each trial the model whose tuning made it.
        origins: for each trial that took over a schedule of another task the key of that task.
        wrong: the configurations whose schedules computed wrong values in their network.
    """

    name: str
    space: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    anchor: str | None = None
    algorithms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    owners: dict[Config, str] = field(default_factory=dict)
    origins: dict[Config, str] = field(default_factory=dict)
    wrong: set[Config] = field(default_factory=set)

    @property
    def trials(self) -> list[Trial]:
        return [event for event in self.events if isinstance(event, Trial)]

    def knob_space(self) -> KnobSpace | None:
        """The space on record, for those who want to learn from its trials; None if the records do not tell.

        Its values are as they were written. It has no constraints: they are not on record.
        """
        try:
            return space_from_json(self.knobs)
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def add(self, trial: Trial, stamp: Stamp, origin: str | None = None) -> bool:
        """Take a trial. A configuration counts once: a second trial of it counts only where the first one failed.

        Returns:
            Whether it counts.
        """
        if trial.config in self.owners:
            known = next(i for i, e in enumerate(self.events) if isinstance(e, Trial) and e.config == trial.config)
            if trial.seconds is None or self.events[known].seconds is not None:
                return False
            del self.events[known], self.stamps[known]
        self.note(trial, stamp)
        self.owners[trial.config] = stamp.model
        self.origins.pop(trial.config, None)
        if origin is not None:
            self.origins[trial.config] = origin
        return True

    def note(self, event: Event, stamp: Stamp) -> None:
        """Take an event: a trial that counts, times of the best schedules timed again, or what the network said."""
        self.events.append(event)
        self.stamps.append(stamp)

    def forget_failures(self) -> list[str]:
        """Drop the failed trials; returns the model of each."""
        failed = [trial.config for trial in self.trials if trial.seconds is None]
        kept = [not isinstance(e, Trial) or e.seconds is not None for e in self.events]
        self.events = [e for e, keep in zip(self.events, kept, strict=True) if keep]
        self.stamps = [s for s, keep in zip(self.stamps, kept, strict=True) if keep]
        for config in failed:
            self.origins.pop(config, None)
        return [self.owners.pop(config) for config in failed]


@dataclass
class Ledger:
    """What is on record of one environment.

    Attributes:
        by_space: the tasks by workload and space of knobs.
        tasks: of each workload the task with the space that was introduced last, or that was asked for.
        elapsed_s: how long tuning each model has taken.
        finished: the models whose tuning has ended.
    """

    by_space: dict[tuple[str, str], TaskRecords] = field(default_factory=dict)
    tasks: dict[str, TaskRecords] = field(default_factory=dict)
    elapsed_s: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    def forget_failures(self) -> int:
        """Forget all failed trials; a model of which no trial is left gets its tuning time back."""
        forgotten = [model for task in self.by_space.values() for model in task.forget_failures()]
        left = {model for task in self.by_space.values() for model in task.owners.values()}
        self.elapsed_s = {model: seconds for model, seconds in self.elapsed_s.items() if model in left}
        self.finished -= set(forgotten)
        return len(forgotten)

    def spent(self, model: str, elapsed_s: float) -> None:
        self.elapsed_s[model] = max(elapsed_s, self.elapsed_s.get(model, 0.0))


def space_to_json(space: KnobSpace) -> dict[str, Any]:
    """The knobs of a space, for a `task` line."""
    return {
        "space": space.fingerprint(),
        "knobs": [{"name": k.name, "kind": k.kind, "values": [_plain(v) for v in k.values]} for k in space.knobs],
        "sketches": [[int(i) for i in row.nonzero()[0]] for row in space.active],
    }


def space_from_json(line: Mapping[str, Any]) -> KnobSpace:
    """The space of a `task` line: its knobs with their names, kinds and values, and its sketches; not to be searched.

    Raises:
        KeyError, TypeError, ValueError, IndexError: if the line does not describe a space.
    """
    knobs = [_recorded_knob(k["name"], k["kind"], tuple(_read(v) for v in k["values"])) for k in line["knobs"]]
    sketches = line["sketches"]
    return KnobSpace(knobs, sketches=sketches if len(sketches) > 1 else None)


def _recorded_knob(name: str, kind: Any, values: tuple[Any, ...]) -> Knob:
    """A knob without features and moves, which nobody asks of a recorded one, and which are slow to find."""
    return Knob(name, kind, values, np.zeros((len(values), 1), np.float32), np.zeros((len(values), 0), np.int64))


def _read(value: Any) -> Any:
    return tuple(_read(v) for v in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value if isinstance(value, (int, float, bool)) else str(value)
