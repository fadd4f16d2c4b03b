"""What the picture of a network's memory shows: its lines and rectangles against the accounting and the arena."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle, StepPatch

from chameleon.errors import UsageError
from chameleon.serenity.accounting import footprint, lifetimes
from chameleon.serenity.arena.plan import ArenaError, plan_arena
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.picture import draw_memory, memory_figure
from tests.serenity.graphs import random_graph, random_order

NODES = (
    Node("image", (), 4000),
    Node("a$1", ("image",), 9000, workspace_bytes=2000),
    Node("b", ("a$1",), 3000),
    Node("c", ("a$1",), 3000),
    Node("sum", ("b", "c"), 3000),
)
GRAPH = Graph(NODES, inputs=("image",), outputs=("sum",), name="tiny")
ORDER = ("a$1", "c", "b", "sum")


def test_lines_are_footprints_and_rectangles_are_buffers() -> None:
    buffers = lifetimes(GRAPH, ORDER)
    arena = plan_arena(buffers, alignment=1)
    wide = random_graph(5, n=12)
    figure = memory_figure(GRAPH, {"as it is": GRAPH.steps, "best": ORDER}, arena, others={"wide": (wide, wide.steps)})
    above, below = figure.axes
    lines = [p for p in above.patches if isinstance(p, StepPatch) and not p.get_fill()]
    expected = [footprint(wide, wide.steps), footprint(GRAPH, GRAPH.steps), footprint(GRAPH, ORDER)]
    for line, use in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line.get_data().values, use.during / 1000)
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels[1:] == ["as it is: peak 15.0 kB", "best: peak 15.0 kB"]
    boxes = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in below.patches if isinstance(p, Rectangle)]
    places = [(b.start, arena.offsets[b.name] / 1000, b.stop - b.start, b.size_bytes / 1000) for b in buffers]
    np.testing.assert_allclose(boxes, places)
    assert {"a$1", "b", "c"} <= {text.get_text() for text in below.texts}


@pytest.mark.parametrize(("name", "magic"), [("m.png", b"\x89PNG"), ("m.svg", b"<?xml"), ("m.pdf", b"%PDF")])
def test_a_picture_is_written(tmp_path: Path, name: str, magic: bytes) -> None:
    draw_memory(GRAPH, {"best": ORDER}, plan_arena(lifetimes(GRAPH, ORDER)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


@pytest.mark.parametrize("seed", range(6))
def test_any_graph_can_be_drawn(seed: int) -> None:
    graph, order = random_graph(seed), random_order(seed)
    memory_figure(graph, {"some order": order}, plan_arena(lifetimes(graph, order)))
    memory_figure(Graph(()), {"nothing": ()}, plan_arena([]))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    arena = plan_arena(lifetimes(GRAPH, ORDER))
    with pytest.raises(UsageError, match="expected an extension out of"):
        draw_memory(GRAPH, {"best": ORDER}, arena, tmp_path / "m.xyz")
    with pytest.raises(UsageError, match="at least one order"):
        draw_memory(GRAPH, {}, arena, tmp_path / "m.png")
    with pytest.raises(ArenaError, match="draw the arena of the last order"):
        draw_memory(GRAPH, {"best": ORDER}, plan_arena([]), tmp_path / "m.png")
