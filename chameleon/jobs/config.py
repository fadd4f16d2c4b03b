"""The configuration of tuning: defaults, presets and flags.

A preset is a YAML file. It overrides the defaults in the code, and flags override the preset. An unknown key is an
error. The presets in the folder `chameleon/presets` are known by name, such as `quick`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

import chameleon
from chameleon.errors import UsageError, unknown
from chameleon.jobs.allocate import AllocationConfig

PRESETS = Path(chameleon.__file__).with_name("presets")
"""Folder of the presets that are shipped."""

MAX_SEED = 2**31 - 1
"""TVM's seeds are numbers of 32 bits with a sign."""

T = TypeVar("T")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class ConfirmConfig:
    """How the few best schedules of each task are timed again at the end, to tell good ones from lucky ones."""

    contenders: int = 3  # schedules of a task that are timed again; 1: none is, there is nothing to choose
    rounds: int = 3  # the contenders take turns so many times; the median of the rounds decides
    drop_factor: float = 2.0  # a contender that was slower than the best by this factor twice leaves the race
    cold: bool = True  # time with cold caches as well, on CPUs; these times decide
    exchange_s: float = 60.0  # at most so long close ones are compared in the compiled network; 0: not at all
    budget_share: float = 0.2  # at most this share of a time budget is kept for all of this

    def __post_init__(self) -> None:
        if (
            min(self.contenders, self.rounds, self.drop_factor) < 1
            or self.exchange_s < 0
            or not 0 <= self.budget_share < 1
        ):
            raise UsageError(
                "confirm: contenders, rounds and drop_factor must be at least 1, exchange_s at least 0, budget_share "
                f"at least 0 and below 1; got {self}"
            )


@dataclass(frozen=True)
class TuneConfig:
    """How a network is tuned.

    There are two budgets: `trials` and `time_budget_s`. Tuning ends when the first of them is used up.
    """

    searcher: str = "chameleon"  # one of chameleon.search.SEARCHERS
    seed: int = 0
    trials: int | None = None  # measurements over all tasks, earlier runs included; None: no bound
    time_budget_s: float | None = 600.0  # seconds of tuning, earlier runs included; None: no bound
    until: float | None = None  # end before that when the rest of it is expected to gain less than this share
    batch: int = 16  # candidates built together
    first_batch: int = 8  # candidates of a task's first batch
    share: bool = True  # one search for all tasks with the same main block
    max_refusals: int = 2000  # a task is given up after TVM refused so many candidates in a row
    max_failures_in_row: int = 32  # the run ends after so many equal failures in a row without a success between them
    exact: bool = False  # no algorithms that round differently from the operator as it is written, such as Winograd's
    learn: bool = True  # a task begins with what was fastest in tasks like it, in this run and in earlier ones
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    options: dict[str, Any] = field(default_factory=dict)  # options of the searcher


def duration_s(text: str | float) -> float:
    """Seconds from `90`, `90s`, `10m` or `1.5h`.

    Raises:
        UsageError: if the text is no positive duration.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    if not match or float(match[1]) <= 0:
        raise UsageError(f"expected a duration such as 90s, 10m or 1.5h, got {str(text)!r}")
    return float(match[1]) * _UNITS_S[match[2]]


def share_of(text: str | float) -> float:
    """A share from `1%` or `0.01`.

    Raises:
        UsageError: if the text is no share between 0 and 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(text))
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise UsageError(f"expected a share such as 1% or 0.01, got {str(text)!r}")
    return share


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UsageError: if the file cannot be read, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected `key: value` lines, got {type(content).__name__}")
    return content


def preset_names() -> list[str]:
    """Names of the presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(given: str) -> dict[str, Any]:
    """A preset: a shipped one by its name, any other by the path of its YAML file.

    Raises:
        UsageError: if there is no preset of that name, or the file cannot be read.
    """
    if given in preset_names():
        return read_yaml(PRESETS / f"{given}.yaml")
    if Path(given).suffix in (".yaml", ".yml") or Path(given).exists():
        return read_yaml(Path(given))
    raise unknown("preset", given, [*preset_names(), "a .yaml file"])


def tune_config(preset: Mapping[str, Any], flags: Mapping[str, Any]) -> TuneConfig:
    """The resolved configuration: defaults, then the preset, then the flags that were given (not `None`).

    If only a number of trials is asked for, the time is not bounded.

    Raises:
        UsageError: on an unknown key, a value of a wrong type or a budget that is not positive.
    """
    given = {**preset, **{k: v for k, v in flags.items() if v is not None}}
    if given.get("trials") is not None and "time_budget" not in given:
        given["time_budget"] = None
    if "time_budget" in given:
        budget = given.pop("time_budget")
        given["time_budget_s"] = None if budget is None else duration_s(budget)
    if given.get("until") is not None:
        given["until"] = share_of(given["until"])
    for name, kind in (("allocation", AllocationConfig), ("confirm", ConfirmConfig)):
        if name in given:
            given[name] = build(kind, given[name], name)
    config = build(TuneConfig, given, "configuration")
    for name in ("trials", "batch", "first_batch", "max_refusals", "max_failures_in_row"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not 0 <= config.seed <= MAX_SEED:
        raise UsageError(f"seed must be between 0 and {MAX_SEED}, got {config.seed}")
    _check_allocation(config.allocation)
    return config


def _check_allocation(config: AllocationConfig) -> None:
    ranges = {"alpha": (0, 1), "window": (1, math.inf), "headroom": (1, math.inf), "max_barren": (1, math.inf)}
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) <= high:
            raise UsageError(f"allocation: {name} must be at least {low}{f' and at most {high}' * (high < math.inf)}")


def build(kind: type[T], values: Any, what: str) -> T:
    """Make a configuration dataclass from plain values.

    Raises:
        UsageError: on an unknown key or a value of a wrong type; the message names what is allowed.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{what}: expected `key: value` pairs, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise unknown(f"{what} key", str(name), fields)
        default = fields[name].default
        expected = type(default) if isinstance(default, (int, float, str)) else None
        if expected is not None and not isinstance(value, (int, float) if expected is float else expected):
            allowed = "None" in str(fields[name].type) and value is None
            if not allowed:
                raise UsageError(f"{what} key {name!r}: expected {expected.__name__}, got {value!r}")
    return kind(**values)
