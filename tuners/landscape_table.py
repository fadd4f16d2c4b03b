"""A recorded landscape as a table: every configuration of a space with what was measured of it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chameleon.errors import ChameleonError
from chameleon.search.space import Digits, Knob, KnobSpace, option
from chameleon.search.trial import Status, Trial

_EXTENSIONS = (".gz", ".jsonl", ".json", ".t4")
_HIGHER = ("/s", "/j", "/w", "flops", "fps", "score", "throughput", "bandwidth", "speedup", "efficiency", "accuracy")


class LandscapeError(ChameleonError):
    """A file that cannot be replayed. The message says what is wrong with it and what to do."""


class LandscapeWarning(UserWarning):
    """Something in a recorded landscape was left out."""


@dataclass(frozen=True)
class Objective:
    """What was measured, and which way is better.

    Attributes:
        name: such as `time`, which is in seconds here, `energy`, `GFLOP/s` or `score`.
        higher_is_better: whether a search makes it large.
    """

    name: str = "time"
    higher_is_better: bool = False

    @classmethod
    def of(cls, name: str, higher_is_better: bool | None = None) -> Objective:
        """The objective of this name; rates, scores and the like are better if higher, unless the file says so."""
        guess = any(name.lower().endswith(end) for end in _HIGHER)
        return cls(name, guess if higher_is_better is None else bool(higher_is_better))

    def trial(self, config: Digits, value: float) -> Trial:
        """The trial of a success: a time is its seconds, anything else a score."""
        if self == TIME:
            return Trial(tuple(config), Status.OK, value)
        return Trial(tuple(config), Status.OK, score=value if self.higher_is_better else -value)

    def value(self, trial: Trial) -> float:
        """What `trial` was made of; NaN if the trial failed."""
        if trial.status is not Status.OK:
            return math.nan
        return trial.cost if not self.higher_is_better else -trial.cost


TIME = Objective()


class Entry(NamedTuple):
    """What a landscape holds for one configuration; `value` is NaN unless `status` is `OK`."""

    value: float
    status: Status
    message: str = ""


@dataclass(frozen=True)
class Landscape:
    """A space with the recorded outcome of each of its configurations.

    Attributes:
        name: the file's name without its extensions.
        space: its only configurations are the `listed` ones `[m, n_knobs]`, in lexicographic order of their digits.
        values: what was measured of each listed configuration, `[m]`, NaN where it failed; a time is in seconds.
        statuses: how each listed configuration ended, `m` of them.
        messages: why each listed configuration failed; empty where it did not.
        objective: what the values are.
        configs: the listed configurations, `[m, n_knobs]`.
    """

    name: str
    space: KnobSpace
    values: NDArray[np.float64] = field(repr=False)
    statuses: tuple[Status, ...] = field(repr=False)
    messages: tuple[str, ...] = field(repr=False)
    objective: Objective = TIME
    configs: Digits = field(init=False, repr=False, compare=False)
    _rows: Mapping[bytes, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        listed = self.space.listed
        if listed is None:
            raise ValueError("a landscape needs a space with listed configurations, got one without: pass listed=...")
        if not len(listed) == len(self.values) == len(self.statuses) == len(self.messages):
            raise ValueError(
                f"expected a value, a status and a message for each of the {len(listed)} listed configurations, got "
                f"{len(self.values)} values, {len(self.statuses)} statuses and {len(self.messages)} messages"
            )
        object.__setattr__(self, "configs", listed)
        object.__setattr__(self, "_rows", {key: row for row, key in enumerate(self.space.keys(listed))})

    def __len__(self) -> int:
        return len(self.values)

    @property
    def best(self) -> float:
        """The best value on record."""
        return float(np.nanmax(self.values) if self.objective.higher_is_better else np.nanmin(self.values))

    def fraction(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """How good `values` `[n]` are, as a fraction of the best on record, `[n]`; 0 where a value is NaN.

        For a rate it is the share of the best; for a time or an energy the best divided by the value. Where values of
        both signs occur, it is the place between the worst on record (0) and the best (1).
        """
        if np.nanmin(self.values) > 0:
            found = values / self.best if self.objective.higher_is_better else self.best / values
        else:
            worst = float(np.nanmin(self.values) if self.objective.higher_is_better else np.nanmax(self.values))
            span = self.best - worst
            found = (values - worst) / span if span else np.where(np.isnan(values), np.nan, 1.0)
        return np.nan_to_num(found, nan=0.0)

    def measure(self, configs: Digits) -> list[Trial]:
        """Look up the configurations `[n, n_knobs]`; an unlisted one comes back as `INVALID`, which is free."""
        return [self._trial(config) for config in np.asarray(configs, dtype=np.int64)]

    def _trial(self, config: Digits) -> Trial:
        row = self._rows.get(self.space.keys(config[None])[0])
        if row is None:
            return Trial(tuple(config), Status.INVALID, message="not in the landscape: it breaks a known constraint")
        if self.statuses[row] is Status.OK:
            return self.objective.trial(config, float(self.values[row]))
        return Trial(tuple(config), self.statuses[row], message=self.messages[row])


def landscape_name(path: Path) -> str:
    """The file's name without its extensions (`conv.t4.json.gz` is `conv`; other dots belong to the name)."""
    name = path.name
    while any(name.endswith(e) and name != e for e in _EXTENSIONS):
        name = name[: name.rindex(".")]
    return name


def named_landscape(
    path: Path,
    names: Sequence[str],
    order: Mapping[str, Any],
    configs: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    objective: Objective = TIME,
) -> Landscape:
    """A landscape from named values: each name becomes an option knob with the values that occur, numbers rising."""
    knobs, columns = [], []
    for name in names:
        try:
            column = [frozen(config[name]) for config in configs]
        except KeyError as error:
            raise LandscapeError(
                f"{path}: every configuration needs a value for each of {list(names)}; one lacks {error}"
            ) from error
        values = ordered_values([*frozen(order.get(name) or ()), *column], set(column))
        knobs.append(option(name, values))
        columns.append([{v: i for i, v in enumerate(values)}[x] for x in column])
    return assemble(path, knobs, [list(row) for row in zip(*columns, strict=True)], entries, objective)


def ordered_values(recorded: Iterable[Any], occurring: set[Any]) -> list[Any]:
    """The values that occur, each once: numbers rising, anything else in the order in which it is recorded."""
    values = [v for v in dict.fromkeys(recorded) if v in occurring]
    numeric = all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
    return sorted(values) if numeric else values


def assemble(
    path: Path,
    knobs: Sequence[Knob],
    configs: Sequence[Sequence[int]],
    entries: Sequence[Entry],
    objective: Objective = TIME,
) -> Landscape:
    """Makes the landscape, sorted by digits, so that a file's format and order change nothing.

    Of repeated configurations the first is kept.
    """
    if not any(e.status is Status.OK for e in entries):
        raise LandscapeError(
            f"{path}: nothing to find: none of its {len(entries)} configurations has a valid {objective.name}"
        )
    digits = np.array(configs, dtype=np.int64).reshape(len(configs), len(knobs))
    listed, first = np.unique(digits, axis=0, return_index=True)
    if len(listed) < len(digits):
        repeats = len(digits) - len(listed)
        warnings.warn(f"{path}: {repeats} repeated configurations; the first of each is used", LandscapeWarning, 4)
    values = np.array([entries[i].value for i in first])
    statuses = tuple(entries[i].status for i in first)
    return Landscape(
        landscape_name(path),
        KnobSpace(knobs, listed=listed),
        values,
        statuses,
        tuple(entries[i].message for i in first),
        objective,
    )


def frozen(value: Any) -> Any:
    """A value that can be compared and hashed: lists become tuples, objects their JSON text."""
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    return tuple(frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def bad_entry(path: Path, where: str, expected: str, error: Exception) -> LandscapeError:
    """The error for a part of a file that does not hold what it should."""
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return LandscapeError(f"{path}: {where}: expected {expected}; {what}")
