"""Decides whether some order of a graph has an arena within a budget, where the order of least peak has none.

The arena of an order may be larger than its peak. Another order, of the same peak or a larger one, may have a smaller
arena. So orders are tried one after the other. What has run so far needs a placement of its own: if there is none
within the budget, no order that begins like this fits. If all orders are ruled out, the graph does not fit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from chameleon.serenity.accounting import lifetimes
from chameleon.serenity.arena.plan import Arena, plan_arena
from chameleon.serenity.graph import Graph
from chameleon.serenity.order.problem import Problem, bits, problem_of

MOST_STEPS = 200
"""Graphs with more steps are not searched."""
PLACEMENT_S = 1.0
"""For the placement of each order, or of the beginning of one."""


@dataclass(frozen=True)
class Fit:
    """Whether some order has an arena within the budget.

    Attributes:
        answer: "yes" with the order and its arena; "no" if there is none; "not known" if a limit was reached.
    """

    answer: Literal["yes", "no", "not known"]
    order: tuple[str, ...] = ()
    arena: Arena | None = None


def find_fit(graph: Graph, budget_bytes: int, alignment: int, time_limit_s: float) -> Fit:
    """Look for an order with an arena of at most `budget_bytes`; sizes count as rounded up to the alignment."""
    if len(graph.steps) > MOST_STEPS:
        return Fit("not known")
    sized = graph.aligned(alignment)
    search = _Search(sized, problem_of(sized), budget_bytes, alignment, time.perf_counter() + time_limit_s)
    found = search.extend([], 0, search.problem.first_bytes, search.problem.first_ready)
    if found is not None:
        return found
    return Fit("not known" if search.undecided else "no")


@dataclass
class _Search:
    graph: Graph
    problem: Problem
    budget: int
    alignment: int
    deadline_s: float
    undecided: bool = False  # whether anything was left out or not decided

    def extend(self, order: list[int], done: int, in_use: int, ready: int) -> Fit | None:
        """The first order that begins with `order` and fits; None if there is none, or none was found."""
        if time.perf_counter() > self.deadline_s:
            self.undecided = True
            return None
        if done and (arena := self._placed(order, done)) is None:
            return None
        if done == self.problem.full:
            names = tuple(self.problem.names[u] for u in order)
            return Fit("yes", names, arena) if arena.size_bytes <= self.budget else None
        moves = sorted((*reversed(self.problem.run(done, in_use, u)), u) for u in bits(ready))
        for after, during, u in moves:
            if during > self.budget:
                continue
            now = done | 1 << u
            found = self.extend([*order, u], now, after, self.problem.ready_after(now, ready, u))
            if found is not None:
                return found
        return None

    def _placed(self, order: list[int], done: int) -> Arena | None:
        """An arena for what the first steps of an order need; None if none fits."""
        steps = [*order, *bits(self.problem.full & ~done)]
        stop = len(order)
        buffers = [
            replace(b, stop=min(b.stop, stop))
            for b in lifetimes(self.graph, [self.problem.names[u] for u in steps])
            if b.start < stop
        ]
        left = min(PLACEMENT_S, max(self.deadline_s - time.perf_counter(), 1e-3))
        arena = plan_arena(buffers, alignment=self.alignment, time_limit_s=left, capacity_bytes=self.budget)
        if arena.size_bytes <= self.budget:
            return arena
        if arena.least_bytes > self.budget:
            return None
        self.undecided = True
        return arena
