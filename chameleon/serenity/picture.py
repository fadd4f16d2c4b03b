"""Draws the memory of a network: how much is in use at each step, and where each tensor lies in the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chameleon.errors import UsageError
from chameleon.files import check_picture
from chameleon.serenity.accounting import Buffer, footprint, lifetimes
from chameleon.serenity.arena.plan import Arena, ArenaError
from chameleon.serenity.graph import Graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Sequence[str]
TENSORS = ("#8ecae6", "#a7c957", "#ffd166", "#cdb4db", "#c9ada7", "#90be9d", "#b8c0ff", "#f7b2bd")
KINDS = {"graph input": "#adb5bd", "graph output": "#e76f51", "workspace": "#e9ecef"}
LINES = ("#6c757d", "#f4a261", "#2a9d8f", "#d62828", "#5e60ce")
DPI, FONT_POINTS = 150, 7
LINES_DRAWN = 30  # points: the width of all outlines of buffers together


def draw_memory(
    graph: Graph,
    schedules: Mapping[str, Order],
    arena: Arena,
    path: str | Path,
    *,
    others: Mapping[str, tuple[Graph, Order]] | None = None,
) -> None:
    """Draw the memory use of some orders, and the arena of the last order.

    The upper part has one line for each order: the bytes in use while each step runs, with the peak marked. The lower
    part shows the arena. Every buffer is a rectangle at its offset, from the first to the last step that needs it.

    Args:
        graph: the network.
        schedules: orders of the graph, by the names to show. The arena belongs to the last one.
        arena: the arena for the buffers of the last order.
        path: where to write the picture. The extension says what kind of picture: .png, .svg or .pdf.
        others: orders of other graphs, such as the network before it was rewritten. They are drawn before the rest.

    Raises:
        UsageError: if there is no order, or no picture with that extension can be drawn.
        GraphError: if an order is not a valid order of its graph.
        ArenaError: if a buffer of the last order has no place in the arena.
    """
    path = Path(path)
    check_picture(path)
    memory_figure(graph, schedules, arena, others=others).savefig(path, dpi=DPI)


def memory_figure(
    graph: Graph,
    schedules: Mapping[str, Order],
    arena: Arena,
    *,
    others: Mapping[str, tuple[Graph, Order]] | None = None,
) -> Figure:
    """Make the picture of `draw_memory` without writing it to a file."""
    from matplotlib.figure import Figure  # slow to load, and only a picture needs it

    if not schedules:
        raise UsageError("nothing to draw: expected at least one order, got none")
    drawn = {**(others or {}), **{name: (graph, order) for name, order in schedules.items()}}
    name, last = list(schedules.items())[-1]
    curves = {label: footprint(*one).during for label, one in drawn.items()}
    unit, factor = ("MB", 1e6) if max(c.max(initial=0) for c in curves.values()) >= 10e6 else ("kB", 1e3)
    steps = max(len(curve) for curve in curves.values())
    figure = Figure(figsize=(min(16.0, 7.5 + 0.06 * steps), 8.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    _draw_curves(above, curves, unit, factor)
    _draw_arena(below, graph, lifetimes(graph, last), arena, unit, factor)
    above.set(ylabel=unit, xlim=(0, max(steps, 1)))
    above.set_title(f"{graph.name}: memory in use", parse_math=False)
    exact = "the least possible" if arena.proven else f"{arena.over_bound:.1%} above the liveness bound"
    below.set_title(f"Arena of {name!r}: {arena.size_bytes / factor:,.1f} {unit}, {exact}", parse_math=False)
    below.set(xlabel="step", ylabel=f"offset, {unit}")
    return figure


def _draw_curves(axis: Any, curves: Mapping[str, Any], unit: str, factor: float) -> None:
    """Draw one step line for each order, with its peak marked and named in the legend.

    The last order is on top and filled.
    """
    for i, (name, curve) in enumerate(curves.items()):
        last, color = i == len(curves) - 1, LINES[i % len(LINES)]
        use = curve / factor
        edges = np.arange(len(use) + 1)
        peak = float(use.max(initial=0))
        label = f"{name}: peak {peak:,.1f} {unit}"
        axis.stairs(
            use, edges, baseline=None, color=color, linewidth=2.0 if last else 1.3, label=label, zorder=3 + last
        )
        if last:
            axis.stairs(use, edges, fill=True, color=color, alpha=0.15, zorder=1)
        if len(use):
            axis.plot(int(use.argmax()) + 0.5, peak, "o", color=color, markersize=7 if last else 5, zorder=6)
            axis.axhline(peak, color=color, linewidth=0.7, linestyle=":", zorder=2)
    axis.set_ylim(0, None)
    axis.grid(alpha=0.25)
    legend = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_arena(axis: Any, graph: Graph, buffers: Sequence[Buffer], arena: Arena, unit: str, factor: float) -> None:
    """Draw the buffers as rectangles, and write names into the large ones."""
    from matplotlib.patches import Patch, Rectangle

    line = min(0.6, LINES_DRAWN / max(len(buffers), 1))  # the outlines of many buffers would hide them
    for i, b in enumerate(buffers):
        if b.name not in arena.offsets:
            raise ArenaError(f"buffer {b.name!r} has no offset in the arena; draw the arena of the last order")
        kind = _kind(graph, b)
        color, hatch = KINDS.get(kind, TENSORS[i % len(TENSORS)]), "////" if kind == "workspace" else None
        low, high = arena.offsets[b.name] / factor, b.size_bytes / factor
        place = (b.start, low), b.stop - b.start, high
        axis.add_patch(Rectangle(*place, facecolor=color, edgecolor="#343a40", linewidth=line, hatch=hatch, zorder=2))
    top = max(arena.size_bytes / factor, 1e-9)
    axis.axhline(top, color="#212529", linewidth=1.2, linestyle="--", zorder=3)
    axis.set_ylim(0, 1.03 * top)
    seen = {_kind(graph, b) for b in buffers}
    patches = [Patch(facecolor=TENSORS[0], edgecolor="#343a40", label="tensor")] if "tensor" in seen else []
    hatches = {"workspace": "////"}
    patches += [
        Patch(facecolor=color, edgecolor="#343a40", hatch=hatches.get(kind), label=kind)
        for kind, color in KINDS.items()
        if kind in seen
    ]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    _name_buffers(axis, [b for b in buffers if b.tensors], arena, factor)


def _kind(graph: Graph, b: Buffer) -> str:
    if not b.tensors:
        return "workspace"
    if any(name in graph.inputs for name in b.tensors):
        return "graph input"
    return "graph output" if any(name in graph.outputs for name in b.tensors) else "tensor"


def _name_buffers(axis: Any, buffers: Sequence[Buffer], arena: Arena, factor: float) -> None:
    """Write names into the rectangles that have room for one.

    A name runs along the longer side and is cut to what fits.
    """
    figure = axis.get_figure()
    figure.draw_without_rendering()  # only after this layout is the size of the axes known
    box = axis.get_window_extent()
    points = 72 / figure.dpi
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for b in buffers:
        wide = (b.stop - b.start) / (right - left) * box.width * points
        high = b.size_bytes / factor / (top - bottom) * box.height * points
        along, across = max(wide, high), min(wide, high)
        text = _cut(b.name, int((along - 4) / (0.6 * FONT_POINTS)))
        if across >= 1.25 * FONT_POINTS and text:
            middle = (b.start + b.stop) / 2, (arena.offsets[b.name] + b.size_bytes / 2) / factor
            style = {"fontsize": FONT_POINTS, "ha": "center", "va": "center", "parse_math": False, "zorder": 4}
            axis.text(*middle, text, rotation=0 if wide >= high else 90, **style)


def _cut(name: str, n: int) -> str:
    """Cut a name to at most `n` letters.

    The end of the name is kept, because names mostly differ at the end. If fewer than 3 letters fit, the result is
    empty.
    """
    if len(name) <= n:
        return name
    return f"…{name[1 - n :]}" if n >= 3 else ""
