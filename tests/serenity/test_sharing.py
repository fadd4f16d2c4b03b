"""Views of views and overwriting with other sizes, brought to one form; sizes that are rounded up or too large."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chameleon.serenity.accounting import lifetimes, peak_bytes
from chameleon.serenity.graph import Graph, GraphError, Node
from chameleon.serenity.order.divide import divide, node_bound
from chameleon.serenity.order.heuristics import greedy_order
from chameleon.serenity.order.problem import Problem, bits, problem_of
from chameleon.serenity.order.schedule import ScheduleOptions, schedule
from tests.serenity.graphs import random_graph
from tests.serenity.oracles import least_peak


def chain(*nodes: Node, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return Graph((Node("x", (), 8), *nodes), ("x",), outputs)


def test_a_view_of_a_view_lies_where_the_first_one_lies() -> None:
    nodes = [
        Node("r3", ("r2",), 4, storage="r2"),  # listed before what it looks at
        Node("a", ("x",), 8),
        Node("r1", ("a",), 8, storage="a"),
        Node("r2", ("r1",), 8, storage="r1"),
        Node("y", ("r3",), 8),
    ]
    graph = chain(*nodes)
    assert graph.members["a"] == ("r3", "a", "r1", "r2")
    assert peak_bytes(graph, ("a", "r1", "r2", "r3", "y")) == 16
    assert schedule(graph).peak_bytes == least_peak(graph) == 16
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def test_views_in_a_circle_are_refused() -> None:
    with pytest.raises(GraphError, match="expected `storage` to name another node that owns its memory"):
        chain(Node("a", ("x",), 8, storage="b"), Node("b", ("a",), 8, storage="a"), Node("y", ("b",), 8))


@pytest.mark.parametrize(
    ("nodes", "storage"),
    [
        ([Node("b", ("a",), 4, in_place="a")], "a"),  # smaller: it lies in the memory of `a`
        ([Node("c", ("a",), 1), Node("b", ("a", "c"), 4, in_place="a")], "a"),  # the other reader is always earlier
        ([Node("c", ("a",), 1), Node("b", ("a",), 4, in_place="a"), Node("z", ("c", "b"), 1)], ""),  # it may be later
    ],
)
def test_overwriting_an_input_of_another_size(nodes: list[Node], storage: str) -> None:
    last = nodes[-1].name
    graph = chain(Node("a", ("x",), 8), *nodes, Node("y", (last,), 1))
    assert (graph.by_name["b"].storage, graph.by_name["b"].in_place) == (storage, "")
    assert schedule(graph).peak_bytes == least_peak(graph)


def test_a_larger_tensor_cannot_overwrite() -> None:
    with pytest.raises(GraphError, match="in place, its 12 bytes must fit into the 8 of 'a'"):
        chain(Node("a", ("x",), 8), Node("y", ("a",), 12, in_place="a"))


def test_rows_of_smaller_and_smaller_tensors_share_one_memory() -> None:
    nodes = [Node("a", ("x",), 8), Node("b", ("a",), 6, in_place="a"), Node("v", ("b",), 6, storage="b")]
    graph = chain(*nodes, Node("c", ("v",), 3, in_place="v"), Node("y", ("c",), 2, in_place="c"))
    assert {graph.by_name[n].storage for n in "bvc"} == {"a"}
    assert graph.by_name["y"].storage == "a"
    (_, buffer) = lifetimes(graph, ("a", "b", "v", "c", "y"))
    assert buffer.size_bytes == 8
    kept = chain(Node("a", ("x",), 8), Node("y", ("a",), 4, in_place="a"), outputs=("a", "y"))
    assert kept.by_name["y"].storage == ""  # an output of the graph is never overwritten


def test_the_order_is_the_best_for_rounded_sizes() -> None:
    """Against all orders one by one; all features of memory; and what was even stays as it was."""
    for seed in range(150):
        graph = random_graph(seed, 7)
        graph = Graph(
            tuple(replace(n, output_bytes=37 * n.output_bytes) for n in graph.nodes), graph.inputs, graph.outputs
        )
        sized = graph.aligned(64)
        assert all(n.output_bytes % 64 == n.workspace_bytes % 64 == 0 for n in sized.nodes)
        assert sized.aligned(64) is sized
        assert graph.aligned(1) is graph
        found = schedule(sized, ScheduleOptions(engine="python"))
        assert found.proven
        assert found.peak_bytes == least_peak(sized)


@pytest.mark.parametrize("sizes", [(1 << 62, 1), (1 << 59, (1 << 59) + 1)])
def test_sizes_that_cannot_be_counted_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(GraphError, match=r"add up to \d+ bytes, more than the .*the largest is node"):
        Graph((Node("a", (), sizes[0]), Node("b", ("a",), sizes[1])))
    with pytest.raises(GraphError, match="add up to"):
        Graph((Node("a", (), 1),)).aligned(1 << 61)


def plain_greedy(problem: Problem) -> tuple[int, ...]:
    """The greedy order as it is defined: every ready step is looked at in every step."""
    done, in_use, ready, order = 0, problem.first_bytes, problem.first_ready, []
    while ready:
        in_use, _, u = min((*reversed(problem.run(done, in_use, u)), u) for u in bits(ready))
        done |= 1 << u
        ready = problem.ready_after(done, ready, u)
        order.append(u)
    return tuple(order)


def plain_bound(problem: Problem) -> int:
    """The bound as it is defined: for every step, the memories that are in use in any case."""
    bound = problem.first_bytes
    for u in range(problem.n):
        before, later = problem.ancestors[u], problem.descendants[u] | 1 << u
        needs = problem.overwrites[u]
        running = before if needs is not None and not needs & later else before | 1 << u
        held = [m for m in problem.memories if (m.given or m.starters & running) and (m.kept or m.touchers & later)]
        bound = max(bound, problem.constant + sum(m.size for m in held) + problem.workspace[u])
    return bound


def test_the_fast_greedy_order_and_bound_are_those_of_their_definitions() -> None:
    for seed in range(300):
        whole = problem_of(random_graph(seed))
        for problem in (whole, *divide(whole)):
            assert greedy_order(problem) == plain_greedy(problem)
            assert node_bound(problem) == plain_bound(problem)
