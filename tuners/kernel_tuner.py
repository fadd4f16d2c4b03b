"""Chameleon's searchers as strategies of Kernel Tuner, which tunes kernels in CUDA, HIP, OpenCL, C and Fortran.

    strategy = ChameleonStrategy(seed=0)
    results, env = tune_kernel(..., strategy=strategy, strategy_options={"max_fevals": 100})

Kernel Tuner measures, and keeps its restrictions, budgets, observers, metrics, caches and simulation mode. This module
can be imported without it.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from chameleon.errors import UsageError
from chameleon.search import Digits, KnobSpace, Searcher, Status, Trial, make_searcher, option
from tuners.landscape_formats import entry_of
from tuners.landscape_table import Objective, ordered_values

BATCH = 16
"""Configurations that are asked for at once. Each is measured and told by itself, so a budget may end anywhere."""
OPTIONS = ("max_fevals", "time_limit", "x0", "searchspace_construction_options")
"""What `strategy_options` may hold, as for Kernel Tuner's own strategies."""
_MS = 1e-3  # Kernel Tuner's unit of time, in seconds


class StrategyError(UsageError, ValueError):
    """Kernel Tuner was asked for something that this strategy cannot do."""


class Searchspace(Protocol):
    """The part of `kernel_tuner.searchspace.Searchspace` that is needed here."""

    tune_params: Mapping[str, Sequence[Any]]
    list: Sequence[tuple[Any, ...]]


class CostFunc(Protocol):
    """The part of `kernel_tuner.strategies.common.CostFunc` that is needed here."""

    tuning_options: Any
    objective: Sequence[str]
    objective_higher_is_better: Sequence[bool]
    results: list[dict[str, Any]]

    def __call__(self, x: tuple[Any, ...]) -> float: ...


@dataclass(frozen=True)
class Tunables:
    """Kernel Tuner's search space as knobs.

    Attributes:
        space: its only configurations are those that pass the restrictions.
        values: what each digit of each knob stands for, exactly as Kernel Tuner has it.
    """

    space: KnobSpace
    values: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, searchspace: Searchspace) -> Tunables:
        """Each tunable parameter becomes an option knob with the values that occur, numbers rising.

        Raises:
            StrategyError: if no configuration passes the restrictions.
        """
        if not len(searchspace.list):
            raise StrategyError("nothing to tune: no configuration passes the restrictions; relax them")
        values, columns = [], []
        for place, given in enumerate(searchspace.tune_params.values()):
            column = [config[place] for config in searchspace.list]
            values.append(tuple(ordered_values(given, set(column))))
            digit = {value: d for d, value in enumerate(values[-1])}
            columns.append(np.fromiter((digit[x] for x in column), np.int64, len(column)))
        knobs = [option(name, found) for name, found in zip(searchspace.tune_params, values, strict=True)]
        listed = np.unique(np.stack(columns, axis=1), axis=0)  # Kernel Tuner's order depends on its solver
        return cls(KnobSpace(knobs, listed=listed), tuple(values))

    def config(self, digits: Digits) -> tuple[Any, ...]:
        """The values `[n_knobs]` of one configuration, as Kernel Tuner takes them."""
        return tuple(values[int(d)] for values, d in zip(self.values, digits, strict=True))

    def digits(self, config: Sequence[Any]) -> Digits:
        """The digits `[n_knobs]` of one configuration.

        Raises:
            StrategyError: if it is not a configuration of this space.
        """
        try:
            row = np.array([v.index(x) for v, x in zip(self.values, config, strict=True)], dtype=np.int64)
        except (ValueError, TypeError):
            row = np.full(self.space.n_knobs, -1)
        if not self.space.is_valid(row[None])[0]:
            raise StrategyError(
                f"expected x0 to be a configuration that passes the restrictions, with a value for each of "
                f"{', '.join(self.space.names)}, got {config!r:.200}"
            )
        return row


class ChameleonStrategy:
    """A searcher as a strategy for `kernel_tuner.tune_kernel`.

    Each call of `tune_kernel` starts a new search. The search ends with the budget (`max_fevals`, `time_limit`), or
    when every configuration was measured. Configurations that Kernel Tuner skips, since they do not compile or do not
    run, count as measurements, and the search learns from them. What its cache holds is not run again.

    It is an optimiser for Kernel Tuner's `OptAlgWrapper` as well, and so for `tune_kernel_T1`.

    Args:
        searcher: one of `chameleon.search.SEARCHERS`.
        seed: of all random choices. By default it is the `seed` of `tune_kernel`, or 0 where that has none.
        options: settings of the searcher's components, such as `explorer={"walkers": 128}`.

    Attributes:
        failures: how many configurations failed, by Kernel Tuner's name for the reason; of all calls together.

    Raises:
        UnknownSearcherError: on a searcher, component or setting that does not exist.
        UsageError: on a seed that is none.
    """

    def __init__(self, searcher: str = "chameleon", seed: int | None = None, **options: Any) -> None:
        # Made only to check the arguments.
        make_searcher(searcher, KnobSpace([option("any", [0])]), 0 if seed is None else seed, **options)
        self._searcher, self._seed, self._options = searcher, seed, options
        self.failures: Counter[str] = Counter()
        self.costfunc_kwargs = {"scaling": False, "snap": False}  # Kernel Tuner's names: values are given as they are

    def __repr__(self) -> str:
        return f"ChameleonStrategy({self._searcher!r}, seed={self._seed})"

    def tune(self, searchspace: Searchspace, runner: Any, tuning_options: Any) -> list[dict[str, Any]]:
        """Called by `tune_kernel`: searches until the budget is spent, and returns what was measured.

        Raises:
            StrategyError: on an option that does not exist, a wrong `x0`, or an objective that cannot be used.
        """
        unknown = sorted(set(tuning_options.strategy_options) - set(OPTIONS))
        if unknown:
            raise StrategyError(
                f"unknown {', '.join(unknown)} in strategy_options; it takes {', '.join(OPTIONS)}. Settings of the "
                "searcher are arguments of ChameleonStrategy"
            )
        wrapper = importlib.import_module("kernel_tuner.strategies.wrapper")
        return wrapper.OptAlgWrapper(self).tune(searchspace, runner, tuning_options)

    def __call__(self, func: CostFunc, searchspace: Searchspace) -> tuple[tuple[Any, ...], float]:
        """Called by `OptAlgWrapper`: measures with `func` until it raises at the end of the budget.

        Returns:
            The best configuration and its cost, where the space ended before the budget.
        """
        tunables, objective = Tunables.of(searchspace), _objective(func)
        searcher = make_searcher(self._searcher, tunables.space, self._seed_of(func), **self._options)
        first = func.tuning_options.strategy_options.get("x0")
        rows = searcher.ask_planned(BATCH) if first is None else tunables.digits(first)[None]
        costs: dict[tuple[Any, ...], float] = {}
        while len(rows):
            for row in rows:
                config = tunables.config(row)
                costs[config] = self._measure(func, objective, searcher, row, config)
            rows = searcher.ask_planned(BATCH)
        best = min(costs, key=lambda config: costs[config])
        return best, costs[best]

    def _measure(
        self, func: CostFunc, objective: Objective, searcher: Searcher, row: Digits, config: tuple[Any, ...]
    ) -> float:
        """Measures one configuration, and tells the searcher even if the budget ends with it."""
        before = len(func.results)
        try:
            return func(config)
        finally:
            for result in func.results[before:]:
                trial = trial_of(row, result, objective)
                if trial.status is not Status.OK:
                    self.failures[trial.message] += 1
                searcher.tell([trial])

    def _seed_of(self, func: CostFunc) -> int:
        given = func.tuning_options.get("seed") if self._seed is None else self._seed
        return 0 if given is None else given


def _objective(func: CostFunc) -> Objective:
    """What Kernel Tuner makes small or large.

    Raises:
        StrategyError: if there are several.
    """
    if len(func.objective) != 1:
        raise StrategyError(
            f"expected one objective, got {', '.join(func.objective)}; for several at a time use a strategy such as "
            "nsga2"
        )
    return Objective(func.objective[0], bool(func.objective_higher_is_better[0]))


def trial_of(row: Digits, result: Mapping[str, Any], objective: Objective) -> Trial:
    """The trial of one of Kernel Tuner's results.

    Args:
        row: the configuration's digits, `[n_knobs]`.
        result: its values, what was measured (times in milliseconds), or `__error__`.

    Raises:
        StrategyError: if the result has no number for the objective.
    """
    timings = {
        name: float(result[key]) * _MS
        for name, key in (("build", "compile_time"), ("run", "benchmark_time"))
        if isinstance(result.get(key), (int, float)) and math.isfinite(result[key])
    }
    try:
        entry = entry_of(str(result["__error__"]) if "__error__" in result else result[objective.name], objective, _MS)
    except (KeyError, TypeError, ValueError) as error:
        raise StrategyError(
            f"expected a number for the objective {objective.name!r} in each result, got one with "
            f"{', '.join(str(name) for name in result)}; name one of these, or add a metric or an observer for it"
        ) from error
    if entry.status is not Status.OK:
        return Trial(tuple(row), entry.status, message=entry.message, timings=timings)
    return dataclasses.replace(objective.trial(row, entry.value), timings=timings)
