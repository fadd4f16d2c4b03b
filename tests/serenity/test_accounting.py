"""Graphs, their checks, and what an order costs: by hand, by simulation and as properties."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.errors import UsageError
from chameleon.serenity.accounting import footprint, lifetimes, peak_bytes, validate
from chameleon.serenity.graph import Graph, GraphError, Node, read_graph, write_graph
from tests.serenity.graphs import random_graph, random_order


def chain(*sizes: int) -> Graph:
    names = [f"n{i}" for i in range(len(sizes))]
    nodes = [
        Node(n, tuple(names[max(i - 1, 0) : i]), size) for i, (n, size) in enumerate(zip(names, sizes, strict=True))
    ]
    return Graph(tuple(nodes), inputs=("n0",), outputs=(names[-1],))


def test_a_chain_holds_two_neighbours() -> None:
    graph = chain(3, 5, 7, 1)
    use = footprint(graph, graph.steps)
    assert use.during.tolist() == [3 + 5, 5 + 7, 7 + 1]
    assert use.after.tolist() == [3, 5, 7, 1]
    assert use.peak_bytes == 12


def test_a_workspace_counts_while_its_node_runs() -> None:
    graph = Graph((Node("x", (), 4), Node("y", ("x",), 4, workspace_bytes=10)), inputs=("x",), outputs=("y",))
    assert footprint(graph, ["y"]).during.tolist() == [18]
    assert footprint(graph, ["y"]).after.tolist() == [4, 4]


def test_a_view_takes_nothing_and_keeps_its_source() -> None:
    nodes = (
        Node("x", (), 8),
        Node("a", ("x",), 8),
        Node("v", ("a",), storage="a"),
        Node("b", ("a",), 2),
        Node("c", ("v", "b"), 2),
    )
    graph = Graph(nodes, inputs=("x",), outputs=("c",))
    assert footprint(graph, ["a", "v", "b", "c"]).during.tolist() == [16, 8, 10, 12]


def test_parts_of_a_concatenation_that_copies_nothing_take_all_of_it_at_once() -> None:
    nodes = (
        *(Node("x", (), 1), Node("a", ("x",), 4, storage="cat"), Node("b", ("x",), 4, storage="cat")),
        *(Node("cat", ("a", "b"), 8), Node("y", ("cat",), 1)),
    )
    graph = Graph(nodes, inputs=("x",), outputs=("y",))
    assert footprint(graph, ["a", "b", "cat", "y"]).during.tolist() == [9, 9, 8, 9]


def test_in_place_happens_where_nothing_else_needs_the_input() -> None:
    nodes = (
        *(Node("x", (), 4), Node("a", ("x",), 4), Node("r", ("a",), 4, in_place="a"), Node("s", ("a",), 4)),
        Node("y", ("r", "s"), 4),
    )
    graph = Graph(nodes, inputs=("x",), outputs=("y",))
    assert footprint(graph, ["a", "s", "r", "y"]).during.tolist() == [8, 8, 8, 12]
    assert footprint(graph, ["a", "r", "s", "y"]).during.tolist() == [8, 8, 12, 12]
    merged = [b for b in lifetimes(graph, ["a", "s", "r", "y"]) if "r" in b.tensors]
    assert merged[0].tensors == ("a", "r")
    assert (merged[0].start, merged[0].stop) == (0, 4)


def test_inputs_and_outputs_of_the_graph_are_not_overwritten() -> None:
    for inputs, outputs in ((("a",), ("r",)), ((), ("a", "r"))):
        graph = Graph((Node("a", (), 4), Node("r", ("a",), 4, in_place="a")), inputs=inputs, outputs=outputs)
        assert peak_bytes(graph, graph.steps) == 8


@given(st.integers(0, 2**32 - 1))
def test_the_footprint_is_what_a_simulation_step_by_step_finds(seed: int) -> None:
    graph, order = random_graph(seed), random_order(seed)
    use = footprint(graph, order)
    alive = {o for o in graph.inputs if graph.consumers[o] or o in graph.outputs}
    done: set[str] = set(graph.inputs)
    size = {n.name: n.output_bytes for n in graph.nodes}
    for t, name in enumerate(order):
        node, owner = graph.by_name[name], graph.owner(name)
        assert use.after[t] == sum(size[o] for o in alive)
        done.add(name)
        taken = graph.owner(node.in_place) if node.in_place else None
        if taken is not None and _needed(graph, taken, done):
            taken = None
        if taken in graph.inputs:
            taken = None
        grows = 0 if owner in alive or taken else size[owner]
        assert use.during[t] == sum(size[o] for o in alive) + grows + node.workspace_bytes
        alive = {o for o in alive | {owner} if _needed(graph, o, done)}
    assert use.after[-1] == sum(size[o] for o in alive)


def _needed(graph: Graph, owner: str, done: set[str]) -> bool:
    members = graph.members[owner]
    if any(m in graph.outputs for m in members):
        return True
    return not done.issuperset({*members, *(r for m in members for r in graph.consumers[m])})


@given(st.integers(0, 2**32 - 1))
def test_buffers_add_up_to_the_footprint(seed: int) -> None:
    graph, order = random_graph(seed), random_order(seed)
    buffers = lifetimes(graph, order)
    sums = [sum(b.size_bytes for b in buffers if b.start <= t < b.stop) for t in range(len(order))]
    assert footprint(graph, order).during.tolist() == sums


@given(st.integers(0, 2**32 - 1))
def test_json_and_back_is_the_same_graph(seed: int) -> None:
    graph = random_graph(seed)
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def test_a_file_and_back_is_the_same_graph(tmp_path: Path) -> None:
    graph = random_graph(7)
    write_graph(graph, tmp_path / "g.json")
    assert read_graph(tmp_path / "g.json") == graph
    assert len((tmp_path / "g.json").read_text().splitlines()) == len(graph.nodes) + 7


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([{"name": "a", "inputs": ["b"]}, {"name": "b", "inputs": ["a"]}], "cycle: "),
        ([{"name": "a", "inputs": ["a"]}], "cycle: a -> a"),
        ([{"name": "a", "output_bytes": -1}], "'a': expected output_bytes to be an integer >= 0, got -1"),
        ([{"name": "a", "output_bytes": 1.5}], "got 1.5"),
        ([{"name": "a", "inputs": ["nowhere"]}], "'a' reads 'nowhere'"),
        ([{"name": "a"}, {"name": "a"}], "two nodes are called 'a'"),
        ([{"name": "a.workspace"}, {"name": "a", "workspace_bytes": 8}], "what the workspace of node 'a' is called"),
        ([{"name": "a", "bytes": 3}], "unknown key 'bytes'"),
        ([{"name": "a", "inputs": "b"}], "expected a list of names"),
        ([{"name": "a", "storage": "a"}], "`storage`"),
        (
            [{"name": "a", "output_bytes": 4}, {"name": "b", "inputs": ["a"], "output_bytes": 8, "storage": "a"}],
            "do not fit",
        ),
        (
            [{"name": "a", "output_bytes": 4}, {"name": "b", "inputs": ["a"], "output_bytes": 8, "in_place": "a"}],
            "in place",
        ),
        (
            [{"name": "a", "output_bytes": 4}, {"name": "b", "output_bytes": 4, "in_place": "a"}],
            "name one of its inputs",
        ),
        ("nodes", "expected a graph"),
        ([3], "node 0: expected an object"),
    ],
)
def test_a_bad_graph_is_refused_with_the_place(nodes: object, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        Graph.from_json({"nodes": nodes})
    assert words in str(caught.value)


def test_a_name_like_a_workspace_is_free_where_there_is_no_workspace() -> None:
    graph = Graph((Node("a", output_bytes=8), Node("a.workspace", ("a",), 16)))
    assert peak_bytes(graph, graph.steps) == 24
    assert {b.name: b.tensors for b in lifetimes(graph, graph.steps)} == {"a": ("a",), "a.workspace": ("a.workspace",)}


def test_a_missing_output_is_named() -> None:
    with pytest.raises(GraphError, match="output 'z' is not among"):
        Graph((Node("a"),), outputs=("z",))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text('{"nodes": [')
    with pytest.raises(GraphError, match=r"g\.json: expected JSON"):
        read_graph(tmp_path / "g.json")
    with pytest.raises(UsageError, match="no such file"):
        read_graph(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (["n1", "n2"], "lacks 1 of 3"),
        (["n1", "n3", "n2"], "'n3' before its input 'n2'"),
        (["n1", "n2", "n2", "n3"], "'n2' 2 times"),
        (["n0", "n1", "n2", "n3"], "an input of the graph"),
        (["n1", "n2", "n3", "q"], "'q', no node"),
    ],
)
def test_a_wrong_order_is_refused(order: list[str], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        validate(chain(1, 1, 1, 1), order)


def test_a_node_in_whose_memory_something_lies_already_overwrites_nothing() -> None:
    """`p` writes into the memory of `r` before `r` runs: that cannot take over the memory of `a`."""
    nodes = (
        Node("p", (), 2, storage="r"),
        Node("a", (), 4),
        Node("r", ("a",), 4, in_place="a"),
        Node("y", ("p", "r"), 1),
    )
    graph = Graph(nodes, outputs=("y",))
    assert footprint(graph, ["p", "a", "r", "y"]).during.tolist() == [4, 8, 8, 5]
    assert footprint(graph, ["a", "r", "p", "y"]).during.tolist() == [4, 4, 4, 5]


def test_a_graph_without_steps_holds_its_inputs() -> None:
    graph = Graph((Node("x", (), 4), Node("z", (), 3)), ("x", "z"), ("x",))
    assert peak_bytes(graph, ()) == 4
