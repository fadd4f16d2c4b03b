"""The command `chameleon memory`: prints tables, writes files, and answers whether a network fits into a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from chameleon.errors import ChameleonError, UsageError
from chameleon.files import check_writable
from chameleon.jobs.stages import stage
from chameleon.serenity.graph import read_graph, write_graph
from chameleon.serenity.order.schedule import ScheduleOptions
from chameleon.serenity.summary import MemorySummary, Row, fitted, parse_bytes, summarise

if TYPE_CHECKING:
    from chameleon.jobs.memory import ModelMemory
    from chameleon.memory.plan import MemoryPlan

ALIGNMENT = 64
NAMES = {"as_is": "as it is", "kahn": "Kahn", "best": "best order", "rewritten": "+ rewriting"}


@dataclass(frozen=True)
class MemoryRequest:
    """What `chameleon memory` was asked for."""

    model: str  # a zoo name, an .onnx or a .pt2 file, or a graph as JSON
    target: str | None = None
    input_shape: tuple[str, ...] = ()  # `1,3,224,224`, or `input_ids=1,16` for each input
    dims: tuple[str, ...] = ()  # sizes of open dimensions, such as `batch=1`
    budget: str | None = None
    time_limit_s: float = 120.0
    rewrite: bool = True
    measure: bool = True
    count_inputs: bool = False
    alignment: int | None = None  # of the arena of a graph, in bytes; for models it is TVM's, 64
    plot: Path | None = None
    json_out: Path | None = None
    graph_out: Path | None = None


def run_memory(request: MemoryRequest, console: Console, say: Callable[[str], None]) -> None:
    """Print the table, write the files that were asked for, and say whether the network fits into the budget.

    Raises:
        ChameleonError: if the network provably does not fit into the budget, or cannot be read.
    """
    if request.alignment is not None and request.alignment < 1:
        raise UsageError(f"expected an alignment of 1 byte or more, got {request.alignment}")
    check_time_limit(request.time_limit_s)
    budget = parse_bytes(request.budget) if request.budget else None
    for path in (request.plot, request.json_out, request.graph_out):
        check_writable(path)
    if request.model.endswith(".json"):
        summary = _of_graph(request, budget)
        _print_rows(summary, console)
    else:
        memory = _of_model(request, say)
        summary = memory.summary
        _print_rows(summary, console)
        _print_model(memory, console)
    _write(summary, request)
    if budget is not None:
        _answer(summary, budget, request.budget or "", console)


def check_time_limit(seconds: float) -> None:
    """Check what `--time-limit` was given.

    Raises:
        UsageError: if it is not above 0.
    """
    if not seconds > 0:
        raise UsageError(f"expected a time limit above 0 s, got {seconds:g}")


def _of_graph(request: MemoryRequest, budget: int | None) -> MemorySummary:
    graph = read_graph(request.model)
    for flag, given in (("--target", request.target), ("--input-shape", request.input_shape), ("--dim", request.dims)):
        if given:
            raise UsageError(f"{flag} does not fit a graph; it is for models")
    options = ScheduleOptions(time_limit_s=request.time_limit_s)
    summary = summarise(graph, options, rewriting=request.rewrite, alignment=request.alignment or ALIGNMENT)
    return summary if budget is None else fitted(summary, budget, request.time_limit_s)


def _of_model(request: MemoryRequest, say: Callable[[str], None]) -> ModelMemory:
    if request.alignment not in (None, ALIGNMENT):
        raise UsageError(f"--alignment is for graphs; TVM's tensors are aligned to {ALIGNMENT} bytes")
    try:
        with stage(say, "importing TVM"):
            from chameleon.jobs.memory import MemorySettings, memory_of_model
            from chameleon.models.shapes import parse_dims, parse_shapes
    except ModuleNotFoundError as error:
        raise ChameleonError(
            f"models need {error.name} (pip install 'chameleon-tvm[all]'); a graph as JSON (graph.json) does without"
        ) from error
    settings = MemorySettings(
        target=request.target,
        input_shape=parse_shapes(request.input_shape),
        dims=parse_dims(request.dims),
        time_limit_s=request.time_limit_s,
        rewrite=request.rewrite,
        measure=request.measure,
        count_inputs=request.count_inputs,
    )
    return memory_of_model(request.model, settings, say)


def _print_rows(summary: MemorySummary, console: Console) -> None:
    sizes = f", sizes in steps of {summary.alignment} bytes" if summary.alignment > 1 else ""
    title = f"{summary.graph.name}: {len(summary.graph.steps)} nodes, peak memory in kB (1000 bytes){sizes}"
    console.print(title, highlight=False, soft_wrap=True)
    table = Table("")
    for name in ("peak kB", "times last", "bound kB", "", "states", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    last = summary.last.peak_bytes
    for name, row in summary.rows.items():
        times = f"{row.peak_bytes / last:.2f}" if last else "-"
        table.add_row(NAMES[name], kilobytes(row.peak_bytes), times, *_solved(row))
    console.print(table)
    if "rewritten" in summary.rows:
        console.print(
            f"rewritten: {', '.join(summary.rewrites) or 'nothing, no rewrite lowers the peak'}", highlight=False
        )
    arena = summary.arena
    over = (
        f"{arena.size_bytes / arena.bound_bytes - 1:.1%} above" if arena.size_bytes > arena.bound_bytes else "equal to"
    )
    console.print(f"arena: {kilobytes(arena.size_bytes)} kB, {over} its liveness bound", highlight=False)


def _solved(row: Row) -> tuple[str, str, str, str]:
    found = row.schedule
    if found is None:
        return "", "", "", ""
    proof = "proven" if found.proven else f"gap {row.peak_bytes / max(found.lower_bound_bytes, 1) - 1:.1%}"
    return kilobytes(found.lower_bound_bytes), proof, str(found.states), f"{found.seconds:.2f}"


def _print_model(memory: ModelMemory, console: Console) -> None:
    summary = memory.summary
    if memory.scratch_bytes:
        console.print(
            f"kernels allocate up to {kilobytes(memory.scratch_bytes)} kB more inside their loops", highlight=False
        )
    if memory.unplanned:
        console.print(f"not in the arena: {unplanned_text(memory.unplanned)}", highlight=False)
    if summary.measured_peak_bytes is not None:
        share = summary.measured_peak_bytes / max(summary.arena.size_bytes, 1) - 1
        console.print(f"measured: {kilobytes(summary.measured_peak_bytes)} kB, arena {share:+.2%}", highlight=False)
    text = f"TVM's own plan of these kernels: {kilobytes(memory.stock_planned_bytes)} kB"
    if memory.stock_measured_bytes is not None:
        text += f", measured {kilobytes(memory.stock_measured_bytes)} kB (workspaces of kernels included)"
    console.print(text, highlight=False)
    if memory.difference is not None:
        d = memory.difference
        console.print(f"outputs differ by {d.absolute:.1e} at most, {d.relative:.1e} of the largest", highlight=False)


def _write(summary: MemorySummary, request: MemoryRequest) -> None:
    if request.json_out:
        request.json_out.write_text(json.dumps(summary.to_json(), indent=1) + "\n")
    if request.graph_out:
        write_graph(summary.graph, request.graph_out)
    if request.plot:
        _draw(summary, request.plot)


def _draw(summary: MemorySummary, path: Path) -> None:
    """Draw the memory of all orders in the table, and the arena of the last one."""
    from chameleon.serenity.picture import draw_memory

    graph, last = summary.rewritten_graph or summary.graph, "rewritten" if summary.rewritten_graph else "best"
    given = ("as_is", "kahn", "best")[: 3 if summary.rewritten_graph else 2]
    sized, name, order = summary.graph.aligned(summary.alignment), NAMES[last], summary.last.order
    others = {NAMES[row]: (sized, summary.rows[row].order) for row in given}
    if summary.arena_of is not None:
        others[name] = (graph.aligned(summary.alignment), order)
        (graph, order), name = summary.arena_of, "an order that fits"
    draw_memory(graph.aligned(summary.alignment), {name: order}, summary.arena, path, others=others)


def _answer(summary: MemorySummary, budget: int, text: str, console: Console) -> None:
    verdict = summary.verdict(budget)
    bound = f"{summary.lower_bound_bytes} bytes"
    if verdict == "does not fit":
        what = "no order of it, rewritten or not," if summary.rewrites else "no order of it"
        why = f"{what} needs less than {bound}"
        if summary.lower_bound_bytes <= budget:  # a peak fits, but its tensors cannot be placed
            why = f"{what} has an arena as small as that; the least peak of any is {bound}"
        raise ChameleonError(f"{summary.graph.name} does not fit into {text} ({budget} bytes): {why}")
    if verdict == "fits":
        console.print(
            f"it fits into {text} ({budget} bytes): its arena takes {summary.arena.size_bytes}",
            highlight=False,
            soft_wrap=True,
        )
        return
    found = f"the best order found needs {summary.last.peak_bytes}, its arena {summary.arena.size_bytes}"
    why = f"{found}, the lower bound is {bound}"
    console.print(f"not known whether it fits into {text} ({budget} bytes): {why}", highlight=False, soft_wrap=True)


def plan_text(plan: MemoryPlan) -> str:
    """The memory of a compiled network in one line."""
    found = plan.schedule
    proof = (
        "the least of any order"
        if found.proven
        else f"no order needs less than {kilobytes(found.lower_bound_bytes)} kB"
    )
    text = f"memory: arena {kilobytes(plan.arena.size_bytes)} kB; peak {kilobytes(found.peak_bytes)} kB ({proof})"
    text += f"; inside kernels up to {kilobytes(plan.scratch_bytes)} kB" * bool(plan.scratch_bytes)
    return text + f"; not in it: {unplanned_text(plan.unplanned)}" * bool(plan.unplanned)


def unplanned_text(names: Sequence[str]) -> str:
    """The tensors that only a run can allocate, in words."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}, which a run allocates when it knows the shape"


def kilobytes(size_bytes: int) -> str:
    """A size in kB of 1,000 bytes, as the paper counts; the unit is left out."""
    return f"{size_bytes / 1000:.1f}"
