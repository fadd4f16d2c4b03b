"""What scheduling a graph gains: its peak as it is, in Kahn's order, in the best order, and rewritten."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chameleon.errors import UsageError
from chameleon.serenity.accounting import lifetimes, peak_bytes
from chameleon.serenity.arena.plan import Arena, plan_arena
from chameleon.serenity.fitting import find_fit
from chameleon.serenity.graph import Graph
from chameleon.serenity.order.heuristics import as_is, kahn
from chameleon.serenity.order.schedule import Schedule, ScheduleOptions, schedule
from chameleon.serenity.rewrite.search import rewrite

Solve = Callable[[Graph], Schedule]
Verdict = Literal["fits", "does not fit", "not known"]

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "kib": 1 << 10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 1 << 20,
    "gb": 10**9,
    "gib": 1 << 30,
}


@dataclass(frozen=True)
class Row:
    """One way to run a graph: its order, and what is known about it.

    Attributes:
        order: names of the steps.
        peak_bytes: peak of the order, counted by `chameleon.serenity.accounting`.
        schedule: what the solver returned, if a solver made the order.
    """

    order: tuple[str, ...] = field(repr=False)
    peak_bytes: int
    schedule: Schedule | None = None


@dataclass(frozen=True)
class MemorySummary:
    """The peaks of a network and its arena.

    Attributes:
        graph: the graph as it was given.
        rows: the rows `as_is`, `kahn`, `best` and, if rewriting was tried, `rewritten`.
        rewritten_graph: the graph of the row `rewritten`; None if rewriting was not tried. It is the given graph if no
            rewrite lowers the peak.
        rewrites: what was applied, as text for people.
        arena: the arena of the last row, or of another order that fits into a budget.
        measured_peak_bytes: the peak of the last row in a real run; None if it was not run.
        alignment: all peaks and bounds count sizes that are rounded up to it, as the arena does.
        arena_of: the graph and the order that the arena belongs to; None for those of the last row.
        unfit_bytes: no order has an arena of this size or less; -1 if that is not known of any size.
    """

    graph: Graph = field(repr=False)
    rows: dict[str, Row]
    rewritten_graph: Graph | None
    rewrites: tuple[str, ...]
    arena: Arena
    measured_peak_bytes: int | None = None
    alignment: int = 1
    arena_of: tuple[Graph, tuple[str, ...]] | None = field(default=None, repr=False)
    unfit_bytes: int = -1

    @property
    def best(self) -> Schedule:
        """The schedule of the graph as it was given."""
        found = self.rows["best"].schedule
        assert found is not None  # every summary has this row
        return found

    @property
    def last(self) -> Schedule:
        """The schedule that would be run.

        It is the schedule of the rewritten graph, or the best order of the given graph if rewriting was not tried.
        """
        row = self.rows.get("rewritten")
        return row.schedule if row and row.schedule else self.best

    @property
    def lower_bound_bytes(self) -> int:
        """No order needs less than this, neither of the given graph nor of the rewritten one."""
        return min(self.best.lower_bound_bytes, self.last.lower_bound_bytes)

    def to_json(self) -> dict[str, Any]:
        """What `chameleon memory --json` writes.

        The lower bound and the proof belong to the graph as given. The arena and the measured peak belong to the last
        row.
        """
        peaks = {
            name: self.rows[name].peak_bytes if name in self.rows else None
            for name in ("as_is", "kahn", "best", "rewritten")
        }
        return {
            "model": self.graph.name,
            "nodes": len(self.graph.steps),
            "peak_bytes": peaks,
            "lower_bound_bytes": self.best.lower_bound_bytes,
            "proven": self.best.proven,
            "arena_bytes": self.arena.size_bytes,
            "measured_peak_bytes": self.measured_peak_bytes,
            "schedule_s": round(sum(found.seconds for found in self._schedules()), 4),
        }

    def _schedules(self) -> list[Schedule]:
        """What the solver returned, each once: rewriting that changes nothing is not solved again."""
        return list({id(row.schedule): row.schedule for row in self.rows.values() if row.schedule}.values())

    def verdict(self, budget_bytes: int) -> Verdict:
        """Say whether the network fits into a memory of this size.

        Returns:
            "fits" if its arena does; "does not fit" if no order at all does; "not known" otherwise.
        """
        if self.arena.size_bytes <= budget_bytes:
            return "fits"
        refuted = self.lower_bound_bytes > budget_bytes or self.unfit_bytes >= budget_bytes
        return "does not fit" if refuted else "not known"


def summarise(
    graph: Graph, options: ScheduleOptions, *, rewriting: bool = True, alignment: int = 64, arena_limit_s: float = 10.0
) -> MemorySummary:
    """Find the best order of a graph, rewrite the graph, and place its tensors in an arena.

    The rewriting reads the graph's own `op` and `attrs`. Sizes count as rounded up to the alignment.
    """
    sized = graph.aligned(alignment)

    def solve(candidate: Graph) -> Schedule:
        return schedule(candidate.aligned(alignment), options)

    rows = rows_of(sized, solve)
    if not rewriting:
        return with_arena(graph, rows, alignment=alignment, arena_limit_s=arena_limit_s)
    best = rows["best"].schedule
    found = rewrite(graph, lambda candidate: best if best and candidate is graph else solve(candidate))
    rows["rewritten"] = Row(found.schedule.order, found.schedule.peak_bytes, found.schedule)
    applied = tuple(map(str, found.applied))
    return with_arena(graph, rows, found.graph, applied, alignment=alignment, arena_limit_s=arena_limit_s)


def fitted(summary: MemorySummary, budget_bytes: int, time_limit_s: float) -> MemorySummary:
    """Look at other orders, where it is not known whether the network fits into a budget.

    Returns:
        The summary with the arena of an order that fits, or with the knowledge that none does.
    """
    if summary.verdict(budget_bytes) != "not known":
        return summary
    graphs = [g for g in (summary.rewritten_graph, summary.graph) if g is not None]
    graphs = graphs[:1] if graphs[-1] is graphs[0] else graphs
    found = []
    for graph in graphs:
        fit = find_fit(graph, budget_bytes, summary.alignment, time_limit_s / len(graphs))
        if fit.arena is not None:
            return replace(summary, arena=fit.arena, arena_of=(graph, fit.order))
        found.append(fit.answer)
    return replace(summary, unfit_bytes=budget_bytes) if set(found) == {"no"} else summary


def rows_of(graph: Graph, solve: Solve) -> dict[str, Row]:
    """Make the rows of a graph that is not rewritten."""
    best = solve(graph)
    orders = {"as_is": as_is(graph), "kahn": kahn(graph)}
    rows = {name: Row(order, peak_bytes(graph, order)) for name, order in orders.items()}
    return {**rows, "best": Row(best.order, best.peak_bytes, best)}


def with_arena(
    graph: Graph,
    rows: dict[str, Row],
    rewritten: Graph | None = None,
    rewrites: Sequence[str] = (),
    *,
    alignment: int = 64,
    arena_limit_s: float = 10.0,
) -> MemorySummary:
    """Make the summary, with an arena for the last row."""
    last = rows["rewritten" if rewritten else "best"]
    sized = (rewritten or graph).aligned(alignment)
    arena = plan_arena(lifetimes(sized, last.order), alignment=alignment, time_limit_s=arena_limit_s)
    return MemorySummary(graph, rows, rewritten, tuple(rewrites), arena, alignment=alignment)


def measured(summary: MemorySummary, peak: int) -> MemorySummary:
    """Return the summary with the peak that was measured in a run."""
    return replace(summary, measured_peak_bytes=peak)


def parse_bytes(text: str) -> int:
    """Read a number of bytes from text.

    The text is a number, plain or with a unit: `512KB` (thousands), `512KiB` (times 1024), `2MB`, `2MiB`.

    Raises:
        UsageError: if it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"expected a size such as 512KB, 256KiB, 2MB or 65536 (bytes), got {text!r}")
    return int(float(match.group(1)) * unit)
