"""`chameleon memory MODEL`: finds the peak memory of a network in several orders, for the kernels that would run.

The orders are those of `chameleon.serenity.summary`. The kernels are those of `chameleon.kernels.lower.lower` with the
lean default schedule. The network of the last row is built and run. What it allocates is measured. Its outputs are
compared with those of the same network in TVM's order and with TVM's memory plan.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.jobs.compare import Difference, difference
from chameleon.jobs.stages import Say
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, lower
from chameleon.memory.deadline import SEARCH_LIMIT_S, Deadline
from chameleon.memory.graph import ALIGNMENT, extract_graph
from chameleon.memory.lower import lean, lean_rewritten, lower_rewritten
from chameleon.memory.measured_peak import MeasuredPeak, can_measure, measure_peak
from chameleon.memory.placed_concats import placed_concats
from chameleon.memory.plan import MemoryOptions, plan_memory, stock_plan_bytes
from chameleon.models.load import Model, input_arrays, load_model
from chameleon.models.shapes import InputShape
from chameleon.serenity.graph import Graph
from chameleon.serenity.summary import MemorySummary, Row, measured, rows_of, with_arena
from chameleon.target import detect_target, parse_target

BASE_SHARE, SEARCH_SHARE = 0.4, 0.7
"""The part of the time that the order of the network as it is may take, and the part of the rest for the rewrites."""


@dataclass(frozen=True)
class MemorySettings:
    """What to look for, and for how long."""

    target: str | None = None  # None: this machine
    input_shape: InputShape | None = None  # for models whose file leaves it open
    dims: Mapping[str, int] = field(default_factory=dict)  # sizes of open dimensions, by name
    time_limit_s: float = 120.0  # for all orders, rewrites and places together; loading and running come on top
    arena_limit_s: float = 10.0
    rewrite: bool = True
    measure: bool = True
    # Count the inputs, as TFLite does. The measured peak does not contain them, so nothing is measured then.
    count_inputs: bool = False


@dataclass(frozen=True)
class ModelMemory:
    """The memory of a model, and for comparison that of stock TVM: the same kernels, planned by TVM itself.

    Our kernels have the lean default schedules, those of stock TVM the usual ones.

    Attributes:
        summary: the rows, the arena, the measured peak.
        scratch_bytes: the most that our kernels allocate inside their loops, in addition to the arena.
        stock_planned_bytes: TVM's storages and outputs; workspaces inside kernels are not in it.
        stock_measured_bytes: what a run of stock TVM takes; None if nothing was measured.
        difference: between the outputs of both; None if nothing was measured.
        unplanned: the tensors that are not in the arena; see `chameleon.memory.plan.MemoryPlan`.
    """

    summary: MemorySummary
    scratch_bytes: int
    stock_planned_bytes: int
    stock_measured_bytes: int | None = None
    difference: Difference | None = field(default=None)
    unplanned: tuple[str, ...] = ()


def memory_of_model(spec: str, settings: MemorySettings, say: Say) -> ModelMemory:
    """Find the orders, the rewrites and the arena of a model and, if asked for, run it.

    Raises:
        ChameleonError: with a message for people, on anything that the user can fix.
    """
    target = parse_target(settings.target) if settings.target else detect_target()
    say(f"loading {spec} for {target.kind.name}")
    model = load_model(spec, input_shape=settings.input_shape, dims=settings.dims, say=say)
    lowered = lower(model, target)
    kernels = lean(lowered, target)
    say(f"ordering {model.name}")
    graph = _graph(kernels, model, settings)
    deadline = Deadline(settings.time_limit_s)
    base = deadline.part(BASE_SHARE) if settings.rewrite else deadline
    rows = rows_of(graph, base.solver())
    after, rewrites = None, ()
    if settings.rewrite:
        say("rewriting, where that lowers the peak")
        kernels, rewrites = _rewritten(model, target, deadline.part(SEARCH_SHARE), say)
        after = _graph(kernels, model, settings)
        best = deadline.solver()(after)
        rows["rewritten"] = Row(best.order, best.peak_bytes, best)
    arena_s = min(settings.arena_limit_s, deadline.left_s)
    summary = with_arena(graph, rows, after, rewrites, arena_limit_s=arena_s)
    if deadline.passed():
        say(f"the time limit of {settings.time_limit_s:g} s is over: orders and arena are the best found until then")
    return _run(model, target, lowered, kernels, summary, settings, say)


def _rewritten(model: Model, target: Target, deadline: Deadline, say: Say) -> tuple[IRModule, tuple[str, ...]]:
    """The kernels after the rewrites that lower the peak, and what these are, for people."""
    solve = deadline.solver(SEARCH_LIMIT_S)
    found = lower_rewritten(model, target, solve, deadline=deadline)
    kernels = lean_rewritten(found.lowered, target, solve, deadline)
    if not found.complete or deadline.passed():
        say(f"the search of rewrites was cut off by the time limit, after {found.tries} tries")
    named = (f"in place:{name}" for name in placed_concats(kernels))
    return kernels, (*filter(None, [str(found.rewrites)]), *named)


def _graph(kernels: IRModule, model: Model, settings: MemorySettings) -> Graph:
    """The graph of the kernels, with the sizes that tensors have in the arena."""
    return extract_graph(kernels, model.name, count_inputs=settings.count_inputs).graph.aligned(ALIGNMENT)


def _run(
    model: Model,
    target: Target,
    lowered: IRModule,
    kernels: IRModule,
    summary: MemorySummary,
    settings: MemorySettings,
    say: Say,
) -> ModelMemory:
    """Build the network as we plan it and as TVM does, run both, and compare them."""
    stock = schedule_defaults(lowered, target)
    with target:
        mod, plan = plan_memory(
            kernels, lambda _: summary.last, MemoryOptions(settings.arena_limit_s, model.name, rewrite_kernels=False)
        )
    result = ModelMemory(summary, plan.scratch_bytes, stock_plan_bytes(stock), unplanned=plan.unplanned)
    if not settings.measure or settings.count_inputs:
        return result
    if why := can_measure(target.kind.name):
        say(why)
        return result
    say("building and running it once, and once as TVM plans it")
    ours, theirs = (_measure(m, model, target) for m in (mod, stock))
    return replace(
        result,
        summary=measured(summary, ours.tensor_peak_bytes),
        stock_measured_bytes=theirs.tensor_peak_bytes,
        difference=difference(ours.outputs, theirs.outputs),
    )


def _measure(mod: Any, model: Model, target: Target) -> MeasuredPeak:
    inputs = input_arrays(model, np.random.default_rng(0))
    return measure_peak(build(mod, target), inputs, int(target.attrs.get("num-cores", 1)))
