"""The quick orders: by hand, and as valid orders of any graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.errors import UsageError
from chameleon.serenity.accounting import peak_bytes, validate
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order.heuristics import as_is, beam, greedy, kahn, reverse_postorder
from chameleon.serenity.order.schedule import ScheduleOptions, schedule
from chameleon.serenity.wiring import watts_strogatz, watts_strogatz_edges
from tests.serenity.graphs import random_graph

# x -> a -> c -> y and x -> b -> d -> y
DIAMOND = Graph(
    (
        *(Node("x", (), 1), Node("a", ("x",), 5), Node("b", ("x",), 5), Node("c", ("a",), 1), Node("d", ("b",), 1)),
        Node("y", ("c", "d"), 1),
    ),
    ("x",),
    ("y",),
)


def test_by_hand() -> None:
    assert as_is(DIAMOND) == ("a", "b", "c", "d", "y")
    assert kahn(DIAMOND) == ("a", "b", "c", "d", "y")
    assert reverse_postorder(DIAMOND) == ("a", "c", "b", "d", "y")
    assert greedy(DIAMOND) == ("a", "c", "b", "d", "y")
    assert peak_bytes(DIAMOND, kahn(DIAMOND)) == 11
    assert peak_bytes(DIAMOND, greedy(DIAMOND)) == 7


def test_a_list_that_is_no_order_is_put_right_with_few_changes() -> None:
    shuffled = Graph(tuple(DIAMOND.nodes[i] for i in (5, 3, 1, 0, 2, 4)), ("x",), ("y",))
    assert as_is(shuffled) == ("a", "c", "b", "d", "y")


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_every_order_is_valid_and_no_better_than_the_best(seed: int) -> None:
    graph = random_graph(seed)
    best = schedule(graph, ScheduleOptions(engine="python")).peak_bytes
    for order in (as_is(graph), kahn(graph), reverse_postorder(graph), greedy(graph), beam(graph, 2)):
        validate(graph, order)
        assert peak_bytes(graph, order) >= best


def test_a_wider_beam_finds_the_best_order_of_a_small_graph() -> None:
    graph = watts_strogatz(20, rng=np.random.default_rng(3))
    assert peak_bytes(graph, beam(graph, 5000)) == schedule(graph).peak_bytes
    with pytest.raises(ValueError, match="positive width"):
        beam(graph, 0)


def test_a_wiring_is_the_seeds_and_runs_along_the_node_ids() -> None:
    edges = watts_strogatz_edges(32, 4, 0.75, np.random.default_rng(7))
    assert edges == watts_strogatz_edges(32, 4, 0.75, np.random.default_rng(7))
    assert edges != watts_strogatz_edges(32, 4, 0.75, np.random.default_rng(8))
    assert len(edges) == 64
    assert all(0 <= i < j < 32 for i, j in edges)


def test_a_wiring_as_a_graph() -> None:
    graph = watts_strogatz(12, rng=np.random.default_rng(0), sizes=range(12), end_bytes=9)
    assert graph.inputs == ("input",)
    assert graph.outputs == ("output",)
    assert [n.output_bytes for n in graph.nodes] == [9, *range(12), 9]
    assert all(graph.consumers[n.name] for n in graph.nodes[:-1])
    edges = watts_strogatz_edges(12, 4, 0.75, np.random.default_rng(0))
    inner = {(s, n.name) for n in graph.nodes[1:-1] for s in n.inputs if s != "input"}
    assert inner == {(f"n{i}", f"n{j}") for i, j in edges}


@pytest.mark.parametrize(("n", "k", "p"), [(4, 4, 0.5), (8, 3, 0.5), (8, 0, 0.5), (8, 4, 1.5)])
def test_an_impossible_wiring_is_refused(n: int, k: int, p: float) -> None:
    with pytest.raises(UsageError, match="no Watts-Strogatz wiring"):
        watts_strogatz_edges(n, k, p, np.random.default_rng(0))
    with pytest.raises(UsageError, match="expected 8 sizes"):
        watts_strogatz(8, rng=np.random.default_rng(0), sizes=[1])
