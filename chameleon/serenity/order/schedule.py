"""Finds the order of a graph that needs the least memory, with a proof or a bound (Ahn 2020, sec. 3.1 and 3.2)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from chameleon.errors import UsageError
from chameleon.serenity.accounting import peak_bytes
from chameleon.serenity.graph import Graph
from chameleon.serenity.order import search as dp
from chameleon.serenity.order.divide import divide, node_bound
from chameleon.serenity.order.heuristics import greedy_order, kahn_order, reverse_postorder_order
from chameleon.serenity.order.problem import Problem, problem_of
from chameleon.serenity.order.search import Limits, Outcome

SMALL_WORK = 100_000  # downsets times steps: for less it is not worth loading the compiled kernels
SEARCH_SHARE = 0.8  # of the remaining time; the rest is for a beam search if the exact search fails
WIDEST_BEAM = 1 << 16


@dataclass(frozen=True)
class ScheduleOptions:
    """How to search.

    The switches may change the time that the search takes. They never change the peak that is found, as long as no
    limit is reached. (A downset is a set of steps that have run, see `chameleon.serenity.order.problem`.)

    Attributes:
        engine: `numba` is the compiled kernel, `python` the reference. `auto` takes numba if it is installed and the
            graph is large.
        divide: cut the graph where every order passes, and order the parts one by one.
        soft_budget: search under a budget of bytes. Without it all downsets are visited.
        budget_search: how the budget is found. `rising` starts at the lower bound. `paper` starts at Kahn's peak and
            goes by timeouts, as in the paper.
        lazy: with the rising budget, run steps only when they help to free something
            (`chameleon.serenity.order.lazy`).
        safe_moves: take a step that fits and frees at least as much as it takes, without trying others.
        bounds: begin with lower and upper bounds, and stop where they meet.
        time_limit_s: for the search. Loading the compiled kernels is not counted.
        step_limit_s: the paper's T, the limit for one round of its dynamic program. Used with `budget_search="paper"`.
        max_states: the most downsets to hold in memory. Each takes about 60 to 100 bytes in the compiled kernel.
    """

    engine: Literal["auto", "numba", "python"] = "auto"
    divide: bool = True
    soft_budget: bool = True
    budget_search: Literal["rising", "paper"] = "rising"
    lazy: bool = True
    safe_moves: bool = True
    bounds: bool = True
    time_limit_s: float = 60.0
    step_limit_s: float = 1.0
    max_states: int = 8_000_000


DEFAULTS = ScheduleOptions()


@dataclass(frozen=True)
class Schedule:
    """An order of a graph's steps.

    Attributes:
        order: names of the steps.
        peak_bytes: the most that is in use at any time, counted by `chameleon.serenity.accounting`.
        lower_bound_bytes: no order has a smaller peak.
        proven: whether the peak is the least possible.
        states: how many downsets the search visited.
        seconds: how long it took.
    """

    order: tuple[str, ...] = field(repr=False)
    peak_bytes: int
    lower_bound_bytes: int
    proven: bool
    states: int
    seconds: float

    @property
    def gap(self) -> float:
        """How far the peak may be above the least possible one, as a fraction of the lower bound.

        It is 0 if the peak is proven.
        """
        if self.proven:
            return 0.0
        return self.peak_bytes / self.lower_bound_bytes - 1 if self.lower_bound_bytes else float("inf")


@dataclass
class _Part:
    """A part between two cuts, and what is known about it."""

    problem: Problem
    order: tuple[int, ...]
    peak: int
    lower: int


def schedule(graph: Graph, options: ScheduleOptions = DEFAULTS) -> Schedule:
    """Find the order with the least peak memory.

    If a limit is reached, the result is the best order found, with a bound.

    Raises:
        UsageError: if numba is asked for and not installed, or a limit is not positive.
    """
    started = time.perf_counter()
    _check(options)
    whole = problem_of(graph)
    parts = [_part(p, options) for p in (divide(whole) if options.divide else [whole])]
    states = _solve(parts, options)
    order = tuple(part.problem.names[u] for part in parts for u in part.order)
    peak = peak_bytes(graph, order)
    lower = max((part.lower for part in parts), default=whole.first_bytes)
    return Schedule(order, peak, lower, lower >= peak, states, time.perf_counter() - started)


def _solve(parts: list[_Part], options: ScheduleOptions) -> int:
    """Order the parts, and return the number of downsets visited.

    The parts that seem to need the most come first. The peak of the whole is the largest peak of the parts. Some part
    needs a certain amount in any case; this is the floor. So a part is done as soon as an order of it needs no more
    than the floor.
    """
    floor = max((part.lower for part in parts), default=0) if options.bounds else 0
    states, deadline, unsolved = 0, None, []
    for part in sorted(parts, key=lambda p: -p.peak):
        if options.bounds and part.peak <= floor:
            continue
        if deadline is None:
            deadline = time.perf_counter() + options.time_limit_s
        found, deadline = _search(part, floor, options, deadline)
        states += found.states
        if found.flag == "solution":
            part.order, part.peak = found.order, found.peak
        elif found.flag == "timeout":
            unsolved.append(part)
        part.lower = max(part.lower, min(found.lower, part.peak))  # a part under the floor changes no maximum
        floor = max(floor, part.lower) if options.bounds else 0
    return states + sum(_beams(part, max(p.lower for p in parts), options, deadline or 0.0) for part in unsolved)


def _search(part: _Part, floor: int, options: ScheduleOptions, deadline: float) -> tuple[Outcome, float]:
    """Search a part exactly. A tiny part is searched in Python.

    Returns:
        The outcome, and the deadline. The deadline is later by the time that loading the kernels took.
    """
    now = time.perf_counter()
    limits = Limits(now + max(deadline - now, 0) * SEARCH_SHARE, options.max_states, options.step_limit_s)
    if options.engine != "numba":
        small = options.engine == "auto" and find_spec("numba") is not None
        few = min(limits.states, SMALL_WORK // part.problem.n) if small else limits.states
        found = _exact(dp, part, floor, options, replace(limits, states=few))
        if not small or found.flag != "timeout" or time.perf_counter() > limits.deadline_s or few == limits.states:
            return found, deadline
    loading = time.perf_counter()
    engine = _compiled()
    spent = time.perf_counter() - loading
    found = _exact(engine, part, floor, options, replace(limits, deadline_s=limits.deadline_s + spent))
    return found, deadline + spent


def _exact(engine: ModuleType, part: _Part, floor: int, options: ScheduleOptions, limits: Limits) -> Outcome:
    """Run the exact search that the options ask for."""
    problem, upper = part.problem, part.peak if options.bounds else None
    if options.soft_budget and options.budget_search == "rising":
        switches = {"safe_moves": options.safe_moves, "lazy": options.lazy}
        return engine.rise(problem, budget=floor, upper=upper, **switches, limits=limits)
    if not options.soft_budget:
        limits = replace(limits, step_s=0.0)

    def solve(budget: float) -> Outcome:
        return engine.rounds(problem, budget=budget, lower=floor, safe_moves=options.safe_moves, limits=limits)

    if options.soft_budget:
        return dp.soft_budget(solve, problem.peak(kahn_order(problem)), part.lower)
    return solve(upper if upper is not None else float("inf"))


def _beams(part: _Part, lower: int, options: ScheduleOptions, deadline: float) -> int:
    """Improve the order of a part by wider and wider beams, until the deadline.

    Returns the number of downsets visited.
    """
    loaded = "chameleon.serenity.order.compiled" in sys.modules  # if not, there is no time to load it now
    engine = _compiled() if loaded and options.engine != "python" else dp
    states, width = 0, 64
    while width <= WIDEST_BEAM and part.peak > lower and time.perf_counter() < deadline:
        found = engine.rounds(
            part.problem, budget=part.peak - 1, safe_moves=True, width=width, limits=Limits(deadline)
        )
        states += found.states
        if found.flag == "solution":
            part.order, part.peak = found.order, found.peak
        width *= 4
    return states


def _part(problem: Problem, options: ScheduleOptions) -> _Part:
    """Start with the best of the quick orders of a part, and with a lower bound."""
    orders = tuple(range(problem.n)), kahn_order(problem), reverse_postorder_order(problem), greedy_order(problem)
    best = min(orders, key=problem.peak)
    return _Part(problem, best, problem.peak(best), node_bound(problem) if options.bounds else problem.first_bytes)


def _compiled() -> ModuleType:
    from chameleon.serenity.order import compiled  # numba takes a while to load

    compiled.load()
    return compiled


def _check(options: ScheduleOptions) -> None:
    if options.engine == "numba" and find_spec("numba") is None:
        raise UsageError(
            'the engine "numba" needs numba, which is not installed: '
            'pip install "chameleon-tvm[memory]", or engine="python"'
        )
    for name in ("time_limit_s", "step_limit_s", "max_states"):
        if not getattr(options, name) > 0:
            raise UsageError(f"expected {name} to be positive, got {getattr(options, name)!r}")
