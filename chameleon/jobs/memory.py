"""`chameleon memory MODEL`: a network's peaks in the orders of `chameleon.serenity.summary`, on the kernels that would run.

The kernels are those of `chameleon.kernels.lower.lower` with the lean default schedule. The last row is built and run: what it
allocates is measured, and its outputs are compared with those of the same network as TVM orders and plans it.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.jobs.compare import Difference, difference
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, lower
from chameleon.memory.graph import extract_graph
from chameleon.memory.lower import lean, lean_rewritten, lower_rewritten
from chameleon.memory.measured_peak import MeasuredPeak, can_measure, measure_peak
from chameleon.memory.placed_concats import placed_concats
from chameleon.memory.plan import MemoryOptions, plan_memory, stock_plan_bytes
from chameleon.models.load import Model, input_arrays, load_model
from chameleon.models.shapes import InputShape
from chameleon.serenity.graph import Graph
from chameleon.serenity.order.schedule import Schedule, ScheduleOptions, schedule
from chameleon.serenity.summary import MemorySummary, Row, measured, rows_of, with_arena
from chameleon.target import detect_target, parse_target

Say = Callable[[str], None]

SEARCH_LIMIT_S = 5.0
"""For the order of each graph that the search of rewrites looks at."""


@dataclass(frozen=True)
class MemorySettings:
    """What to look at, and how long."""

    target: str | None = None  # None: this machine
    input_shape: InputShape | None = None  # for models whose file leaves it open
    dims: Mapping[str, int] = field(default_factory=dict)  # sizes of open dimensions, by name
    time_limit_s: float = 60.0  # for each order
    arena_limit_s: float = 10.0
    rewrite: bool = True
    measure: bool = True
    count_inputs: bool = (
        False  # count the inputs as TFLite does; the measured peak has them not, so it is left out then
    )


@dataclass(frozen=True)
class ModelMemory:
    """A model's summary and how it compares with TVM's own planning of the same kernels, their default schedules as usual.

    Attributes:
        summary: the rows, the arena, the measured peak.
        scratch_bytes: what kernels allocate inside their loops, beside the arena, at most.
        stock_planned_bytes: TVM's storages and outputs; workspaces inside kernels are not in it.
        stock_measured_bytes: what a run of that takes; none if nothing was measured.
        difference: of the outputs of both.
    """

    summary: MemorySummary
    scratch_bytes: int
    stock_planned_bytes: int
    stock_measured_bytes: int | None = None
    difference: Difference | None = field(default=None)


def memory_of_model(spec: str, settings: MemorySettings, say: Say) -> ModelMemory:
    """Order, rewrite, place and, if asked for, run a model.

    Raises:
        ChameleonError: with a message for people, on anything that the user can mend.
    """
    target = parse_target(settings.target) if settings.target else detect_target()
    say(f"loading {spec} for {target.kind.name}")
    model = load_model(spec, input_shape=settings.input_shape, dims=settings.dims, say=say)
    lowered = lower(model, target)
    kernels = lean(lowered, target)
    say(f"ordering {model.name}")
    graph = _graph(kernels, model, settings)

    def solve(candidate: Graph) -> Schedule:
        return schedule(candidate, ScheduleOptions(time_limit_s=settings.time_limit_s))

    def quickly(candidate: Graph) -> Schedule:
        """For the many graphs of the search."""
        return schedule(candidate, ScheduleOptions(time_limit_s=min(settings.time_limit_s, SEARCH_LIMIT_S)))

    rows = rows_of(graph, solve)
    if not settings.rewrite:
        return _run(
            model,
            target,
            lowered,
            kernels,
            with_arena(graph, rows, arena_limit_s=settings.arena_limit_s),
            settings,
            say,
        )
    say("rewriting, where that lowers the peak")
    found = lower_rewritten(model, target, quickly)
    kernels = lean_rewritten(found.lowered, target, quickly)
    after = _graph(kernels, model, settings)
    best = solve(after)
    rows["rewritten"] = Row(best.order, best.peak_bytes, best)
    rewrites = (*filter(None, [str(found.rewrites)]), *(f"in place:{name}" for name in placed_concats(kernels)))
    summary = with_arena(graph, rows, after, rewrites, arena_limit_s=settings.arena_limit_s)
    return _run(model, target, lowered, kernels, summary, settings, say)


def _graph(kernels: IRModule, model: Model, settings: MemorySettings) -> Graph:
    return extract_graph(kernels, model.name, count_inputs=settings.count_inputs).graph


def _run(
    model: Model,
    target: Target,
    lowered: IRModule,
    kernels: IRModule,
    summary: MemorySummary,
    settings: MemorySettings,
    say: Say,
) -> ModelMemory:
    """Build both networks, run them, compare."""
    stock = schedule_defaults(lowered, target)
    with target:
        mod, plan = plan_memory(
            kernels, lambda _: summary.last, MemoryOptions(settings.arena_limit_s, model.name, rewrite_kernels=False)
        )
    result = ModelMemory(summary, plan.scratch_bytes, stock_plan_bytes(stock))
    if not settings.measure or settings.count_inputs:
        return result
    if why := can_measure(target.kind.name):
        say(why)
        return result
    say("building and running it once, and once as TVM plans it")
    ours, theirs = (_measure(m, model, target) for m in (mod, stock))
    return ModelMemory(
        measured(summary, ours.tensor_peak_bytes),
        plan.scratch_bytes,
        result.stock_planned_bytes,
        theirs.tensor_peak_bytes,
        difference(ours.outputs, theirs.outputs),
    )


def _measure(mod: Any, model: Model, target: Target) -> MeasuredPeak:
    inputs = input_arrays(model, np.random.default_rng(0))
    return measure_peak(build(mod, target), inputs, int(target.attrs.get("num-cores", 1)))
